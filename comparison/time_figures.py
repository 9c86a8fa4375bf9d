"""Figures over optimizer steps: losses, metric, decay, norms, and the multipliers of modules."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap

from alphadecay.baselines import ALL
from alphadecay.decay_log import Row, refreshes
from alphadecay.figures.drawing import label_log_axis, print_style, say_instead, thinned
from comparison.findings import Finding, Tuned
from comparison.looks import Looks, capitalised, clipped_limits, dodged, finite, legend_below, new_figure, plain
from comparison.results import Run
from comparison.statistics import Interval
from runtime.strategies import STRATEGIES

EARLY = 0.15  # first share of the steps that does not set the axis limits: all curves are steep there
Curve = Mapping[int, float]  # by optimizer step


def best_runs(finding: Finding) -> dict[str, list[Run]]:
    """The finished runs of each strategy's best candidate, by strategy."""
    return {t.strategy: t.best.finished for t in finding.tuned if t.best is not None and t.best.finished}


def curve(run: Run, key: str) -> Curve:
    """A column of the run's log by step, without missing and infinite values."""
    return {row["step"]: row[key] for row in run.log if finite(row.get(key))}


@print_style()
def learning_curves(finding: Finding, looks: Looks) -> Any:
    """Training loss and metric over steps, and below them their differences to the baseline, paired by seed."""
    metric, baseline = finding.setting.metric, finding.setting.baseline
    runs = best_runs(finding)
    figure, axes = new_figure(4.2, 2, 2, sharex=True)
    for column, (key, label) in enumerate((("train_loss", "training loss in nats"), (metric.name, metric.label))):
        curves = {name: {run.spec.seed: curve(run, key) for run in own} for name, own in runs.items()}
        differences = {n: _minus(by_seed, curves[baseline]) for n, by_seed in curves.items() if baseline in curves}
        differences.pop(baseline, None)
        _draw_curves(axes[0, column], curves, looks)
        _draw_curves(
            axes[1, column], differences, looks, higher_is_better=key == metric.name and metric.higher_is_better
        )
        axes[1, column].axhline(0, **looks[baseline].line, lw=0.8)
        axes[0, column].set_ylabel(capitalised(label))
        axes[1, column].set_ylabel(f"Difference to {plain(baseline)}")
        axes[1, column].set_xlabel("Optimizer step")
    legend_below(figure, looks, list(runs), markers=False)
    return figure


def _minus(curves: Mapping[int, Curve], baseline: Mapping[int, Curve]) -> dict[int, Curve]:
    """Differences by seed, at the steps that both have."""
    return {
        seed: {step: value - baseline[seed][step] for step, value in by_step.items() if step in baseline[seed]}
        for seed, by_step in curves.items()
        if seed in baseline
    }


def _draw_curves(
    ax: Any, curves: Mapping[str, Mapping[int, Curve]], looks: Looks, higher_is_better: bool | None = None
) -> None:
    """Draw each strategy's mean over seeds, in a light band from the smallest to the largest value.

    The axis limits ignore the first steps. For differences, `higher_is_better` is given, and the limits also cut off
    strategies that are far worse than the others.
    """
    spans: list[Interval] = []
    for name, by_seed in curves.items():
        points = _gathered(list(by_seed.values()))
        if not points:
            continue
        steps = [step for step, _ in points]
        band = [[choose(values) for _, values in points] for choose in (min, max)]
        ax.plot(steps, [fmean(values) for _, values in points], **looks[name].line)
        ax.fill_between(steps, *band, color=looks[name].colour, alpha=0.08, lw=0)
        late = [value for step, values in points if step >= EARLY * steps[-1] for value in values]
        spans.append((min(late), max(late)))
    if not spans:  # keeps the x axis, which is shared with other panels
        ax.set_yticks([])
        ax.text(0.5, 0.5, "nothing to draw", ha="center", va="center", color="0.35", transform=ax.transAxes)
        return
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    margin = 0.05 * (high - low) or 0.5
    limits = None if higher_is_better is None else clipped_limits(spans, 0.0, higher_is_better)
    ax.set_ylim(*(limits or (low - margin, high + margin)))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(True)


def _gathered(curves: Sequence[Curve]) -> Sequence[tuple[int, list[float]]]:
    """The values of all curves at the steps that all of them have."""
    if not curves:
        return []
    steps = sorted(set.intersection(*(set(by_step) for by_step in curves)))
    return thinned([(step, [by_step[step] for by_step in curves]) for step in steps])


@print_style()
def decay_and_norms(finding: Finding, looks: Looks) -> Any:
    """Mean applied decay and norm of the decayed weights over steps, and mean alpha of each role at the end."""
    runs = best_runs(finding)
    figure, (decays, norms, alphas) = new_figure(2.7, 1, 3, width_ratios=(1, 1, 1.4))
    _draw_by(decays, runs, looks, lambda run: curve(run, "weight_decay_mean"))
    _draw_by(norms, runs, looks, lambda run: curve(run, "weight_norm"))
    decays.set(xlabel="Optimizer step", ylabel="Mean applied decay")
    norms.set(xlabel="Optimizer step", ylabel="Norm of decayed weights")
    shown = [y for line in decays.lines for y in line.get_ydata() if y > 0]
    if shown and max(shown) > 5 * min(shown):
        decays.set_yscale("log", nonpositive="mask")
        decays.set_ylim(min(shown) / 1.3, max(shown) * 1.3)
        label_log_axis(decays.yaxis, min(shown), max(shown))
    _draw_alphas(alphas, runs, looks)
    legend_below(figure, looks, list(runs))
    return figure


def _draw_by(ax: Any, runs: Mapping[str, Sequence[Run]], looks: Looks, read: Callable[[Run], Curve]) -> None:
    _draw_curves(ax, {name: {run.spec.seed: read(run) for run in own} for name, own in runs.items()}, looks)


def _draw_alphas(ax: Any, runs: Mapping[str, Sequence[Run]], looks: Looks) -> None:
    """Draw mean and range of alpha over seeds, for each strategy and role."""
    by_strategy = {n: [run.summary.get("alpha_by_role") or {} for run in own] for n, own in runs.items()}
    roles = list(dict.fromkeys(role for by_run in by_strategy.values() for alphas in by_run for role in alphas))
    if not roles:
        say_instead(ax, "no run has alphas")
        return
    for index, (name, by_run) in enumerate(by_strategy.items()):
        look = looks[name]
        for place, role in enumerate(roles):
            values = [alphas[role] for alphas in by_run if finite(alphas.get(role))]
            if values:
                x = place + dodged(index, len(by_strategy), 0.6)
                ax.plot([x, x], [min(values), max(values)], color=look.colour, lw=0.8)
                ax.plot([x], [fmean(values)], color=look.colour, marker=look.marker, ms=3)
    ax.set_xticks(range(len(roles)), list(map(plain, roles)), rotation=40, ha="right")
    ax.set_ylabel("Mean alpha at the end")
    ax.grid(True, axis="y")


Lines = dict[str, list[list[tuple[int, float]]]]  # by role, one line per depth, of (step, value)


def adaptive(finding: Finding) -> list[Tuned]:
    """Strategies whose best candidate has different multipliers for its modules."""
    runs = best_runs(finding)
    return [t for t in finding.tuned if t.strategy in runs and _differs(refreshes(runs[t.strategy][0].decay_log))]


def _differs(rows: Sequence[Row]) -> bool:
    by_step: dict[int, set[float]] = {}
    for row in rows:
        if row["module"] != ALL:
            by_step.setdefault(row["step"], set()).add(row["multiplier"])
    return any(len(multipliers) > 1 for multipliers in by_step.values())


def score_name(tuned: Tuned) -> str:
    """The name of the score in a strategy's decay log."""
    strategy = STRATEGIES.get(str(tuned.options.get("decay")))
    return (strategy and strategy.score) or str(tuned.options.get("decay_metric", "score")).replace("_", " ")


def lines_of(runs: Sequence[Run], key: str) -> Lines:
    """A column of the decay log, mean over seeds, by role and depth (the order of modules within a role)."""
    by_role: dict[str, dict[str, dict[int, list[float]]]] = {}
    for run in runs:
        for row in refreshes(run.decay_log):
            if row["module"] != ALL and finite(row[key]):
                by_step = by_role.setdefault(row["role"], {}).setdefault(row["module"], {})
                by_step.setdefault(row["step"], []).append(row[key])
    return {
        role: [[(step, fmean(values)) for step, values in by_step.items()] for by_step in modules.values()]
        for role, modules in by_role.items()
    }


@print_style()
def modules_over_time(tuned: Tuned) -> Any:
    """Score and multiplier of every module over time: one column per role, one line per depth."""
    assert tuned.best is not None, "only strategies that have run are drawn"
    drawn = {key: lines_of(tuned.best.finished, key) for key in ("score", "multiplier")}
    drawn = {key: lines for key, lines in drawn.items() if lines}
    roles = list(drawn["multiplier"])
    depth = max(len(lines) for lines in drawn["multiplier"].values())
    figure, axes = new_figure(0.9 + 1.35 * len(drawn), len(drawn), len(roles), sharex=True, sharey="row", squeeze=False)
    colours = _depth_colours(depth)
    for row, (key, by_role) in enumerate(drawn.items()):
        for ax, role in zip(axes[row], roles, strict=True):
            for index, points in enumerate(by_role.get(role, [])):
                ax.plot(*zip(*thinned(points), strict=True), color=colours[index], lw=1.0)
            ax.grid(True)
            ax.xaxis.get_major_locator().set_params(integer=True, nbins=3 if len(roles) > 4 else 4)
        label = score_name(tuned) if key == "score" else "multiple of base decay"
        axes[row, 0].set_ylabel(capitalised(label))
    for ax, role in zip(axes[0], roles, strict=True):
        ax.set_title(plain(role))
    _baselines(axes[list(drawn).index("multiplier")])
    figure.supxlabel("Optimizer step", fontsize=8)
    _depth_bar(figure, axes, colours)
    return figure


def _baselines(axes: Sequence[Any]) -> None:
    """Draw the base decay (multiplier 1) in every panel of multipliers."""
    for ax in axes:
        ax.axhline(1, color="0.5", lw=0.7, ls=(0, (2, 2)), zorder=0)


def _depth_colours(depth: int) -> list[Any]:
    """Colours from dark to light with depth, also in grey print; without the lightest, which paper does not show."""
    return [colormaps["cividis"](0.88 * i / max(1, depth - 1)) for i in range(depth)]


def _depth_bar(figure: Any, axes: Any, colours: Sequence[Any]) -> None:
    depth = len(colours)
    if depth < 2:
        return
    scale = ScalarMappable(BoundaryNorm([i + 0.5 for i in range(depth + 1)], depth), ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, label="Depth (n-th of its role)", fraction=0.03, pad=0.015)
    every = -(-depth // 8)
    bar.set_ticks(range(1, depth + 1, every))
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()


@print_style()
def decay_by_role(finding: Finding, looks: Looks) -> Any:
    """Mean multiplier of each role over time, one line per strategy; None if no strategy adapts its modules."""
    drawn = {tuned.strategy: lines_of(tuned.best.finished, "multiplier") for tuned in adaptive(finding) if tuned.best}
    roles = list(dict.fromkeys(role for lines in drawn.values() for role in lines))
    if not roles:
        return None
    figure, axes = new_figure(2.2, 1, len(roles), sharex=True, sharey=True, squeeze=False)
    axes = axes[0]
    for ax, role in zip(axes, roles, strict=True):
        for name, lines in drawn.items():
            by_step: dict[int, list[float]] = {}
            for step, value in (point for line in lines.get(role, []) for point in line):
                by_step.setdefault(step, []).append(value)
            points = thinned([(step, fmean(values)) for step, values in sorted(by_step.items())])
            ax.plot(*zip(*points, strict=True), **looks[name].line) if points else None
        ax.set_title(plain(role))
        ax.grid(True)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=3 if len(roles) > 4 else 4)
    _baselines(axes)
    axes[0].set_ylabel("Multiple of base decay,\nmean over depth")
    axes[len(axes) // 2].set_xlabel("Optimizer step")  # the figure's own label would overlap the legend
    legend_below(figure, looks, list(drawn), markers=False)
    return figure
