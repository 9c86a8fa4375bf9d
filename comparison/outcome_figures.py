"""Figures of what came out: the metric of each strategy, its difference to the baseline, and what the decay did."""

from collections.abc import Sequence
from typing import Any

from alphadecay.drawing import DOUBLE, print_style, say_instead
from comparison.findings import Finding
from comparison.looks import Looks, capitalised, dodged, legend_below, plain
from comparison.programs import Metric
from comparison.statistics import BETTER, WORSE, Comparison
from comparison.tuning import Point, Tuned
from comparison.wording import number, short, unit

FAR = 6.0  # times the median distance to the best mean, from which a point is drawn at the margin
GREY = "0.45"


@print_style()
def outcome(finding: Finding, looks: Looks) -> Any:
    """The metric at each strategy's best point, seed by seed; beside it the differences with their intervals."""
    from matplotlib.figure import Figure

    tuned, contrasts = list(finding.tuned), finding.contrasts
    rows = len(tuned) + len(contrasts)
    figure = Figure(figsize=(DOUBLE, 0.75 + 0.33 * rows), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, each in enumerate(tuned):
        _draw_seeds(left, each, row, looks)
        if each.strategy in finding.with_baseline:
            _draw_difference(right, finding.with_baseline[each.strategy], row, looks[each.strategy].colour)
        else:
            right.annotate(
                "baseline", (0, row), (4, 0), textcoords="offset points", va="center", fontsize=7, color=GREY
            )
    for row, comparison in enumerate(contrasts, len(tuned)):
        _draw_difference(right, comparison, row, "0.2")
    labels = [_label(each) for each in tuned]
    labels += [f"{plain(c.paired.first)}\n- {plain(c.paired.second)}" for c in contrasts]
    left.set_yticks(range(rows), labels)
    left.set_ylim(rows - 0.5, -0.5)
    if contrasts:
        for ax in (left, right):
            ax.axhline(len(tuned) - 0.5, color="0.7", lw=0.6)
    metric = finding.setting.metric
    left.set_xlabel(capitalised(metric.label))
    right.axvline(0, color=GREY, lw=0.8, zorder=0)
    direction = "right is better" if metric.higher_is_better else "left is better"
    measure = f" in {unit(metric)}" if unit(metric) else f" in {metric.label}"
    right.set_xlabel(f"Difference{measure}\n({direction})")
    for ax in (left, right):
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
    if not any(each.best for each in tuned):
        say_instead(left, "no run has finished")
    return figure


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
    ax.plot(values, [row] * len(values), ls="", marker=look.marker, color=look.colour, alpha=0.6, mec="none", ms=4.5)
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
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
    median = distances[len(distances) // 2]
    if distances[-1] <= FAR * median or not median:
        return None
    within = max(d for d in distances if d <= FAR * median)
    return best - 1.3 * within if metric.higher_is_better else best + 1.3 * within


def _draw_by_decay(
    ax: Any, tuned: Sequence[Tuned], name: str, looks: Looks, limit: float | None, metric: Metric
) -> None:
    found = {t.strategy: [(getattr(p, name), p) for p in t.points if p.values] for t in tuned}
    points = {s: sorted(((x, p) for x, p in each if x is not None), key=lambda at: at[0]) for s, each in found.items()}
    decays = [x for each in points.values() for x, _ in each]
    zero = _decay_axis(ax, decays, exact=name == "weight_decay")
    wide = 0.03 if name == "weight_decay" else 0.0  # applied decays lie apart by themselves
    low, high = ax.get_xlim()
    for index, (strategy, each) in enumerate(points.items()):
        shift = (high / low) ** dodged(index, len(points), wide)
        placed = [((x or zero) * shift, point, x > 0) for x, point in each]
        kept = [(x, p.mean) for x, p, positive in placed if positive]
        ax.plot(*zip(*kept, strict=True), **looks[strategy].line, alpha=0.9) if len(kept) > 1 else None
        for x, point, _ in placed:
            _draw_point(ax, x, point, looks[strategy], limit, metric)


def _draw_point(ax: Any, x: float, point: Point, look: Any, limit: float | None, metric: Metric) -> None:
    """Mean and range over seeds; a point beyond the limit is an arrow at the margin with its value."""
    values = list(point.values.values())
    mean = point.mean or 0.0
    if limit is not None and (mean < limit if metric.higher_is_better else mean > limit):
        up = not metric.higher_is_better
        ax.plot([x], [limit], marker="^" if up else "v", color=look.colour, ms=5, clip_on=False, zorder=5)
        ax.annotate(
            number(mean, 3), (x, limit), (0, -5 if up else 5), textcoords="offset points", fontsize=6,
            ha="center", va="top" if up else "bottom", color="0.25",
        )  # fmt: skip
        return
    ax.plot([x, x], [min(values), max(values)], color=look.colour, lw=0.9, alpha=0.7)
    ax.plot([x], [mean], marker=look.marker, color=look.colour, mfc=look.colour if point.complete else "white", ms=4)


def _decay_axis(ax: Any, decays: Sequence[float], exact: bool) -> float:
    """A logarithmic axis with a place for 0 to the left of it; returns that place.

    Args:
        ax: The panel.
        decays: All that will be drawn, 0 or more.
        exact: Whether ticks stand at the decays themselves, which are few.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    positive = sorted({decay for decay in decays if decay > 0}) or [1.0]
    low, high = positive[0], positive[-1]
    ax.set_xscale("log")
    apart = max(3.0, (high / low) ** 0.25)
    zero = low / apart
    ticks = positive if exact and len(positive) <= 8 else _powers(low, high)
    labels = [short(tick) for tick in ticks]
    margin = max(1.3, (high / low) ** 0.06)
    if 0 in decays:
        ax.axvline(low / apart**0.5, color="0.6", lw=0.8, ls=(0, (2, 2)))
        ticks, labels = [zero, *ticks], ["0", *labels]
    ax.set_xlim((zero if 0 in decays else low) / margin, high * margin)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())
    return zero


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; over wide ranges powers of ten alone."""
    from math import ceil, floor, log10

    parts = (1,) if high > 300 * low else (1, 3) if high > 20 * low else (1, 2, 5)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    found = [
        part * 10.0**power for power in powers for part in parts if low * 0.95 <= part * 10.0**power <= high * 1.05
    ]
    return found or [low]
