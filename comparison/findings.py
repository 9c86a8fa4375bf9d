"""What a comparison finds in each setting: tuned against tuned, and at equal base decay."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from comparison.cells import Setting
from comparison.grid import Grid
from comparison.results import Run
from comparison.statistics import BETTER, Comparison, Paired, compare_all, paired
from comparison.tuning import Point, Tuned, tune
from comparison.wording import decimals_for


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
    return [_finding(s, [run for run in runs if run.cell.setting.name == s.name]) for s in grid.settings]


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
    return [
        Equal(
            point, there[point.name], paired(point.strategy, baseline.strategy, point.values, there[point.name].values)
        )
        for each in tuned
        if each.strategy != baseline.strategy
        for point in each.points
        if point.name in there
    ]
