"""Figures of the method: decay over time and depth, and spectra with their fitted tails. Needs matplotlib."""

from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn

from alphadecay.analysis import Measuring, fitted_spectrum
from alphadecay.ledger import Row, refreshes
from alphadecay.matrices import Matrix, find_matrices

WHOLE = Measuring()
PALETTE = "petroff10"  # told apart by colour-blind readers too
MARKERS = "osD^vP*X"  # and on paper without colour


def decay_over_time(rows: Sequence[Row]) -> Any:
    """Mean alpha and mean decay of each role over optimizer steps.

    Args:
        rows: Lines of decay.jsonl.

    Returns:
        A matplotlib figure.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    rows = refreshes(rows)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    with style.context(PALETTE):
        axes = figure.subplots(1, 2)
    for ax, key in zip(axes, ("score", "weight_decay"), strict=True):
        values: dict[str, dict[int, list[float]]] = {role: {} for role in _roles(rows)}
        for row in rows:
            if row[key] is not None:
                values[row["role"]].setdefault(row["step"], []).append(row[key])
        for marker, (role, at) in zip(cycle(MARKERS), values.items(), strict=False):
            if at:
                ax.plot(list(at), [fmean(each) for each in at.values()], label=role, marker=marker, markersize=4)
    axes[0].set(title="alpha, mean over depth", xlabel="optimizer step", ylabel="alpha (small: heavy tail)")
    axes[1].set(title="weight decay, mean over depth", xlabel="optimizer step", ylabel="weight decay")
    for ax in axes:
        ax.grid(alpha=0.3)
        if not ax.lines:
            ax.text(
                0.5,
                0.5,
                "this kind of decay\nmeasures none",
                ha="center",
                va="center",
                transform=ax.transAxes,
            )
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    return figure


def decay_by_depth(rows: Sequence[Row]) -> Any:
    """Alpha and decay of every module at the last refresh, roles across and depth downwards.

    Args:
        rows: Lines of decay.jsonl.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    rows = refreshes(rows)
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    roles = _roles(last)
    columns = {role: [row for row in last if row["role"] == role] for role in roles}
    depth = max(len(column) for column in columns.values())
    figure = Figure(figsize=(2.5 + 1.6 * len(roles), 1.8 + 0.3 * depth), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, key, title in zip(axes, ("score", "weight_decay"), ("alpha", "weight decay"), strict=True):
        grid = np.full((depth, len(roles)), np.nan)
        for j, role in enumerate(roles):
            for i, row in enumerate(columns[role]):
                grid[i, j] = np.nan if row[key] is None else row[key]
        image = ax.imshow(grid, aspect="auto", cmap="cividis")
        _write_cells(ax, grid)
        ax.set_xticks(range(len(roles)), roles, rotation=30, ha="right")
        ax.set(title=f"{title} at step {last[0]['step']}", ylabel="depth (n-th module of its role)")
        figure.colorbar(image, ax=ax)
    return figure


def spectra(
    model: nn.Module, measuring: Measuring = WHOLE, exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> Any:
    """Eigenvalue spectra of each role's modules, shallow to deep, with their fitted tails in black.

    Shown is the share of eigenvalues above x, on logarithmic axes: a power law is a straight line there.

    Args:
        model: Any module, wrapped or not.
        measuring: Fit and windows; with windows their pooled spectrum is shown.
        exclude, include: As in `alphadecay.analyze`.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: If no matrix takes part.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    by_role: dict[str, list[Matrix]] = {}
    for matrix in find_matrices(model, exclude, include=include):
        if not matrix.reason:
            by_role.setdefault(matrix.role, []).append(matrix)
    if not by_role:
        raise ValueError(f"no weight matrix of {type(model).__name__} takes part")
    columns = min(4, len(by_role))
    lines = -(-len(by_role) // columns)
    figure = Figure(figsize=(2.8 * columns + 0.9, 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    colours = colormaps["viridis"]
    for ax, (role, matrices) in zip(axes.flat, by_role.items(), strict=False):
        for i, matrix in enumerate(matrices):
            _draw_spectrum(ax, matrix, measuring, colours(0.9 * i / max(1, len(matrices) - 1)))
        ax.set(title=role, xscale="log", yscale="log", xlabel="eigenvalue", ylabel="share above")
    for ax in list(axes.flat)[len(by_role) :]:
        ax.set_visible(False)
    scale = ScalarMappable(Normalize(0, 1 / 0.9), colours)
    bar = figure.colorbar(scale, ax=axes, label="depth", boundaries=np.linspace(0, 1, 64), ticks=[0, 1])
    bar.ax.set_yticklabels(["first", "last"])
    return figure


def _draw_spectrum(ax: Any, matrix: Matrix, measuring: Measuring, colour: Any) -> None:
    eigs, tail, _ = fitted_spectrum(matrix.weight, measuring, measuring.window_of(matrix))
    shares = 1 - np.arange(len(eigs)) / len(eigs)
    shown = eigs > 1e-6 * eigs[-1]
    ax.plot(eigs[shown], shares[shown], color=colour, lw=1.4)
    if tail is not None:
        ends = np.array([tail.xmin, eigs[-1]])
        share = tail.count / len(eigs)
        ax.plot(ends, share * (ends / tail.xmin) ** (1 - tail.alpha), color="black", lw=0.7, ls="--")


def _write_cells(ax: Any, grid: np.ndarray) -> None:
    """The numbers in the cells, light on dark and dark on light."""
    middle = np.nanmean([np.nanmin(grid), np.nanmax(grid)]) if np.isfinite(grid).any() else 0
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            ax.text(
                j,
                i,
                f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < middle else "black",
            )


def _roles(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["role"] for row in rows))
