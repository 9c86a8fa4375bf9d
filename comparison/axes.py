"""What a grid's runs are spread over: the points of the search, and the combinations of its axes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comparison.grid_file import as_list, as_mapping
from comparison.remains import shown
from runtime.errors import UserError

MOST_CELLS = 10_000  # runs of a comparison

Options = Mapping[str, Any]
Point = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Search:
    """What every strategy is searched over."""

    points: Sequence[Point]
    joint: bool  # whether the points were listed, not combined from values

    def without(self, own: Options) -> list[Point]:
        """The points for a strategy that sets some of the options itself: the others' values; of listed points none."""
        left = [tuple((name, value) for name, value in point if name not in own) for point in self.points]
        if self.joint and left != list(self.points):
            return [()]
        return list({repr(point): point for point in left}.values())


def read_search(search: Any, where: str) -> Search:
    """A mapping is searched over all combinations of its values; a list holds the points themselves."""
    where = f"{where}: search"
    if isinstance(search, list):
        points = [tuple(as_mapping(point, where).items()) for point in as_list(search, where)]
        if len({frozenset(dict(point)) for point in points}) > 1 or not points[0]:
            raise UserError(f"{where}: {shown(search)}: every point must say the same options")
    else:
        axes = [[(n, v) for v in as_list(values, f"{where}: {n}")] for n, values in as_mapping(search, where).items()]
        points = _combined(axes, where)
    seen: set[str] = set()
    for point in points:
        if repr(point) in seen:
            raise UserError(f"{where}: {shown(dict(point))}: is there twice")
        seen.add(repr(point))
    return Search(points, isinstance(search, list))


def grid_points(grid: Mapping[str, Any], where: str) -> list[tuple[str, Options]]:
    """Label and options of each combination. An axis is an option with values, or labels with options."""
    axes: list[list[tuple[str, Options]]] = []
    for name, axis in as_mapping(grid, f"{where}: grid").items():
        place = f"{where}: grid: {name}"
        if isinstance(axis, Mapping) and axis:
            axes.append([(str(label), as_mapping(o, f"{place}: {label}")) for label, o in axis.items()])
        else:
            axes.append([(f"{name} {v}", {name: v}) for v in as_list(axis, place)])
    found: list[tuple[str, Options]] = []
    for combination in _combined(axes, f"{where}: grid"):
        options: dict[str, Any] = {}
        for _, each in combination:
            options |= each
        found.append((", ".join(label for label, _ in combination), options))
    return found


def _combined(axes: Sequence[Sequence[Any]], where: str) -> list[tuple[Any, ...]]:
    """All combinations of what is on the axes, if there are not too many."""
    count = math.prod(map(len, axes))
    if count > MOST_CELLS:
        raise UserError(f"{where}: has {shown(count)} combinations; a comparison may have {MOST_CELLS} runs in all")
    return list(itertools.product(*axes))
