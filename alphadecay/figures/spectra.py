"""Figures of spectra: one panel per module, or one panel per role with all depths. Needs matplotlib."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from alphadecay.figures.drawing import ALPHA, DOUBLE, label_log_axis, print_style
from alphadecay.record import Spectrum, SpectrumRecord

PAGE_COLUMNS, PAGE_LINES = 4, 6  # panels of a page
PER_PAGE = PAGE_COLUMNS * PAGE_LINES
BINS = 30
LOWEST_SHARE = 0.02  # share of the smallest eigenvalues that is not drawn
SMALLEST = 1e-6  # times the largest eigenvalue: smaller ones are not drawn


@print_style()
def spectra_by_role(spectra: Sequence[Spectrum]) -> Any:
    """Eigenvalue spectra of each role's modules, shallow to deep, with their fitted tails in black.

    The curves are the share of eigenvalues above x on logarithmic axes, where a power law is a straight line. The
    smallest 2 % of each spectrum are not drawn.

    Args:
        spectra: At least one, in the model's order.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    roles = by_role(spectra)
    columns = 3 if len(roles) in (5, 6, 9) else min(4, len(roles))
    lines = -(-len(roles) // columns)
    figure = Figure(figsize=(min(DOUBLE, 1.0 + 1.9 * columns), 0.25 + 1.65 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for ax, (role, members) in zip(axes.flat, roles.items(), strict=False):
        for i, spectrum in enumerate(members):
            _draw_shares_above(ax, spectrum, _depth_colour(i, len(members)))
        ax.set(title=role, xscale="log", yscale="log", xlabel="eigenvalue")
        label_log_axis(ax.xaxis, *_drawn_range(members))
        ax.grid(True)
    for ax in list(axes.flat)[len(roles) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("share above")
    if (depth := max(map(len, roles.values()))) > 1:
        _add_depth_bar(figure, axes, depth)
    return figure


def by_role(spectra: Sequence[Spectrum]) -> dict[str, list[Spectrum]]:
    """The spectra of each role, in their order."""
    roles: dict[str, list[Spectrum]] = {}
    for spectrum in spectra:
        roles.setdefault(spectrum[0].role, []).append(spectrum)
    return roles


def _depth_colour(place: int, depth: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * place / max(1, depth - 1))


def _add_depth_bar(figure: Any, axes: Any, depth: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap([_depth_colour(i, depth) for i in range(depth)])
    scale = ScalarMappable(Normalize(-0.5, depth - 0.5), colours)
    bar = figure.colorbar(scale, ax=axes, label="depth (n-th of its role)", fraction=0.05, pad=0.01)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)


def _lowest_drawn(eigs: np.ndarray) -> float:
    positive = eigs[eigs > SMALLEST * eigs[-1]]
    return float(np.quantile(positive, LOWEST_SHARE)) if len(positive) else np.inf


def _drawn_range(spectra: Sequence[Spectrum]) -> tuple[float, float]:
    """The smallest and the largest eigenvalue that are drawn; zero matrices have none."""
    lowest = [_lowest_drawn(eigs) for _, eigs in spectra if eigs[-1] > 0]
    return min(lowest, default=1.0), max((eigs[-1] for _, eigs in spectra if eigs[-1] > 0), default=1.0)


def _draw_shares_above(ax: Any, spectrum: Spectrum, colour: Any) -> None:
    record, eigs = spectrum
    shares = 1 - np.arange(len(eigs)) / len(eigs)
    shown = eigs >= _lowest_drawn(eigs)
    ax.plot(eigs[shown], shares[shown], color=colour, lw=1.0)
    if record.alpha is not None and record.xmin is not None:
        ends = np.array([record.xmin, eigs[-1]])
        share = np.mean(eigs >= record.xmin)
        ax.plot(ends, share * (ends / record.xmin) ** (1 - record.alpha), color="black", lw=0.5, ls="--")


@print_style()
def spectra_of_role(spectra: Sequence[Spectrum]) -> list[Any]:
    """Pages with a panel per module: the density of its eigenvalues, the fitted power law, and where it starts.

    All panels of a page have the same axes; alpha and its standard error are above each panel.

    Args:
        spectra: Of modules of one role, shallow to deep.

    Returns:
        Matplotlib figures.
    """
    return [page_of_role(spectra, page) for page in range(1, page_count(spectra) + 1)]


def page_count(spectra: Sequence[Spectrum]) -> int:
    """Number of pages for the modules of a role."""
    return -(-len(spectra) // PER_PAGE)


@print_style()
def page_of_role(spectra: Sequence[Spectrum], page: int) -> Any:
    """One page of `spectra_of_role`, counted from 1."""
    from matplotlib.figure import Figure

    shown = spectra[(page - 1) * PER_PAGE : page * PER_PAGE]
    columns = min(PAGE_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    size = (min(DOUBLE, 0.6 + 1.9 * columns), 0.75 + 1.3 * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    drawn = [_draw_density(ax, spectrum) for ax, spectrum in zip(panels, shown, strict=False)]
    _share_axes(panels, columns, [heights for heights in drawn if heights], _drawn_range(spectra))
    figure.supxlabel("eigenvalue", fontsize=8)
    figure.supylabel("density", fontsize=8)
    figure.suptitle(_page_title(spectra, page), fontsize=8)
    return figure


def _share_axes(
    panels: Sequence[Any], columns: int, heights: Sequence[tuple[float, float]], drawn: tuple[float, float]
) -> None:
    """Set the same logarithmic axes for all panels, with labels at the lowest panel of each column."""
    for ax in panels:
        ax.set(xscale="log", yscale="log", xlim=(drawn[0] / 1.15, drawn[1] * 1.15))
        if heights:
            ax.set_ylim(min(low for low, _ in heights) / 3, max(high for _, high in heights) * 3)
        label_log_axis(ax.xaxis, *drawn)
        label_log_axis(ax.yaxis, *(ax.get_ylim()))
    used = [ax for ax in panels if ax.get_title()]
    for ax in panels[len(used) :]:
        ax.set_visible(False)
    for ax in used[-columns:]:
        ax.xaxis.set_tick_params(which="both", labelbottom=True)


def _page_title(spectra: Sequence[Spectrum], page: int) -> str:
    title, pages = rf"{spectra[0][0].role}: {ALPHA} $\pm$ standard error", page_count(spectra)
    return title if pages == 1 else f"{title} (page {page} of {pages})"


def _draw_density(ax: Any, spectrum: Spectrum) -> tuple[float, float] | None:
    """Draw one panel; returns the lowest and highest density above zero, if there is any."""
    record, eigs = spectrum
    ax.set_title(_panel_title(record), fontsize=7, pad=3)
    lowest = _lowest_drawn(eigs)
    if not lowest < eigs[-1]:
        ax.text(0.5, 0.5, _wrapped(record.note), ha="center", va="center", fontsize=6, transform=ax.transAxes)
        return None
    edges = np.geomspace(lowest, eigs[-1], BINS + 1)
    counts, _ = np.histogram(eigs, edges)
    density = counts / np.diff(edges) / len(eigs)
    ax.stairs(np.where(counts, density, np.nan), edges, fill=True, color="C0", alpha=0.55, lw=0)
    if record.alpha is not None and record.xmin is not None:
        x = np.array([record.xmin, eigs[-1]])
        height = np.mean(eigs >= record.xmin) * (record.alpha - 1) / record.xmin
        ax.plot(x, height * (x / record.xmin) ** -record.alpha, color="black", lw=1.0)
        ax.axvline(record.xmin, color="black", lw=0.6, ls=":")
    if record.note:
        ax.text(0.04, 0.95, _wrapped(record.note), va="top", fontsize=6, transform=ax.transAxes)
    return density[counts > 0].min(), density.max()


def _wrapped(note: str) -> str:
    return fill(note, 26)


def _panel_title(record: SpectrumRecord) -> str:
    """The block, such as layers.0.blocks.1, and alpha with its standard error."""
    parts = record.name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    name = ".".join(parts[max(0, numbers[0] - 1) : numbers[-1] + 1]) if numbers else record.name
    if record.alpha is None or record.alpha_error is None:
        return name
    return rf"{name}: {record.alpha:.2f} $\pm$ {record.alpha_error:.2f}"
