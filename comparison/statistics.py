"""Differences paired by seed: intervals, tests, Holm's correction, smallest detectable difference; numbers as text."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, log10
from statistics import fmean, stdev

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from runtime.metrics import Metric

LEVEL, POWER = 0.05, 0.8
RESAMPLES = 9999
MOST_SEEDS = 1000  # a larger number of needed seeds is not computed
ROUNDING = 1e-12  # differences below this share of the values are rounding errors
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
ONE_SEED, NO_SEED = "one seed: no spread", "no seed finished in both"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """The difference of two strategies, first minus second, paired by seed, before any correction."""

    first: str
    second: str
    differences: Mapping[int, float]  # by seed; only seeds that both have
    mean: float | None  # None without a seed
    sd: float | None  # of a sample, n - 1; None with fewer than two seeds
    interval: Interval | None  # Student's t, 95 %; None with fewer than two seeds
    p: float | None  # two-sided paired t test; None with fewer than two seeds, or if all differ by one amount, not 0

    @property
    def count(self) -> int:
        """The number of paired seeds."""
        return len(self.differences)

    @cached_property
    def bootstrap(self) -> Interval | None:
        """95 % percentile bootstrap interval of the mean, with a fixed random seed; None with fewer than two seeds."""
        if self.sd is None or self.all_equal:
            return self.interval
        result = stats.bootstrap(
            (list(self.differences.values()),), np.mean, confidence_level=1 - LEVEL, n_resamples=RESAMPLES,
            method="percentile", rng=np.random.default_rng(0),
        )  # fmt: skip
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    @property
    def all_equal(self) -> bool:
        """Whether two or more seeds all have the same difference, so that there is no spread for a test."""
        return self.sd == 0.0


@dataclass(frozen=True)
class Comparison:
    """A difference as one of a family of comparisons, and its verdict."""

    paired: Paired
    family: int  # number of comparisons; power below is for the level LEVEL / family, the strictest of Holm's
    holm: float | None  # p corrected by Holm's method; None if there is no p
    detectable: float | None  # smallest true difference that these seeds show in 80 % of cases; None without a spread
    seeds_needed: int | None  # to show the observed difference in 80 % of cases; None without a spread or difference
    verdict: str


def paired(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two strategies over the seeds that both have.

    Args:
        first: Name of the first strategy.
        second: Name of the second strategy.
        a: The first strategy's metric by seed, finite.
        b: The second strategy's metric by seed, finite.
    """
    seeds = [seed for seed in a if seed in b]
    by_seed = {seed: a[seed] - b[seed] for seed in seeds}
    values = list(by_seed.values())
    if len(values) < 2:
        return Paired(first, second, by_seed, values[0] if values else None, None, None, None)
    size = max(abs(metric[seed]) for metric in (a, b) for seed in seeds)
    if max(values) - min(values) <= ROUNDING * size:
        mean = fmean(values) if abs(fmean(values)) > ROUNDING * size else 0.0
        return Paired(first, second, by_seed, mean, 0.0, (mean, mean), None if mean else 1.0)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Paired(first, second, by_seed, fmean(values), stdev(values), (float(low), float(high)), float(test.pvalue))


def compare_all(family: Sequence[Paired], higher_is_better: bool) -> list[Comparison]:
    """Verdicts of a family of comparisons.

    Differences without a p value count in the size of the family, so that an unfinished run cannot make other
    differences significant.
    """
    corrected = holm([paired.p for paired in family])
    size = len(family)
    return [
        Comparison(d, size, p, _detectable(d, size), _seeds_needed(d, size), _verdict(d, p, higher_is_better))
        for d, p in zip(family, corrected, strict=True)
    ]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P values corrected by Holm's method (statsmodels' multipletests); None stays None and counts as 1."""
    if not ps:
        return []
    corrected = multipletests([1.0 if p is None else p for p in ps], alpha=LEVEL, method="holm")[1]
    return [None if p is None else float(c) for p, c in zip(ps, corrected, strict=True)]


def _verdict(paired: Paired, p: float | None, higher_is_better: bool) -> str:
    if paired.count < 2:
        return ONE_SEED if paired.count else NO_SEED
    if p is None or p >= LEVEL or paired.mean is None:
        return SAME
    return BETTER if (paired.mean > 0) == higher_is_better else WORSE


def power_of(effect: float, count: int, level: float) -> float:
    """Power of a two-sided one-sample t test: the chance to find a true effect with the right sign.

    The upper tail of the noncentral t distribution. statsmodels' TTestPower adds the other tail (a significant effect
    with the wrong sign), and is NaN for few seeds because SciPy has no value for that tail.

    Args:
        effect: True mean divided by the standard deviation, 0 or more.
        count: Number of seeds, 2 or more.
        level: Level of the test.
    """
    critical = stats.t.isf(level / 2, count - 1)
    return float(stats.nct.sf(critical, count - 1, effect * count**0.5))


def smallest_effect(count: int, level: float) -> float:
    """The true mean, divided by the standard deviation, that is found with a power of 80 %; `count` is 2 or more."""
    most = (3 * stats.t.isf(level / 2, count - 1) + 10) / count**0.5  # has a power of almost 1 for every count
    return float(optimize.brentq(lambda effect: power_of(effect, count, level) - POWER, 0.0, most))


def spread_bounds(count: int) -> Interval:
    """95 % interval of a normal distribution's standard deviation, in multiples of a sample's; `count` is 2 or more."""
    low, high = (stats.chi2.isf(tail, count - 1) for tail in (LEVEL / 2, 1 - LEVEL / 2))
    return float(((count - 1) / low) ** 0.5), float(((count - 1) / high) ** 0.5)


def _detectable(paired: Paired, family: int) -> float | None:
    return smallest_effect(paired.count, LEVEL / family) * paired.sd if paired.sd else None


def _seeds_needed(paired: Paired, family: int) -> int | None:
    """2 or more; MOST_SEEDS + 1 means more than MOST_SEEDS."""
    if not paired.sd or not paired.mean:
        return None
    effect = abs(paired.mean) / paired.sd
    counts = range(2, MOST_SEEDS + 1)
    return 2 + bisect_left(counts, POWER, key=lambda count: power_of(effect, count, LEVEL / family))


NOTHING = "-"
LARGER = 1.05  # ratio of two mean applied decays above which the report mentions the difference


def number(value: float | None, digits: int = 4) -> str:
    """The value with this many significant digits; a dash for None."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def short(value: float | None) -> str:
    """An option's value, such as a decay: at most four significant digits, without trailing zeros."""
    return NOTHING if value is None else f"{value:.4g}"


def fixed(value: float | None, decimals: int) -> str:
    """The value with a fixed number of decimals, so that the decimal points of a column are aligned."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int) -> str:
    """The value with its sign; without one if it rounds to 0."""
    if value is None:
        return NOTHING
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def span(interval: Interval | None, decimals: int) -> str:
    """An interval, such as "-0.20 to +1.30"."""
    return NOTHING if interval is None else f"{signed(interval[0], decimals)} to {signed(interval[1], decimals)}"


def decimals_for(spreads: Sequence[float], values: Sequence[float]) -> int:
    """The decimals that show a typical spread with two digits; without spreads, the values with four."""
    typical = sorted(spread for spread in spreads if spread > 0)
    if typical:
        return min(6, max(0, 1 - floor(log10(typical[len(typical) // 2]))))
    largest = max(map(abs, values), default=0.0)
    return min(6, max(0, 3 - floor(log10(largest)))) if largest else 2


def p_value(p: float | None) -> str:
    """A p value with two significant digits, or "< 0.001"."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def unit(metric: Metric) -> str:
    """The unit of a difference in the metric: the text after "in" in its label, with percentage points for %."""
    _, _, written = metric.label.rpartition(" in ") if " in " in metric.label else ("", "", "")
    return "percentage points" if written == "%" else written


def seeds(count: int | None) -> str:
    """A number of seeds as text."""
    if count is None:
        return NOTHING
    return f"more than {MOST_SEEDS}" if count > MOST_SEEDS else str(count)


def listed(words: Sequence[str], last: str = "and") -> str:
    """A list in words, such as "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def counted(count: int, noun: str) -> str:
    """A number with a noun, such as "1 run" or "3 runs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def evidence(comparison: Comparison, decimals: int) -> str:
    """The numbers of a comparison, such as "+0.62, 95 % interval +0.21 to +1.03, p 0.012"."""
    paired = comparison.paired
    words = [signed(paired.mean, decimals)]
    if paired.all_equal:
        words.append("the same in every seed")
    elif paired.interval is not None:
        words += [f"95 % interval {span(paired.interval, decimals)}", f"p {p_value(comparison.holm)}"]
    return ", ".join(words)
