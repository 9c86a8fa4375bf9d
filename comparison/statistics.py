"""Differences paired by seed: intervals, tests, Holm's correction, what so many seeds could have told; in words."""

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
MOST_SEEDS = 1000  # seeds needed are not counted further
ROUNDING = 1e-12  # share of the values below which differences between them are rounding
BETTER, WORSE, SAME = "better", "worse", "not distinguishable"
ONE_SEED, NO_SEED = "one seed: no spread", "no seed finished in both"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """What the seeds of two strategies say on their difference, first minus second, before any correction."""

    first: str
    second: str
    differences: Mapping[int, float]  # by seed; only of seeds that both have
    mean: float | None  # None without a seed
    sd: float | None  # of a sample, n - 1; None with fewer than two seeds
    interval: Interval | None  # Student's t, 95 %; None with fewer than two seeds
    p: float | None  # two-sided paired t test; None with fewer than two seeds, and if all differ by the same but 0

    @property
    def count(self) -> int:
        """How many seeds are paired."""
        return len(self.differences)

    @cached_property
    def bootstrap(self) -> Interval | None:
        """Percentile interval of the mean, 95 %, always of the same resamples; None with fewer than two seeds."""
        if self.sd is None or self.all_equal:
            return self.interval
        drawn = stats.bootstrap(
            (list(self.differences.values()),), np.mean, confidence_level=1 - LEVEL, n_resamples=RESAMPLES,
            method="percentile", rng=np.random.default_rng(0),
        )  # fmt: skip
        return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)

    @property
    def all_equal(self) -> bool:
        """Whether two or more seeds differ by the same: there is no spread to judge by."""
        return self.sd == 0.0


@dataclass(frozen=True)
class Comparison:
    """A difference as one of a family of comparisons, and its verdict."""

    paired: Paired
    family: int  # comparisons in it; LEVEL / family, Holm's strictest level, is that of what follows on power
    holm: float | None  # p corrected after Holm; None where there is no p
    detectable: float | None  # smallest true difference that these seeds show in 80 % of cases; None without a spread
    seeds_needed: int | None  # to show the observed difference in 80 % of cases; None without a spread or difference
    verdict: str


def paired(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two strategies, by name and finite figures by seed, over the seeds that both have."""
    seeds = [seed for seed in a if seed in b]
    found = {seed: a[seed] - b[seed] for seed in seeds}
    values = list(found.values())
    if len(values) < 2:
        return Paired(first, second, found, values[0] if values else None, None, None, None)
    size = max(abs(each[seed]) for each in (a, b) for seed in seeds)
    if max(values) - min(values) <= ROUNDING * size:
        mean = fmean(values) if abs(fmean(values)) > ROUNDING * size else 0.0
        return Paired(first, second, found, mean, 0.0, (mean, mean), None if mean else 1.0)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Paired(first, second, found, fmean(values), stdev(values), (float(low), float(high)), float(test.pvalue))


def compare_all(family: Sequence[Paired], higher_is_better: bool) -> list[Comparison]:
    """Verdicts over a family of comparisons.

    Differences without a p value count in the size of the family, so that a run that is still to finish cannot make
    others significant by being absent.
    """
    corrected = holm([each.p for each in family])
    size = len(family)
    return [
        Comparison(e, size, p, _detectable(e, size), _seeds_needed(e, size), _verdict(e, p, higher_is_better))
        for e, p in zip(family, corrected, strict=True)
    ]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """P values corrected after Holm; None stays None and counts as 1."""
    if not ps:
        return []
    corrected = multipletests([1.0 if p is None else p for p in ps], alpha=LEVEL, method="holm")[1]
    return [None if p is None else float(c) for p, c in zip(ps, corrected, strict=True)]


def _verdict(each: Paired, p: float | None, higher_is_better: bool) -> str:
    if each.count < 2:
        return ONE_SEED if each.count else NO_SEED
    if p is None or p >= LEVEL or each.mean is None:
        return SAME
    return BETTER if (each.mean > 0) == higher_is_better else WORSE


def power_of(effect: float, count: int, level: float) -> float:
    """Chance that a two-sided one-sample t test finds a true effect, with its sign.

    The upper tail of the noncentral t distribution. statsmodels' TTestPower adds the other tail, that of a significant
    effect with the wrong sign, and is NaN for few seeds where SciPy has no value for that tail.
    The effect is the true mean over the standard deviation, 0 or more; the count is 2 or more.
    """
    critical = stats.t.isf(level / 2, count - 1)
    return float(stats.nct.sf(critical, count - 1, effect * count**0.5))


def smallest_effect(count: int, level: float) -> float:
    """The true mean over standard deviation that is found with a chance of 80 %; count is 2 or more."""
    most = (3 * stats.t.isf(level / 2, count - 1) + 10) / count**0.5  # found almost surely, whatever the count
    return float(optimize.brentq(lambda effect: power_of(effect, count, level) - POWER, 0.0, most))


def spread_bounds(count: int) -> Interval:
    """The 95 % interval of a normal sample's true standard deviation, as multiples of the one seen; count: from 2."""
    low, high = (stats.chi2.isf(tail, count - 1) for tail in (LEVEL / 2, 1 - LEVEL / 2))
    return float(((count - 1) / low) ** 0.5), float(((count - 1) / high) ** 0.5)


def _detectable(each: Paired, family: int) -> float | None:
    return smallest_effect(each.count, LEVEL / family) * each.sd if each.sd else None


def _seeds_needed(each: Paired, family: int) -> int | None:
    """From 2; MOST_SEEDS + 1 stands for more than MOST_SEEDS."""
    if not each.sd or not each.mean:
        return None
    effect = abs(each.mean) / each.sd
    counts = range(2, MOST_SEEDS + 1)
    return 2 + bisect_left(counts, POWER, key=lambda count: power_of(effect, count, LEVEL / family))


NOTHING = "-"
LARGER = 1.05  # times another mean applied decay, from which a larger total decay is mentioned


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; a dash for None."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def short(value: float | None) -> str:
    """An option's value, such as a decay: four significant digits at most, none of them a trailing 0."""
    return NOTHING if value is None else f"{value:.4g}"


def fixed(value: float | None, decimals: int) -> str:
    """So many decimals, so that a column's points stand below each other."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int) -> str:
    """With its sign; what rounds to 0 has none."""
    if value is None:
        return NOTHING
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def span(interval: Interval | None, decimals: int) -> str:
    """Such as "-0.20 to +1.30"."""
    return NOTHING if interval is None else f"{signed(interval[0], decimals)} to {signed(interval[1], decimals)}"


def decimals_for(spreads: Sequence[float], values: Sequence[float]) -> int:
    """Decimals that show a typical spread to two digits; without spreads, values to four."""
    typical = sorted(spread for spread in spreads if spread > 0)
    if typical:
        return min(6, max(0, 1 - floor(log10(typical[len(typical) // 2]))))
    largest = max(map(abs, values), default=0.0)
    return min(6, max(0, 3 - floor(log10(largest)))) if largest else 2


def p_value(p: float | None) -> str:
    """Two significant digits, down to 0.001."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def unit(metric: Metric) -> str:
    """Of a difference in the metric: what its label has behind "in"; of per cents, percentage points."""
    _, _, named = metric.label.rpartition(" in ") if " in " in metric.label else ("", "", "")
    return "percentage points" if named == "%" else named


def seeds(count: int | None) -> str:
    """How many seeds are needed."""
    if count is None:
        return NOTHING
    return f"more than {MOST_SEEDS}" if count > MOST_SEEDS else str(count)


def listed(words: Sequence[str], last: str = "and") -> str:
    """Such as "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def counted(count: int, noun: str) -> str:
    """Such as "1 run" or "3 runs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def evidence(comparison: Comparison, decimals: int) -> str:
    """What a verdict rests on, such as "+0.62, 95 % interval +0.21 to +1.03, p 0.012"."""
    paired = comparison.paired
    words = [signed(paired.mean, decimals)]
    if paired.all_equal:
        words.append("the same in every seed")
    elif paired.interval is not None:
        words += [f"95 % interval {span(paired.interval, decimals)}", f"p {p_value(comparison.holm)}"]
    return ", ".join(words)
