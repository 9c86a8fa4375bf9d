"""All figures of a comparison: drawn, saved as PNG and SVG, with what each shows in words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.decay_figures import adaptive, decay_by_role, modules_over_time, score_name
from comparison.findings import Finding
from comparison.looks import Looks, looks_of, save
from comparison.outcome_figures import metric_by_decay, outcome
from comparison.time_figures import decay_and_norms, learning_curves

FOLDER = "figures"  # of the report


@dataclass(frozen=True)
class Drawn:
    """A figure that lies in the report's folder as `name`.png and `name`.svg."""

    name: str
    title: str
    caption: str


def slug(text: str) -> str:
    """A name as part of a file's name and of an anchor: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "setting"


def slugs(names: Sequence[str]) -> dict[str, str]:
    """By name; numbered where two would be the same."""
    found: dict[str, str] = {}
    for name in names:
        wanted = slug(name)
        taken = set(found.values())
        numbered = (f"{wanted}-{i}" for i in range(2, len(names) + 2))
        found[name] = wanted if wanted not in taken else next(each for each in numbered if each not in taken)
    return found


def draw_all(findings: Sequence[Finding], folder: Path) -> dict[str, list[Drawn]]:
    """Draw and save the figures of every setting.

    Args:
        findings: The settings.
        folder: Of the figures; made if need be.

    Returns:
        By the setting's name, in the order of the report.
    """
    looks = looks_of(tuned.strategy for finding in findings for tuned in finding.tuned)
    prefixes = slugs([finding.setting.name for finding in findings])
    return {f.setting.name: _of_setting(f, prefixes[f.setting.name], looks, folder) for f in findings}


def _of_setting(finding: Finding, prefix: str, looks: Looks, folder: Path) -> list[Drawn]:
    baseline = finding.setting.baseline
    drawn = []
    for name, title, figure, caption in (
        ("outcome", "Outcome by strategy", outcome(finding, looks),
         "Left: each strategy at its best base decay, a dot a seed, the bar their mean (a star: at the edge of the "
         f"search). Right: differences to {baseline}, paired by seed, and below the line those of "
         "the other compared pairs. Thick: 95 % interval of Student's t; thin: bootstrap, too narrow for few seeds. "
         "Filled dots are told from 0 after Holm's correction, open ones are not. "
         "Arrows at the margin are far off."),
        ("decay", "Metric by decay", metric_by_decay(finding, looks),
         "Mean over seeds, and the range, at every searched base decay; open marks lack seeds. Left of the dashed "
         "line: no decay. Strategies at one base decay stand side by side. Arrows at the margin are means beyond it."),
        ("curves", "Learning curves", learning_curves(finding, looks),
         "Each strategy at its best base decay: mean over seeds, in a band from the smallest to the largest. Below: "
         f"minus {baseline} at the same seed and step. Axes leave out what only the first steps reach, "
         "and those of differences leave out strategies that are far off."),
        ("norms", "Applied decay, norm of weights, alpha", decay_and_norms(finding, looks),
         "Each strategy at its best base decay: mean over seeds and, as a band or a bar, the range. Steps with no "
         "decay are off a logarithmic axis. A small alpha is a heavy tail."),
        ("roles", "Decay by role", decay_by_role(finding, looks),
         "Multipliers of the base decay at each strategy's best one: mean over the modules of a role and over seeds. "
         "Dashed: the base decay."),
    ):  # fmt: skip
        if figure is not None:
            save(figure, folder, f"{prefix}-{name}")
            drawn.append(Drawn(f"{prefix}-{name}", title, caption))
    names = slugs([tuned.strategy for tuned in finding.tuned])
    for tuned in adaptive(finding):
        name = f"{prefix}-modules-{names[tuned.strategy]}"
        save(modules_over_time(tuned), folder, name)
        caption = (
            f"Above, where the kind has one: the score, here {score_name(tuned)}; below: the multiplier of the base "
            "decay that follows from it. A line a module, mean over seeds, at the best base decay."
        )
        drawn.append(Drawn(name, f"Modules over time: {tuned.strategy}", caption))
    return drawn
