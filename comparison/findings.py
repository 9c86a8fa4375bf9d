"""What is found in each setting: each strategy at its best point, tuned against tuned, and at equal base decay."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from comparison.grid import Grid
from comparison.programs import Setting
from comparison.results import FINISHED, Run
from comparison.statistics import BETTER, Comparison, Paired, compare_all, decimals_for, paired

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
        return self.runs[0].spec.strategy

    @property
    def name(self) -> str:
        """Such as "weight_decay=0.1"; "-" for a strategy that is not searched."""
        return self.runs[0].spec.point_name

    @property
    def weight_decay(self) -> float:
        """The base decay."""
        return self.runs[0].spec.weight_decay

    @property
    def published(self) -> float | None:
        """The figure that a paper gives for it."""
        return self.runs[0].spec.published

    @cached_property
    def finished(self) -> list[Run]:
        """Those that have a figure."""
        return [run for run in self.runs if run.value is not None]

    @cached_property
    def values(self) -> Mapping[int, float]:
        """The metric by seed, of finished runs."""
        return {run.spec.seed: value for run in self.runs if (value := run.value) is not None}

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
            return float(dict(self.runs[0].spec.point)[name])
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
        spec = (self.best or self.points[0]).runs[0].spec
        return spec.setting.program.read_options(spec.words()).flat()


def tune(setting: Setting, runs: Sequence[Run]) -> list[Tuned]:
    """Each strategy of a setting at its best point: that with the best mean over seeds among the complete ones.

    Where no point is complete, the best mean among what is there.
    """
    by_strategy: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_strategy.setdefault(run.spec.strategy, {}).setdefault(run.spec.point_name, []).append(run)
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


@dataclass(frozen=True)
class Equal:
    """A strategy and the baseline at the same point of the search."""

    point: Point
    baseline: Point
    paired: Paired


@dataclass(frozen=True)
class Finding:
    """One setting: its strategies, and the family of comparisons between them at their best points."""

    setting: Setting
    runs: Sequence[Run]
    tuned: Sequence[Tuned]
    comparisons: Sequence[Comparison]  # with the baseline, in the order of strategies, then the contrasts
    equal: Sequence[Equal]

    def of(self, strategy: str) -> Tuned:
        """A strategy by its name."""
        return next(each for each in self.tuned if each.strategy == strategy)

    @property
    def baseline(self) -> Tuned:
        """The strategy that the others are compared with."""
        return self.of(self.setting.baseline)

    @cached_property
    def with_baseline(self) -> dict[str, Comparison]:
        """By strategy, its comparison with the baseline."""
        return {c.paired.first: c for c in self.comparisons if c.paired.second == self.setting.baseline}

    @property
    def contrasts(self) -> list[Comparison]:
        """Comparisons of which none is the baseline."""
        return [c for c in self.comparisons if c.paired.second != self.setting.baseline]

    def between(self, first: str, second: str) -> Comparison | None:
        """The comparison of two strategies, if it is one of the family in this order."""
        pair = (first, second)
        return next((c for c in self.comparisons if (c.paired.first, c.paired.second) == pair), None)

    @cached_property
    def decimals(self) -> int:
        """How many the metric and its differences are shown with."""
        points = [tuned.best for tuned in self.tuned if tuned.best is not None]
        spreads = [c.paired.sd for c in self.comparisons if c.paired.sd] or [p.sd for p in points if p.sd]
        return decimals_for(spreads, [value for point in points for value in point.values.values()])

    @property
    def winners(self) -> list[str]:
        """Strategies that are better than the baseline."""
        return [name for name, comparison in self.with_baseline.items() if comparison.verdict == BETTER]


def find(grid: Grid, runs: Sequence[Run]) -> list[Finding]:
    """One finding a setting, in the grid's order."""
    return [_finding(s, [run for run in runs if run.spec.setting.name == s.name]) for s in grid.settings]


def _finding(setting: Setting, runs: Sequence[Run]) -> Finding:
    tuned = tune(setting, runs)
    by_name = {each.strategy: each for each in tuned}
    family = [_at_best(by_name[first], by_name[second]) for first, second in _pairs(setting, list(by_name))]
    comparisons = compare_all(family, setting.metric.higher_is_better)
    return Finding(setting, runs, tuned, comparisons, _equal(by_name[setting.baseline], tuned))


def _pairs(setting: Setting, strategies: Sequence[str]) -> list[tuple[str, str]]:
    """Each strategy with the baseline, then the contrasts; each pair once, the baseline always second."""
    pairs = [(name, setting.baseline) for name in strategies if name != setting.baseline]
    for pair in setting.contrasts:
        if pair not in pairs and pair[::-1] not in pairs:
            pairs.append(pair)
    return pairs


def _at_best(first: Tuned, second: Tuned) -> Paired:
    a, b = ({} if each.best is None else each.best.values for each in (first, second))
    return paired(first.strategy, second.strategy, a, b)


def _equal(baseline: Tuned, tuned: Sequence[Tuned]) -> list[Equal]:
    """Every strategy at every point that the baseline was run at too; nothing if that is but one point."""
    if len(baseline.points) < 2:
        return []
    there = {point.name: point for point in baseline.points}
    points = [p for each in tuned if each.strategy != baseline.strategy for p in each.points if p.name in there]
    return [
        Equal(p, there[p.name], paired(p.strategy, baseline.strategy, p.values, there[p.name].values)) for p in points
    ]
