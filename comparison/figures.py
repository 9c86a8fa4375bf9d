"""All figures of a comparison: drawn, saved, with what each shows in words; here, what came out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import fmean, median
from typing import Any

from alphadecay.figures.drawing import print_style, say_instead
from comparison.findings import Finding, Point, Tuned
from comparison.looks import (
    CLOSE,
    FAR,
    Look,
    Looks,
    capitalised,
    decay_axis,
    dodged,
    legend_below,
    looks_of,
    margin_arrow,
    near,
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
    """The metric at each strategy's best point, seed by seed; beside it the differences with their intervals."""
    tuned, contrasts = list(finding.tuned), finding.contrasts
    rows = len(tuned) + len(contrasts)
    figure, (left, right) = new_figure(0.75 + 0.33 * rows, 1, 2, sharey=True)
    for row, each in enumerate(tuned):
        _draw_seeds(left, each, row, looks)
        if each.strategy in finding.with_baseline:
            _draw_difference(right, finding.with_baseline[each.strategy], row, looks[each.strategy].colour)
    for row, comparison in enumerate(contrasts, len(tuned)):
        _draw_difference(right, comparison, row, "0.2")
    labels = [_label(each) for each in tuned]
    labels += [f"{plain(c.paired.first)}\n- {plain(c.paired.second)}" for c in contrasts]
    left.set_yticks(range(rows), labels)
    left.set_ylim(rows - 0.5, -0.5)
    if contrasts:
        for ax in (left, right):
            ax.axhline(len(tuned) - 0.5, color="0.7", lw=0.6)
    _leave_out_far(left, right, finding, looks)
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
    if not any(each.best for each in tuned):
        say_instead(left, "no run has finished")
    return figure


def _leave_out_far(left: Any, right: Any, finding: Finding, looks: Looks) -> None:
    """Strategies that are far off, and their differences, are arrows at the margin."""
    higher = finding.setting.metric.higher_is_better
    rows = {each.strategy: row for row, each in enumerate(finding.tuned)}
    values = {t.strategy: list(t.best.values.values()) for t in finding.tuned if t.best is not None}
    ends = {name: (min(each), max(each)) for name, each in values.items()}
    if ends:
        _shorten(left, ends, {name: fmean(each) for name, each in values.items()}, rows, looks, higher)
    means = {name: c.paired.mean for name, c in finding.with_baseline.items() if c.paired.mean is not None}
    intervals = {name: finding.with_baseline[name].paired.interval or (mean, mean) for name, mean in means.items()}
    _shorten(right, intervals, means, rows, looks, higher, centre=0.0)


def _shorten(
    ax: Any, spans: Mapping[str, Interval], means: Mapping[str, float], rows: Mapping[str, int], looks: Looks,
    higher_is_better: bool, centre: float | None = None,
) -> None:  # fmt: skip
    limits = near(list(spans.values()), median(means.values()) if centre is None else centre, higher_is_better)
    if limits is None:
        return
    ax.set_xlim(*limits)
    for name, mean in means.items():
        if not limits[0] <= mean <= limits[1]:
            margin_arrow(ax, mean, rows[name], looks[name].colour)


def _name_baseline(ax: Any, row: int) -> None:
    """Beside the line of no difference, on the side with more room."""
    low, high = ax.get_xlim()
    right = high > -low
    ax.annotate(
        "baseline", (0, row), (4 if right else -4, 0), textcoords="offset points", va="center", fontsize=7, color=GREY,
        ha="left" if right else "right",
    )  # fmt: skip


def _label(tuned: Tuned) -> str:
    """The strategy with its best point; a star is for the edge of the search."""
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
    """A filled dot is a difference that is told from 0; Student's interval is thick, the bootstrap's thin and below."""
    paired = comparison.paired
    if paired.mean is None:
        return
    if paired.interval and not paired.all_equal:
        ax.plot(paired.interval, [row, row], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(paired.bootstrap, [row + 0.22] * 2, color="0.3", lw=0.8, marker="|", ms=3)
    told = comparison.verdict in (BETTER, WORSE)
    ax.plot([paired.mean], [row], marker="o", color=colour, mfc=colour if told else "white", mew=1.2, ms=5)


@print_style()
def metric_by_decay(finding: Finding, looks: Looks) -> Any:
    """The metric against base decay and against mean applied decay: means, and the range over seeds."""
    figure, axes = new_figure(2.9, 1, 2, sharey=True)
    tuned = [each for each in finding.tuned if any(point.values for point in each.points)]
    metric = finding.setting.metric
    limit = _far_limit([p.mean for t in tuned for p in t.points if p.mean is not None], metric)
    for ax, name in zip(axes, ("weight_decay", "mean_decay"), strict=True):
        _draw_by_decay(ax, tuned, name, looks, limit, metric)
        ax.grid(True)
    axes[0].set(ylabel=capitalised(metric.label), xlabel="Base decay")
    axes[1].set(xlabel="Mean applied decay")
    if limit is not None:
        axes[0].set_ylim(**{"bottom" if metric.higher_is_better else "top": limit})
    if not tuned:
        for ax in axes:
            say_instead(ax, "no run has finished")
    legend_below(figure, looks, [each.strategy for each in tuned])
    return figure


def _far_limit(means: Sequence[float], metric: Metric) -> float | None:
    """Where the axis ends on the bad side if a few points are so far off that the others could not be told apart."""
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
    ax: Any, tuned: Sequence[Tuned], name: str, looks: Looks, limit: float | None, metric: Metric
) -> None:
    found = {t.strategy: [(getattr(p, name), p) for p in t.points if p.values] for t in tuned}
    points = {s: sorted(((x, p) for x, p in each if x is not None), key=lambda at: at[0]) for s, each in found.items()}
    decays = [x for each in points.values() for x, _ in each]
    zero = decay_axis(ax, decays, exact=name == "weight_decay")
    wide = min(0.05, 0.012 * len(tuned)) if name == "weight_decay" else 0.0  # applied decays lie apart by themselves
    low, high = ax.get_xlim()
    for index, (strategy, each) in enumerate(points.items()):
        shift = (high / low) ** dodged(index, len(points), wide)
        placed = [((x or zero) * shift, point, x > 0) for x, point in each]
        kept = [(x, p.mean) for x, p, positive in placed if positive]
        ax.plot(*zip(*kept, strict=True), **looks[strategy].line, alpha=0.9) if len(kept) > 1 else None
        for x, point, _ in placed:
            _draw_point(ax, x, point, looks[strategy], limit, metric)


def _draw_point(ax: Any, x: float, point: Point, look: Look, limit: float | None, metric: Metric) -> None:
    """Mean and range over seeds; a point beyond the limit is an arrow at the margin, its value if it fits."""
    values = list(point.values.values())
    mean = point.mean or 0.0
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
    ax.plot([x], [mean], marker=look.marker, color=look.colour, mfc=look.colour if point.complete else "white", ms=4)


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
    """Draw the figures of every setting and save them in a folder; by the setting's name, in the report's order."""
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
