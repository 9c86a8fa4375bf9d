"""Findings of each setting: best candidates of the strategies, compared with each other, and at equal base decay."""

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

DIVERGED, NO_VALUE = "diverged", "without value"  # states besides those of results.py


def state_of(run: Run) -> str:
    """The run's state, with two more: failed runs may have diverged, finished ones may lack a finite metric."""
    if run.state == FINISHED and run.value is None:
        return NO_VALUE
    return DIVERGED if run.diverged else run.state


@dataclass(frozen=True)
class Candidate:
    """A strategy with one value of each searched option: its runs over the seeds."""

    runs: Sequence[Run]

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.runs[0].spec.strategy

    @property
    def name(self) -> str:
        """The searched values, such as "weight_decay=0.1"; "-" for a strategy that is not searched."""
        return self.runs[0].spec.point_name

    @property
    def weight_decay(self) -> float:
        """The base decay."""
        return self.runs[0].spec.weight_decay

    @property
    def published(self) -> float | None:
        """The published value of the metric, if there is one."""
        return self.runs[0].spec.published

    @cached_property
    def finished(self) -> list[Run]:
        """The runs that have finished with a finite metric."""
        return [run for run in self.runs if run.value is not None]

    @cached_property
    def values(self) -> Mapping[int, float]:
        """The metric of the finished runs, by seed."""
        return {run.spec.seed: value for run in self.runs if (value := run.value) is not None}

    @property
    def complete(self) -> bool:
        """Whether all planned seeds have finished."""
        return len(self.values) == len(self.runs)

    @property
    def states(self) -> Mapping[str, int]:
        """The number of runs in each state."""
        return Counter(map(state_of, self.runs))

    @property
    def mean(self) -> float | None:
        """The metric's mean over seeds; None without a finished run."""
        return fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """The metric's sample standard deviation (n - 1) over seeds; None with fewer than two seeds."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @cached_property
    def mean_decay(self) -> float | None:
        """Mean applied decay over the finished runs."""
        return mean_of([run.mean_decay for run in self.finished])

    def option(self, name: str) -> float | None:
        """The value of a searched option; None if it is not searched or not a number."""
        try:
            return float(dict(self.runs[0].spec.point)[name])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Edge:
    """A searched option whose best value is the smallest or largest one that was searched."""

    option: str
    value: float
    largest: bool


@dataclass(frozen=True)
class Tuned:
    """A strategy with all its candidates and the best of them."""

    strategy: str
    candidates: Sequence[Candidate]
    best: Candidate | None  # None: no run has finished
    edges: Sequence[Edge]

    @property
    def complete(self) -> bool:
        """Whether every run of every candidate has finished."""
        return all(candidate.complete for candidate in self.candidates)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """All options of the best candidate (without one: of the first), as the trainer resolves them."""
        spec = (self.best or self.candidates[0]).runs[0].spec
        return spec.setting.program.read_options(spec.words()).flat()


def tune(setting: Setting, runs: Sequence[Run]) -> list[Tuned]:
    """Find the best candidate of each strategy: the one with the best mean over seeds among the complete ones.

    If no candidate is complete, it is the best among those with a finished run.
    """
    by_strategy: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_strategy.setdefault(run.spec.strategy, {}).setdefault(run.spec.point_name, []).append(run)
    strategies = []
    for strategy, by_point in by_strategy.items():
        candidates = [Candidate(runs_of_point) for runs_of_point in by_point.values()]
        best = _best(candidates, setting)
        strategies.append(Tuned(strategy, candidates, best, _edges(best, candidates, setting) if best else ()))
    return strategies


def _best(candidates: Sequence[Candidate], setting: Setting) -> Candidate | None:
    """The candidate with the best mean, the first one if several are equal."""
    eligible = [c for c in candidates if c.complete] or [c for c in candidates if c.values]
    sign = -1 if setting.metric.higher_is_better else 1
    return min(eligible, key=lambda candidate: sign * (candidate.mean or 0.0), default=None)


def _edges(best: Candidate, candidates: Sequence[Candidate], setting: Setting) -> list[Edge]:
    edges = []
    for option in setting.searched:
        searched = sorted({value for candidate in candidates if (value := candidate.option(option)) is not None})
        value = best.option(option)
        if value is not None and len(searched) > 1 and value in (searched[0], searched[-1]):
            edges.append(Edge(option, value, value == searched[-1]))
    return edges


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the finite values; None if there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


@dataclass(frozen=True)
class Equal:
    """Candidates of a strategy and of the baseline with the same searched values."""

    candidate: Candidate
    baseline: Candidate
    paired: Paired


@dataclass(frozen=True)
class Finding:
    """One setting: its strategies, and the family of comparisons between their best candidates."""

    setting: Setting
    runs: Sequence[Run]
    tuned: Sequence[Tuned]
    comparisons: Sequence[Comparison]  # with the baseline, in the order of the strategies, then the contrasts
    equal: Sequence[Equal]

    def of(self, strategy: str) -> Tuned:
        """The strategy with this name."""
        return next(tuned for tuned in self.tuned if tuned.strategy == strategy)

    @property
    def baseline(self) -> Tuned:
        """The strategy that the others are compared with."""
        return self.of(self.setting.baseline)

    @cached_property
    def with_baseline(self) -> dict[str, Comparison]:
        """The comparisons with the baseline, by strategy."""
        return {c.paired.first: c for c in self.comparisons if c.paired.second == self.setting.baseline}

    @property
    def contrasts(self) -> list[Comparison]:
        """The comparisons without the baseline."""
        return [c for c in self.comparisons if c.paired.second != self.setting.baseline]

    def between(self, first: str, second: str) -> Comparison | None:
        """The comparison of two strategies in this order; None if the family has none."""
        pair = (first, second)
        return next((c for c in self.comparisons if (c.paired.first, c.paired.second) == pair), None)

    @cached_property
    def decimals(self) -> int:
        """The number of decimals with which the metric and its differences are shown."""
        best = [tuned.best for tuned in self.tuned if tuned.best is not None]
        spreads = [c.paired.sd for c in self.comparisons if c.paired.sd] or [c.sd for c in best if c.sd]
        return decimals_for(spreads, [value for candidate in best for value in candidate.values.values()])

    @property
    def winners(self) -> list[str]:
        """Strategies that are better than the baseline."""
        return [name for name, comparison in self.with_baseline.items() if comparison.verdict == BETTER]


def find(grid: Grid, runs: Sequence[Run]) -> list[Finding]:
    """One finding per setting, in the grid's order."""
    return [_finding(s, [run for run in runs if run.spec.setting.name == s.name]) for s in grid.settings]


def _finding(setting: Setting, runs: Sequence[Run]) -> Finding:
    tuned = tune(setting, runs)
    by_name = {strategy.strategy: strategy for strategy in tuned}
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
    a, b = ({} if tuned.best is None else tuned.best.values for tuned in (first, second))
    return paired(first.strategy, second.strategy, a, b)


def _equal(baseline: Tuned, tuned: Sequence[Tuned]) -> list[Equal]:
    """All candidates of the other strategies that have the baseline's searched values; none if it has one candidate."""
    if len(baseline.candidates) < 2:
        return []
    partners = {candidate.name: candidate for candidate in baseline.candidates}
    others = [strategy for strategy in tuned if strategy.strategy != baseline.strategy]
    candidates = [c for strategy in others for c in strategy.candidates if c.name in partners]
    return [
        Equal(c, partners[c.name], paired(c.strategy, baseline.strategy, c.values, partners[c.name].values))
        for c in candidates
    ]
