"""Figures of what each module got: score and multiplier over time, by depth and role."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from alphadecay.baselines import ALL
from alphadecay.decay_log import Row, refreshes
from alphadecay.figures.drawing import DOUBLE, print_style, thinned
from comparison.findings import Finding
from comparison.looks import Looks, finite, legend_below, plain
from comparison.results import Run
from comparison.time_figures import best_runs
from comparison.tuning import Tuned

SCORES = {"adadecay": "gradient norm", "awd": "gradient norm / weight norm"}
Lines = dict[str, list[list[tuple[int, float]]]]  # by role, one a depth: (step, value)


def adaptive(finding: Finding) -> list[Tuned]:
    """Strategies whose modules have multipliers of their own at the best point."""
    runs = best_runs(finding)
    return [t for t in finding.tuned if t.strategy in runs and _differs(refreshes(runs[t.strategy][0].ledger))]


def _differs(rows: Sequence[Row]) -> bool:
    by_step: dict[int, set[float]] = {}
    for row in rows:
        if row["module"] != ALL:
            by_step.setdefault(row["step"], set()).add(row["multiplier"])
    return any(len(multipliers) > 1 for multipliers in by_step.values())


def score_name(tuned: Tuned) -> str:
    """What the ledger's score of a strategy is."""
    kind = str(tuned.options.get("decay"))
    return SCORES.get(kind) or str(tuned.options.get("decay_metric", "score")).replace("_", " ")


def lines_of(runs: Sequence[Run], key: str) -> Lines:
    """A column of the ledger, mean over seeds, by role and depth; depth is the order of modules within a role."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for run in runs:
        for row in refreshes(run.ledger):
            if row["module"] != ALL and finite(row[key]):
                by_step = found.setdefault(row["role"], {}).setdefault(row["module"], {})
                by_step.setdefault(row["step"], []).append(row[key])
    return {
        role: [[(step, fmean(values)) for step, values in by_step.items()] for by_step in modules.values()]
        for role, modules in found.items()
    }


@print_style()
def modules_over_time(tuned: Tuned) -> Any:
    """Score and multiplier of every module over time: a column a role, a line a depth."""
    from matplotlib.figure import Figure

    assert tuned.best is not None, "only strategies that have run are drawn"
    drawn = {key: lines_of(tuned.best.finished, key) for key in ("score", "multiplier")}
    drawn = {key: lines for key, lines in drawn.items() if lines}
    roles = list(drawn["multiplier"])
    depth = max(len(lines) for lines in drawn["multiplier"].values())
    figure = Figure(figsize=(DOUBLE, 0.9 + 1.35 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), len(roles), sharex=True, sharey="row", squeeze=False)
    colours = _depth_colours(depth)
    for row, (key, by_role) in enumerate(drawn.items()):
        for ax, role in zip(axes[row], roles, strict=True):
            for index, points in enumerate(by_role.get(role, [])):
                ax.plot(*zip(*thinned(points), strict=True), color=colours[index], lw=1.0)
            ax.grid(True)
            ax.xaxis.get_major_locator().set_params(integer=True, nbins=3 if len(roles) > 4 else 4)
        label = score_name(tuned) if key == "score" else "multiple of base decay"
        axes[row, 0].set_ylabel(label[:1].upper() + label[1:])
    for ax, role in zip(axes[0], roles, strict=True):
        ax.set_title(plain(role))
    _baselines(axes[list(drawn).index("multiplier")])
    figure.supxlabel("Optimizer step", fontsize=8)
    _depth_bar(figure, axes, colours)
    return figure


def _baselines(axes: Sequence[Any]) -> None:
    """The base decay itself, in every panel of multipliers."""
    for ax in axes:
        ax.axhline(1, color="0.5", lw=0.7, ls=(0, (2, 2)), zorder=0)


def _depth_colours(depth: int) -> list[Any]:
    """Dark to light with depth, in colours and in grey; the lightest is left out, as it is lost on paper."""
    from matplotlib import colormaps

    return [colormaps["cividis"](0.88 * i / max(1, depth - 1)) for i in range(depth)]


def _depth_bar(figure: Any, axes: Any, colours: Sequence[Any]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

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
    """Mean multiplier of each role over time, a line a strategy; None where no strategy has multipliers by module."""
    from matplotlib.figure import Figure

    found = {tuned.strategy: lines_of(tuned.best.finished, "multiplier") for tuned in adaptive(finding) if tuned.best}
    roles = list(dict.fromkeys(role for lines in found.values() for role in lines))
    if not roles:
        return None
    figure = Figure(figsize=(DOUBLE, 2.2), layout="constrained")
    axes = figure.subplots(1, len(roles), sharex=True, sharey=True, squeeze=False)[0]
    for ax, role in zip(axes, roles, strict=True):
        for name, lines in found.items():
            at: dict[int, list[float]] = {}
            for step, value in (point for points in lines.get(role, []) for point in points):
                at.setdefault(step, []).append(value)
            points = thinned([(step, fmean(values)) for step, values in sorted(at.items())])
            ax.plot(*zip(*points, strict=True), **looks[name].line) if points else None
        ax.set_title(plain(role))
        ax.grid(True)
        ax.xaxis.get_major_locator().set_params(integer=True, nbins=3 if len(roles) > 4 else 4)
    _baselines(axes)
    axes[0].set_ylabel("Multiple of base decay,\nmean over depth")
    axes[len(axes) // 2].set_xlabel("Optimizer step")  # a label of the figure would lie on the legend
    legend_below(figure, looks, list(found), markers=False)
    return figure
