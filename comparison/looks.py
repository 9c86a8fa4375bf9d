"""Colours and markers of strategies, axes that clip outliers, saving of figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alphadecay.figures.drawing import DASHES, DOUBLE, MARKERS, print_style
from comparison.statistics import Interval, number, short
from runtime.errors import UserError
from runtime.strategies import STRATEGIES

DOTS_PER_INCH = 200
WIDTH_OF_LETTER = 0.055  # inches, in a legend


@dataclass(frozen=True)
class Look:
    """Colour, line style and marker of one strategy."""

    colour: str
    dash: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's arguments for a line without markers."""
        return {"color": self.colour, "ls": self.dash}

    @property
    def marked(self) -> dict[str, Any]:
        """Matplotlib's arguments for a line with markers."""
        return {**self.line, "marker": self.marker}


Looks = Mapping[str, Look]


def looks_of(strategies: Iterable[str]) -> Looks:
    """Looks by name. A strategy of STRATEGIES has its own colour; after 10, colours repeat with other dashes."""
    names = list(dict.fromkeys(strategies))
    own = {
        name: int(STRATEGIES[name].colour.removeprefix("C"))
        for name in names
        if name in STRATEGIES and STRATEGIES[name].colour
    }
    with print_style():  # colours by value: "C0" would depend on the palette when the figure is saved
        colours = rcParams["axes.prop_cycle"].by_key()["color"]
    free = cycle([i for i in range(len(colours)) if i not in own.values()])
    chosen = [colours[own[name] if name in own else next(free)] for name in names]
    return {name: Look(chosen[i], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def new_figure(height: float, *shape: int, **panels: Any) -> tuple[Any, Any]:
    """Create a figure as wide as a page; returns it and its panels."""
    figure = Figure(figsize=(DOUBLE, height), layout="constrained")
    return figure, figure.subplots(*shape, **panels)


def plain(text: str) -> str:
    """A name as matplotlib shall show it: $ starts no formula, and a leading underscore does not hide it in legends."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def capitalised(text: str) -> str:
    """The text with its first letter capital and all others unchanged."""
    return text[:1].upper() + text[1:]


def legend_below(figure: Any, looks: Looks, shown: Sequence[str], markers: bool = True) -> None:
    """Add a legend of the strategies shown, below the figure, with as many columns as fit."""
    if not shown:
        return
    handles = [Line2D([], [], **(looks[name].marked if markers else looks[name].line)) for name in shown]
    entry_width = 0.55 + WIDTH_OF_LETTER * max(map(len, shown))
    columns = max(1, min(len(shown), int(figure.get_size_inches()[0] / entry_width)))
    figure.legend(
        handles, [plain(name) for name in shown], loc="outside lower center", ncols=columns, handlelength=2.8,
        frameon=False,
    )  # fmt: skip


def dodged(index: int, count: int, width: float) -> float:
    """Shift of the index-th of `count` marks at one place, so that all of them spread over `width`."""
    return 0.0 if count < 2 else width * (index / (count - 1) - 0.5)


def finite(value: Any) -> bool:
    """Whether the value is a finite number, which can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def save(figure: Any, folder: Path, name: str) -> None:
    """Save a figure as PNG and SVG, always with the same bytes; UserError if a file cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"{folder / name}: cannot be written: {error}") from error


FAR = 8.0  # multiple of the median distance beyond which a value is drawn at the margin
CLOSE = 0.12  # share of an axis; two labels closer than this would touch


def clipped_limits(spans: Sequence[Interval], centre: float, higher_is_better: bool) -> Interval | None:
    """Axis limits that cut off outliers on the worse side; None if there are no outliers."""
    distances = [max(abs(low - centre), abs(high - centre)) for low, high in spans]
    good = [(low + high > 2 * centre) == higher_is_better for low, high in spans]
    positive = [distance for distance in distances if distance > 0]
    if not positive:
        return None
    far = max([FAR * median(positive), *(d for d, is_good in zip(distances, good, strict=True) if is_good)])
    if max(positive) <= far:
        return None
    kept = [span for span, distance in zip(spans, distances, strict=True) if distance <= far]
    low, high = min([centre, *(span[0] for span in kept)]), max([centre, *(span[1] for span in kept)])
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def margin_arrow(ax: Any, value: float, row: float, colour: str) -> None:
    """Draw an arrow at the margin of a horizontal axis that ends before the value, and write the value beside it."""
    low, high = ax.get_xlim()
    right = value > high
    ax.plot([high if right else low], [row], marker=">" if right else "<", color=colour, ms=5, clip_on=False, zorder=5)
    ax.annotate(
        number(value, 3), (high if right else low, row), (-6 if right else 6, 0), textcoords="offset points",
        fontsize=7, ha="right" if right else "left", va="center", color="0.25",
    )  # fmt: skip


def decay_axis(ax: Any, decays: Sequence[float], exact: bool) -> float:
    """Set up a logarithmic axis for these decays, with a position for 0 at its left; returns that position.

    If `exact`, and there are at most 8 decays, ticks are at the decays themselves.
    """
    positive = sorted({decay for decay in decays if decay > 0}) or [1.0]
    low, high = positive[0], positive[-1]
    ax.set_xscale("log")
    apart = max(3.0, (high / low) ** 0.25)
    zero = low / apart
    ticks = positive if exact and len(positive) <= 8 else _powers(low, high)
    margin = max(1.3, (high / low) ** 0.06)
    ax.set_xlim((zero if 0 in decays else low) / margin, high * margin)
    labels = _labels(ticks, ax.get_xlim())
    if 0 in decays:
        ax.axvline(low / apart**0.5, color="0.6", lw=0.8, ls=(0, (2, 2)))
        ticks, labels = [zero, *ticks], ["0", *labels]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())
    return zero


def _labels(ticks: Sequence[float], limits: Interval) -> list[str]:
    """One label per tick; empty for a tick too close to the last tick with a label."""
    labels: list[str] = []
    last = 0.0
    for tick in ticks:
        far = not last or log10(tick / last) > CLOSE * log10(limits[1] / limits[0])
        labels.append(short(tick) if far else "")
        last = tick if far else last
    return labels


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; over wide ranges only 1 and 3 times, or powers of ten alone."""
    factors = (1,) if high > 300 * low else (1, 3) if high > 20 * low else (1, 2, 5)
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.95 <= tick <= high * 1.05] or [low]
