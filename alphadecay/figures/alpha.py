"""Figures of alpha: by depth and role, by role, and its difference between two models. Needs matplotlib."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from alphadecay.figures.drawing import (
    ALPHA,
    DOUBLE,
    SINGLE,
    DepthByRole,
    draw_heat_map,
    grid_of,
    heat_map_size,
    print_style,
    say_instead,
)
from alphadecay.record import SpectrumRecord

ENDS = ("stem", "head")  # notes of modules that are in no block, whatever their role


@print_style()
def alpha_by_depth(records: Sequence[SpectrumRecord]) -> Any:
    """Alpha of every module, with a column per role and a row per depth; grey: no alpha.

    Args:
        records: Of one model, in its order; roles without any alpha are left out.

    Returns:
        A matplotlib figure.
    """
    return _alpha_map(_alpha_grid(records, {r.name: r.alpha for r in records}), ALPHA)


@print_style()
def alpha_change(records: Sequence[SpectrumRecord], other: Sequence[SpectrumRecord], label: str) -> Any:
    """Alpha of each module minus its alpha in another model, so that the effect of a matrix' shape on alpha cancels.

    Args:
        records, other: Of two models with the same modules.
        label: Name of the other model, such as "best_ema".

    Returns:
        A matplotlib figure.
    """
    grid = _alpha_grid(records, alpha_changes(records, other))
    return _alpha_map(grid, f"change of {ALPHA} from {label}", diverging=True)


def alpha_changes(records: Sequence[SpectrumRecord], other: Sequence[SpectrumRecord]) -> dict[str, float | None]:
    """Alpha minus the other alpha, by module; None if one of them is missing."""
    before = {r.name: r.alpha for r in other}
    return {
        r.name: None if r.alpha is None or (alpha := before.get(r.name)) is None else r.alpha - alpha for r in records
    }


def _alpha_grid(records: Sequence[SpectrumRecord], values: dict[str, float | None]) -> DepthByRole:
    drawn = {r.role for r in records if values[r.name] is not None}
    return grid_of((r.role, values[r.name]) for r in records if r.role in drawn and r.note not in ENDS)


def _alpha_map(grid: DepthByRole, label: str, diverging: bool = False) -> Any:
    from matplotlib.figure import Figure

    if grid.empty:
        figure = Figure(figsize=(SINGLE, 1.5), layout="constrained")
        say_instead(figure.subplots(), "no module has an alpha")
        return figure
    figure = Figure(figsize=heat_map_size(grid), layout="constrained")
    draw_heat_map(figure.subplots(), grid, label, diverging=diverging)
    return figure


@print_style()
def alpha_by_role(sets: dict[str, Sequence[SpectrumRecord]]) -> Any:
    """Mean alpha of each role, with small dashes for the alphas of its modules, for one or more models side by side.

    Args:
        sets: The records of each model, by its label.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    roles = list(dict.fromkeys(r.role for records in sets.values() for r in records if r.alpha is not None))
    width = min(DOUBLE, max(SINGLE, 0.8 + 0.42 * len(roles)))
    figure = Figure(figsize=(width, 2.3), layout="constrained")
    ax = figure.subplots()
    if not roles:
        say_instead(ax, "no module has an alpha")
        return figure
    for i, (label, records) in enumerate(sets.items()):
        shift = 0.3 * (i - (len(sets) - 1) / 2)
        members = [[r.alpha for r in records if r.role == role and r.alpha is not None] for role in roles]
        x = np.concatenate([np.full(len(alphas), j + shift) for j, alphas in enumerate(members)])
        ax.plot(x + 0.11, [a for alphas in members for a in alphas], "_", color="0.35", ms=5, mew=0.6)
        means = [fmean(alphas) if alphas else np.nan for alphas in members]
        ax.plot(np.arange(len(roles)) + shift, means, "Ds"[i % 2], color=f"C{i}", mec="black", mew=0.5, label=label)
    ax.set_xticks(range(len(roles)), roles, rotation=30, ha="right")
    ax.set(ylabel=rf"{ALPHA}, modules and mean", xlim=(-0.6, len(roles) - 0.4))
    ax.grid(True, axis="y")
    if len(sets) > 1:
        figure.legend(loc="outside upper center", ncols=2)
    return figure
