"""Figures of a run's decay log: the scores of modules and their decay, over time and by depth. Needs matplotlib."""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

from alphadecay.decay_log import Row, refreshes
from alphadecay.figures.drawing import (
    DASHES,
    DOUBLE,
    MARKERS,
    SINGLE,
    draw_heat_map,
    grid_of,
    heat_map_size,
    print_style,
    say_instead,
    thinned,
)

FEW = 30  # most points of a line with markers
ALL_MODULES = "all modules"  # label for strategies with one decay for all modules, whose rows have no role


@print_style()
def decay_over_time(rows: Sequence[Row], score: str = "alpha") -> Any:
    """Mean score and mean decay of each role over optimizer steps; only the decay if the strategy has no scores.

    Args:
        rows: Lines of decay.jsonl.
        score: Name of the metric.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    rows = refreshes(rows)
    keys = [key for key in ("score", "weight_decay") if any(row[key] is not None for row in rows)]
    figure = Figure(figsize=(DOUBLE if len(keys) == 2 else DOUBLE * 0.66, 2.3), layout="constrained")
    axes = figure.subplots(1, max(1, len(keys)), squeeze=False)[0]
    if not keys:
        say_instead(axes[0], "the run refreshed no decay")
    title = "mean over depth" if any(row["role"] for row in rows) else ""
    for ax, key in zip(axes, keys, strict=False):
        _draw_means(ax, rows, key)
        ax.set(title=title, xlabel="optimizer step", ylabel=_label(score, key))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.ticklabel_format(axis="y", scilimits=(-3, 4))
        if len(steps := {row["step"] for row in rows}) == 1:
            ax.set_xticks(list(steps))
        ax.grid(True)
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1 or list(handles) == [ALL_MODULES]:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", handlelength=2.8)
    return figure


def _draw_means(ax: Any, rows: Sequence[Row], key: str) -> None:
    """One line per role, always with the same colour, dashes and marker for a role."""
    means: dict[str, dict[int, list[float]]] = {row["role"]: {} for row in rows}
    for row in rows:
        if row[key] is not None:
            means[row["role"]].setdefault(row["step"], []).append(row[key])
    for i, ((role, steps), marker, dash) in enumerate(zip(means.items(), cycle(MARKERS), cycle(DASHES), strict=False)):
        if not steps:
            continue
        points = thinned([(step, fmean(values)) for step, values in steps.items()])
        marked = {"marker": marker} if len(points) <= FEW else {}
        ax.plot(*zip(*points, strict=True), label=role or ALL_MODULES, color=f"C{i % 10}", ls=dash, **marked)


def _label(score: str, key: str) -> str:
    if key == "weight_decay":
        return "weight decay"
    return "alpha (small: heavy tail)" if score == "alpha" else score.replace("_", " ")


@print_style()
def decay_by_depth(rows: Sequence[Row], score: str = "alpha") -> Any:
    """Score and decay of every module at the last refresh, with a column per role and a row per depth.

    Only the decay is drawn if the strategy has no scores.

    Args:
        rows: Lines of decay.jsonl.
        score: Name of the metric.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    rows = refreshes(rows)
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    grids = {key: grid_of((row["role"] or ALL_MODULES, row[key]) for row in last) for key in ("score", "weight_decay")}
    drawn = {key: grid for key, grid in grids.items() if not grid.empty}
    if not drawn:
        figure = Figure(figsize=(SINGLE, 1.5), layout="constrained")
        say_instead(figure.subplots(), "no module has a decay of its own")
        return figure
    size = heat_map_size(grids["weight_decay"], maps=len(drawn))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for ax, (key, grid) in zip(axes, drawn.items(), strict=True):
        draw_heat_map(ax, grid, _label(score, key), scaled=True)
    figure.suptitle(f"step {last[0]['step']}", fontsize=8)
    return figure
