"""Draws and saves all figures of a comparison with their captions; those of the outcome are defined here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import fmean, median
from typing import Any

from alphadecay.figures.drawing import print_style, say_instead
from comparison.findings import Candidate, Finding, Tuned
from comparison.looks import (
    CLOSE,
    FAR,
    Look,
    Looks,
    capitalised,
    clipped_limits,
    decay_axis,
    dodged,
    legend_below,
    looks_of,
    margin_arrow,
    new_figure,
    plain,
    save,
)
from comparison.statistics import BETTER, WORSE, Comparison, Interval, number, short, unit
from comparison.time_figures import (
    adaptive,
    decay_and_norms,
    decay_by_role,
    learning_curves,
    modules_over_time,
    score_name,
)
from runtime.metrics import Metric

GREY = "0.45"


@print_style()
def outcome(finding: Finding, looks: Looks) -> Any:
    """Left: the metric of each strategy's best candidate, per seed. Right: the differences with their intervals."""
    strategies, contrasts = list(finding.tuned), finding.contrasts
    rows = len(strategies) + len(contrasts)
    figure, (left, right) = new_figure(0.75 + 0.33 * rows, 1, 2, sharey=True)
    for row, tuned in enumerate(strategies):
        _draw_seeds(left, tuned, row, looks)
        if tuned.strategy in finding.with_baseline:
            _draw_difference(right, finding.with_baseline[tuned.strategy], row, looks[tuned.strategy].colour)
    for row, comparison in enumerate(contrasts, len(strategies)):
        _draw_difference(right, comparison, row, "0.2")
    labels = [_label(tuned) for tuned in strategies]
    labels += [f"{plain(c.paired.first)}\n- {plain(c.paired.second)}" for c in contrasts]
    left.set_yticks(range(rows), labels)
    left.set_ylim(rows - 0.5, -0.5)
    if contrasts:
        for ax in (left, right):
            ax.axhline(len(strategies) - 0.5, color="0.7", lw=0.6)
    _clip_outliers(left, right, finding, looks)
    metric = finding.setting.metric
    left.set_xlabel(capitalised(metric.label))
    right.axvline(0, color=GREY, lw=0.8, zorder=0)
    direction = "right is better" if metric.higher_is_better else "left is better"
    measure = f" in {unit(metric)}" if unit(metric) else f" in {metric.label}"
    right.set_xlabel(f"Difference{measure}\n({direction})")
    for ax in (left, right):
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
    _name_baseline(right, list(finding.tuned).index(finding.baseline))
    if not any(tuned.best for tuned in strategies):
        say_instead(left, "no run has finished")
    return figure


def _clip_outliers(left: Any, right: Any, finding: Finding, looks: Looks) -> None:
    """Draw strategies far off on the worse side, and their differences, as arrows at the margin."""
    higher = finding.setting.metric.higher_is_better
    rows = {tuned.strategy: row for row, tuned in enumerate(finding.tuned)}
    values = {t.strategy: list(t.best.values.values()) for t in finding.tuned if t.best is not None}
    ranges = {name: (min(metric), max(metric)) for name, metric in values.items()}
    if ranges:
        _clip(left, ranges, {name: fmean(metric) for name, metric in values.items()}, rows, looks, higher)
    means = {name: c.paired.mean for name, c in finding.with_baseline.items() if c.paired.mean is not None}
    intervals = {name: finding.with_baseline[name].paired.interval or (mean, mean) for name, mean in means.items()}
    _clip(right, intervals, means, rows, looks, higher, centre=0.0)


def _clip(
    ax: Any, spans: Mapping[str, Interval], means: Mapping[str, float], rows: Mapping[str, int], looks: Looks,
    higher_is_better: bool, centre: float | None = None,
) -> None:  # fmt: skip
    centre = median(means.values()) if centre is None else centre
    limits = clipped_limits(list(spans.values()), centre, higher_is_better)
    if limits is None:
        return
    ax.set_xlim(*limits)
    for name, mean in means.items():
        if not limits[0] <= mean <= limits[1]:
            margin_arrow(ax, mean, rows[name], looks[name].colour)


def _name_baseline(ax: Any, row: int) -> None:
    """Write "baseline" next to the line of no difference, on the side with more space."""
    low, high = ax.get_xlim()
    right = high > -low
    ax.annotate(
        "baseline", (0, row), (4 if right else -4, 0), textcoords="offset points", va="center", fontsize=7, color=GREY,
        ha="left" if right else "right",
    )  # fmt: skip


def _label(tuned: Tuned) -> str:
    """The strategy with its best base decay; a star if it is at the edge of the search."""
    best = tuned.best
    if best is None:
        return f"{plain(tuned.strategy)}\nno run has finished"
    star = " *" if tuned.edges else ""
    return f"{plain(tuned.strategy)}\nbase decay {short(best.weight_decay)}{star}"


def _draw_seeds(ax: Any, tuned: Tuned, row: int, looks: Looks) -> None:
    if tuned.best is None:
        return
    look = looks[tuned.strategy]
    values = list(tuned.best.values.values())
    ax.plot(values, [row] * len(values), ls="", marker=look.marker, color=look.colour, alpha=0.8, mec="none", ms=4.5)
    if len(values) > 1:
        ax.plot([tuned.best.mean] * 2, [row - 0.3, row + 0.3], color="0.1", lw=1.3)


def _draw_difference(ax: Any, comparison: Comparison, row: int, colour: str) -> None:
    """Draw a difference, filled if it is significant; Student's interval is thick, the bootstrap's thin and below."""
    paired = comparison.paired
    if paired.mean is None:
        return
    if paired.interval and not paired.all_equal:
        ax.plot(paired.interval, [row, row], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(paired.bootstrap, [row + 0.22] * 2, color="0.3", lw=0.8, marker="|", ms=3)
    significant = comparison.verdict in (BETTER, WORSE)
    ax.plot([paired.mean], [row], marker="o", color=colour, mfc=colour if significant else "white", mew=1.2, ms=5)


@print_style()
def metric_by_decay(finding: Finding, looks: Looks) -> Any:
    """The metric against base decay and against mean applied decay: mean and range over seeds."""
    figure, axes = new_figure(2.9, 1, 2, sharey=True)
    strategies = [tuned for tuned in finding.tuned if any(c.values for c in tuned.candidates)]
    metric = finding.setting.metric
    limit = _outlier_limit([c.mean for t in strategies for c in t.candidates if c.mean is not None], metric)
    for ax, name in zip(axes, ("weight_decay", "mean_decay"), strict=True):
        _draw_by_decay(ax, strategies, name, looks, limit, metric)
        ax.grid(True)
    axes[0].set(ylabel=capitalised(metric.label), xlabel="Base decay")
    axes[1].set(xlabel="Mean applied decay")
    if limit is not None:
        axes[0].set_ylim(**{"bottom" if metric.higher_is_better else "top": limit})
    if not strategies:
        for ax in axes:
            say_instead(ax, "no run has finished")
    legend_below(figure, looks, [tuned.strategy for tuned in strategies])
    return figure


def _outlier_limit(means: Sequence[float], metric: Metric) -> float | None:
    """Axis limit on the worse side that cuts off outliers; None if there are no outliers."""
    if not means:
        return None
    best = (max if metric.higher_is_better else min)(means)
    distances = sorted(abs(mean - best) for mean in means)
    typical = distances[len(distances) // 2]
    if distances[-1] <= FAR * typical or not typical:
        return None
    within = max(d for d in distances if d <= FAR * typical)
    return best - 1.3 * within if metric.higher_is_better else best + 1.3 * within


def _draw_by_decay(
    ax: Any, strategies: Sequence[Tuned], name: str, looks: Looks, limit: float | None, metric: Metric
) -> None:
    pairs = {t.strategy: [(getattr(c, name), c) for c in t.candidates if c.values] for t in strategies}
    by_strategy = {
        strategy: sorted(((decay, c) for decay, c in own if decay is not None), key=lambda pair: pair[0])
        for strategy, own in pairs.items()
    }
    decays = [decay for own in by_strategy.values() for decay, _ in own]
    zero = decay_axis(ax, decays, exact=name == "weight_decay")
    # Mean applied decays differ between strategies anyway.
    width = min(0.05, 0.012 * len(strategies)) if name == "weight_decay" else 0.0
    low, high = ax.get_xlim()
    for index, (strategy, own) in enumerate(by_strategy.items()):
        shift = (high / low) ** dodged(index, len(by_strategy), width)
        placed = [((decay or zero) * shift, candidate, decay > 0) for decay, candidate in own]
        line = [(x, c.mean) for x, c, positive in placed if positive]
        ax.plot(*zip(*line, strict=True), **looks[strategy].line, alpha=0.9) if len(line) > 1 else None
        for x, candidate, _ in placed:
            _draw_candidate(ax, x, candidate, looks[strategy], limit, metric)


def _draw_candidate(ax: Any, x: float, candidate: Candidate, look: Look, limit: float | None, metric: Metric) -> None:
    """Draw mean and range over seeds; a mean beyond the limit is an arrow at the margin, with its value if it fits."""
    values = list(candidate.values.values())
    mean = candidate.mean or 0.0
    if limit is not None and (mean < limit if metric.higher_is_better else mean > limit):
        up = not metric.higher_is_better
        ax.plot([x], [limit], marker="^" if up else "v", color=look.colour, ms=5, clip_on=False, zorder=5)
        low, high = ax.get_xlim()
        if all(abs(log10(x / text.xy[0])) > CLOSE * log10(high / low) for text in ax.texts):
            ax.annotate(
                number(mean, 3), (x, limit), (0, -5 if up else 5), textcoords="offset points", fontsize=6,
                ha="center", va="top" if up else "bottom", color="0.25",
            )  # fmt: skip
        return
    ax.plot([x, x], [min(values), max(values)], color=look.colour, lw=0.9, alpha=0.7)
    fill = look.colour if candidate.complete else "white"
    ax.plot([x], [mean], marker=look.marker, color=look.colour, mfc=fill, ms=4)


FOLDER = "figures"  # in the report's folder


@dataclass(frozen=True)
class Drawn:
    """A figure that is saved as `name`.png and `name`.svg."""

    name: str
    title: str
    caption: str


def slug(text: str) -> str:
    """A name for use in file names and anchors: only lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "setting"


def slugs(names: Sequence[str]) -> dict[str, str]:
    """The slug of each name, by name; a number is added to make slugs unique."""
    unique: dict[str, str] = {}
    for name in names:
        wanted = slug(name)
        taken = set(unique.values())
        numbered = (f"{wanted}-{i}" for i in range(2, len(names) + 2))
        unique[name] = wanted if wanted not in taken else next(text for text in numbered if text not in taken)
    return unique


def draw_all(findings: Sequence[Finding], folder: Path) -> dict[str, list[Drawn]]:
    """Draw all figures and save them in a folder; returns them by the setting's name, in the report's order."""
    looks = looks_of(tuned.strategy for finding in findings for tuned in finding.tuned)
    prefixes = slugs([finding.setting.name for finding in findings])
    return {f.setting.name: _of_setting(f, prefixes[f.setting.name], looks, folder) for f in findings}


def _of_setting(finding: Finding, prefix: str, looks: Looks, folder: Path) -> list[Drawn]:
    baseline = finding.setting.baseline
    drawn = []
    for name, title, figure, caption in (
        ("outcome", "Outcome by strategy", outcome(finding, looks),
         "Left: each strategy at its best base decay, one dot per seed; the bar is their mean, and a star means that "
         f"the best base decay is at the edge of the search. Right: differences to {baseline}, paired by seed, and "
         "below the line those of the other compared pairs. Thick: 95 % interval of Student's t; thin: bootstrap, too "
         "narrow for few seeds. Filled dots differ significantly from 0 after Holm's correction, open dots do not. "
         "Arrows at the margin are values beyond the axis."),
        ("decay", "Metric by decay", metric_by_decay(finding, looks),
         "Mean and range over seeds at every searched base decay; open marks have unfinished seeds. Left of the dashed "
         "line: no decay. Strategies with the same base decay are drawn side by side. Arrows at the margin are means "
         "beyond the axis."),
        ("curves", "Learning curves", learning_curves(finding, looks),
         "Each strategy at its best base decay: mean over seeds, in a band from the smallest to the largest value. "
         f"Below: the difference to {baseline} at the same seed and step. The axes do not show values that only the "
         "first steps reach; the axes of differences do not show strategies that are far worse than the others."),
        ("norms", "Applied decay, norm of weights, alpha", decay_and_norms(finding, looks),
         "Each strategy at its best base decay: mean over seeds, and the range as a band or a bar. A logarithmic axis "
         "does not show steps without decay. A small alpha means a heavy tail."),
        ("roles", "Decay by role", decay_by_role(finding, looks),
         "Multipliers of the base decay, each strategy at its best base decay: mean over the modules of a role and "
         "over seeds. Dashed: the base decay."),
    ):  # fmt: skip
        if figure is not None:
            save(figure, folder, f"{prefix}-{name}")
            drawn.append(Drawn(f"{prefix}-{name}", title, caption))
    names = slugs([tuned.strategy for tuned in finding.tuned])
    for tuned in adaptive(finding):
        name = f"{prefix}-modules-{names[tuned.strategy]}"
        save(modules_over_time(tuned), folder, name)
        caption = (
            f"Above, if the strategy has scores: the score, here {score_name(tuned)}. Below: the multiplier of the "
            "base decay that follows from it. One line per module, mean over seeds, at the best base decay."
        )
        drawn.append(Drawn(name, f"Modules over time: {tuned.strategy}", caption))
    return drawn
