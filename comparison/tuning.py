"""The points of the search that each strategy was run at, and the one at which it does best."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from comparison.cells import Setting
from comparison.results import FINISHED, Run

DIVERGED, NO_FIGURE = "diverged", "without figure"  # states besides those of results.py


def state_of(run: Run) -> str:
    """The run's state; of failed ones whether it diverged, of finished ones whether they have no finite figure."""
    if run.state == FINISHED and run.value is None:
        return NO_FIGURE
    return DIVERGED if run.diverged else run.state


@dataclass(frozen=True)
class Point:
    """A strategy at one point of the search: its runs over the seeds."""

    runs: Sequence[Run]

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.runs[0].cell.strategy

    @property
    def name(self) -> str:
        """Such as "weight_decay=0.1"; "-" for a strategy that is not searched."""
        return self.runs[0].cell.point_name

    @property
    def weight_decay(self) -> float:
        """The base decay."""
        return self.runs[0].cell.weight_decay

    @property
    def published(self) -> float | None:
        """The figure that a paper gives for it."""
        return self.runs[0].cell.published

    @cached_property
    def finished(self) -> list[Run]:
        """Those that have a figure."""
        return [run for run in self.runs if run.value is not None]

    @cached_property
    def values(self) -> Mapping[int, float]:
        """The metric by seed, of finished runs."""
        return {run.cell.seed: value for run in self.runs if (value := run.value) is not None}

    @property
    def complete(self) -> bool:
        """Whether all planned seeds have finished."""
        return len(self.values) == len(self.runs)

    @property
    def states(self) -> Mapping[str, int]:
        """How many runs are in each state."""
        return Counter(map(state_of, self.runs))

    @property
    def mean(self) -> float | None:
        """Over seeds; None without a finished run."""
        return fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Over seeds, of a sample (n - 1); None with fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @cached_property
    def mean_decay(self) -> float | None:
        """Mean applied decay over the finished runs."""
        return mean_of([run.mean_decay for run in self.finished])

    def option(self, name: str) -> float | None:
        """A searched option as a number; None if it is not searched or no number."""
        try:
            return float(dict(self.runs[0].cell.point)[name])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Edge:
    """A searched option whose best value is the smallest or largest searched one."""

    option: str
    value: float
    largest: bool


@dataclass(frozen=True)
class Tuned:
    """A strategy, all points it was run at, and the best of them."""

    strategy: str
    points: Sequence[Point]
    best: Point | None  # None: no run has finished
    edges: Sequence[Edge]

    @property
    def complete(self) -> bool:
        """Whether every run of every point has finished."""
        return all(point.complete for point in self.points)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """All options as the trainer resolves them, at the best point (or the first one)."""
        cell = (self.best or self.points[0]).runs[0].cell
        return cell.setting.program.read_options(cell.words()).flat()


def tune(setting: Setting, runs: Sequence[Run]) -> list[Tuned]:
    """Each strategy of a setting at its best point: that with the best mean over seeds among the complete ones.

    Where no point is complete, the best mean among what is there.
    """
    by_strategy: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_strategy.setdefault(run.cell.strategy, {}).setdefault(run.cell.point_name, []).append(run)
    found = []
    for strategy, by_point in by_strategy.items():
        points = [Point(of_point) for of_point in by_point.values()]
        best = _best(points, setting)
        found.append(Tuned(strategy, points, best, _edges(best, points, setting) if best else ()))
    return found


def _best(points: Sequence[Point], setting: Setting) -> Point | None:
    """The first one of those with the best mean."""
    at_hand = [p for p in points if p.complete] or [p for p in points if p.values]
    sign = -1 if setting.metric.higher_is_better else 1
    return min(at_hand, key=lambda point: sign * (point.mean or 0.0), default=None)


def _edges(best: Point, points: Sequence[Point], setting: Setting) -> list[Edge]:
    edges = []
    for option in setting.searched:
        searched = sorted({value for point in points if (value := point.option(option)) is not None})
        value = best.option(option)
        if value is not None and len(searched) > 1 and value in (searched[0], searched[-1]):
            edges.append(Edge(option, value, value == searched[-1]))
    return edges


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the finite values; None if there is none."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(there) if there else None
