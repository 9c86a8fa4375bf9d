"""The look of figures: print size, colours that are distinct for colour-blind readers and in grey, heat maps."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

SINGLE, DOUBLE, TALLEST = 3.3, 6.9, 9.0  # inches: widths of one and two columns of a paper, height of a page
PALETTE = "petroff10"
ALPHA = r"$\alpha$"
PRINT = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}
MARKERS = "osD^vP*X"  # markers and dashes distinguish lines without colour
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
NUMBER_HEIGHT, NUMBER_WIDTH = 0.12, 0.29  # smallest cell, in inches, for a number of four digits


@contextmanager
def print_style() -> Iterator[None]:
    """Draw in print size within this context or decorator, then restore the user's style."""
    from matplotlib import style

    with style.context([PALETTE, PRINT]):
        yield


@dataclass(frozen=True)
class DepthByRole:
    """Values of modules by depth and role."""

    roles: Sequence[str]
    values: np.ndarray  # shape (depth, roles); nan if a role has no module at this depth, or the module has no value

    @property
    def empty(self) -> bool:
        """Whether there are no values."""
        return not np.isfinite(self.values).any()


def grid_of(values: Iterable[tuple[str, float | None]]) -> DepthByRole:
    """A grid with the n-th value of each role in row n; roles are in the order of their first values.

    Args:
        values: (role, value) of each module, shallow to deep.
    """
    columns: dict[str, list[float]] = {}
    for role, value in values:
        columns.setdefault(role, []).append(np.nan if value is None else value)
    grid = np.full((max(map(len, columns.values()), default=0), len(columns)), np.nan)
    for j, column in enumerate(columns.values()):
        grid[: len(column), j] = column
    return DepthByRole(list(columns), grid)


def heat_map_size(grid: DepthByRole, maps: int = 1) -> tuple[float, float]:
    """Width and height in inches of a figure with `maps` heat maps of this grid's shape side by side."""
    width = maps * (1.35 + 0.42 * len(grid.roles))
    return min(DOUBLE, max(2.2, width)), min(TALLEST, max(1.5, 1.15 + 0.17 * len(grid.values)))


def draw_heat_map(ax: Any, grid: DepthByRole, label: str, diverging: bool = False, scaled: bool = False) -> None:
    """Draw a cell for each value, with depth downwards and roles to the right, and a colour bar.

    The cells contain their values as numbers if these fit.

    Args:
        ax: Axes of a figure of size `heat_map_size`.
        grid: The values.
        label: Of the colour bar.
        diverging: Centre the colours at 0.
        scaled: Divide small or large values by a power of ten, which is added to the label.
    """
    from matplotlib import colormaps

    factor, power = _power_of_ten(grid.values) if scaled else (1.0, "")
    values, label = grid.values / factor, f"{label} ({power})" if power else label
    most = float(np.nanmax(np.abs(values))) if not grid.empty else 1.0
    limits = {"vmin": -most or -1.0, "vmax": most or 1.0} if diverging else {}
    colours = colormaps["PuOr" if diverging else "cividis"].with_extremes(bad="0.92")
    image = ax.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=colours, interpolation="nearest", **limits)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value) and _numbers_fit(ax, grid):
            red, green, blue, _ = colours(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:+.2f}" if diverging else f"{value:.2f}"
            text = text.replace("+0.00", "0.00").replace("-0.00", "0.00")
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    long = max(map(len, grid.roles), default=0) > 4
    ax.set_xticks(range(len(grid.roles)), grid.roles, rotation=40 if long else 0, ha="right" if long else "center")
    ax.tick_params(axis="x", length=0, pad=2)
    depth = len(values)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("depth (n-th of its role)" if depth > 4 else "depth")
    if depth == 1:
        ax.set(yticks=[], ylabel="")
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.08, pad=0.02)


def _numbers_fit(ax: Any, grid: DepthByRole) -> bool:
    width, height = ax.figure.get_size_inches()
    maps = sum(other.get_subplotspec() is not None for other in ax.figure.axes if other.get_label() != "<colorbar>")
    depth, roles = grid.values.shape
    return (height - 1.0) / depth >= NUMBER_HEIGHT and (width / max(1, maps) - 1.3) / roles >= NUMBER_WIDTH


def _power_of_ten(values: np.ndarray) -> tuple[float, str]:
    """A power of ten to divide small or large values by, and its text; 1 and "" for other values."""
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    if most == 0 or 0.5 <= most < 1000:
        return 1.0, ""
    exponent = int(np.floor(np.log10(most)))
    return 10.0**exponent, f"$10^{{{exponent}}}$"


def label_log_axis(axis: Any, low: float, high: float) -> None:
    """Set labels that do not overlap: powers of ten for wide ranges, else also 2 and 5 (or 3) times these."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_minor_formatter(NullFormatter())
    if high < 60 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 15 * low else (1.0, 3.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axis.set_major_locator(LogLocator(numticks=5))


def say_instead(ax: Any, text: str) -> None:
    """Show a text in a panel that has nothing to draw."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_facecolor("0.96")
    ax.text(0.5, 0.5, text, ha="center", va="center", color="0.35", fontsize=7, transform=ax.transAxes, wrap=True)


def thinned(points: Sequence[Any], most: int = 400) -> Sequence[Any]:
    """About `most` points, evenly spaced and with the last one: print cannot show more."""
    every = -(-len(points) // most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
