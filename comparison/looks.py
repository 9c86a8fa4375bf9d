"""How strategies look in all figures of a comparison: each has one colour, dash and marker throughout."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay.figures.drawing import DASHES, MARKERS, print_style
from runtime.errors import UserError

DOTS_PER_INCH = 200
WIDTH_OF_LETTER = 0.055  # inches, of a legend's text


@dataclass(frozen=True)
class Look:
    """Of one strategy."""

    colour: str
    dash: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """For a line without markers."""
        return {"color": self.colour, "ls": self.dash}

    @property
    def marked(self) -> dict[str, Any]:
        """For a line with markers."""
        return {**self.line, "marker": self.marker}


Looks = Mapping[str, Look]


def looks_of(strategies: Iterable[str]) -> Looks:
    """Looks by strategy; colours come again after 10, with other dashes and markers."""
    from matplotlib import rcParams

    with print_style():  # by value, as a "C0" would take the palette that holds when the figure is saved
        colours = rcParams["axes.prop_cycle"].by_key()["color"]
    return {
        name: Look(colours[i % len(colours)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(strategies))
    }


def plain(text: str) -> str:
    """A name as matplotlib shows it: no formulas; a leading underscore would hide it from legends."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def capitalised(text: str) -> str:
    """With a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def legend_below(figure: Any, looks: Looks, shown: Sequence[str], markers: bool = True) -> None:
    """Name the strategies that are shown, in as many columns as fit below the figure."""
    from matplotlib.lines import Line2D

    if not shown:
        return
    handles = [Line2D([], [], **(looks[name].marked if markers else looks[name].line)) for name in shown]
    each = 0.55 + WIDTH_OF_LETTER * max(map(len, shown))
    columns = max(1, min(len(shown), int(figure.get_size_inches()[0] / each)))
    figure.legend(
        handles, [plain(name) for name in shown], loc="outside lower center", ncols=columns, handlelength=2.8,
        frameon=False,
    )  # fmt: skip


def dodged(index: int, count: int, width: float) -> float:
    """Shift of the index-th of so many marks at one place, all of them together as wide as `width`."""
    return 0.0 if count < 2 else width * (index / (count - 1) - 0.5)


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def save(figure: Any, folder: Path, name: str) -> None:
    """As PNG and SVG; the same figure gives the same bytes.

    Raises:
        UserError: If a file cannot be written.
    """
    from matplotlib import rc_context

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    except OSError as error:
        raise UserError(f"{folder / name}: cannot be written: {error}") from error
