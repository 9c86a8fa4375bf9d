"""Paired differences: slow twins, known values, laws, and what happens at the edges."""

import itertools
import math
import random
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from comparison.statistics import (
    BETTER,
    LEVEL,
    MOST_SEEDS,
    NO_SEED,
    ONE_SEED,
    SAME,
    WORSE,
    compare_all,
    holm,
    paired,
    power_of,
    smallest_effect,
    spread_bounds,
)

A = {0: 92.1, 1: 92.6, 2: 91.9, 3: 93.0}
B = {0: 91.0, 1: 92.2, 2: 91.5, 3: 91.6}


def drawn(count, mean=0.0, seed=0):
    draw = random.Random(seed)
    return {i: 90 + mean + draw.gauss(0, 1) for i in range(count)}


def one(a, b, higher_is_better=True):
    return compare_all([paired("a", "b", a, b)], higher_is_better)[0]


def slow_holm(ps):
    """Holm's procedure as its sentence has it: the smallest p times m, the next times m - 1, never falling."""
    corrected, floor = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        floor = max(floor, min(1.0, ps[i] * (len(ps) - rank)))
        corrected[i] = floor
    return corrected


def test_a_difference_is_that_of_the_formulas_by_hand():
    found = paired("a", "b", A, B)
    differences = [A[seed] - B[seed] for seed in A]
    mean, error = fmean(differences), stdev(differences) / 2
    assert (found.mean, found.sd) == (pytest.approx(mean), pytest.approx(2 * error))
    half = 3.182446 * error  # the 97.5 % quantile of Student's t with 3 degrees of freedom, from printed tables
    assert found.interval == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert found.p == pytest.approx(stats.ttest_rel(list(A.values()), list(B.values())).pvalue)


def test_the_bootstrap_is_close_to_all_resamples_of_four():
    found = paired("a", "b", A, B)
    means = [fmean(four) for four in itertools.product(found.differences.values(), repeat=4)]
    assert found.bootstrap == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)
    many, nothing = {seed: seed**0.5 % 1 for seed in range(12)}, dict.fromkeys(range(12), 0.0)
    assert paired("a", "b", many, nothing).bootstrap == paired("a", "b", many, nothing).bootstrap


def test_swapping_a_pair_mirrors_everything():
    there, back = one(A, B), one(B, A)
    assert back.paired.mean == pytest.approx(-there.paired.mean) and back.paired.sd == pytest.approx(there.paired.sd)
    assert back.paired.interval == pytest.approx([-x for x in reversed(there.paired.interval)])
    assert back.paired.bootstrap == pytest.approx([-x for x in reversed(there.paired.bootstrap)], abs=0.03)
    assert (back.holm, back.detectable) == (pytest.approx(there.holm), pytest.approx(there.detectable))
    assert back.seeds_needed == there.seeds_needed


@pytest.mark.slow
def test_shifting_both_changes_nothing_and_a_sure_difference_has_its_sign():
    shifted = one({k: v + 7 for k, v in A.items()}, {k: v + 7 for k, v in B.items()})
    assert shifted.paired.mean == pytest.approx(one(A, B).paired.mean)
    assert shifted.holm == pytest.approx(one(A, B).holm)
    high, low = drawn(5, 20, seed=1), drawn(5, seed=2)
    assert [one(high, low, h).verdict for h in (True, False)] == [BETTER, WORSE]
    assert [one(low, high, h).verdict for h in (True, False)] == [WORSE, BETTER]


@pytest.mark.slow
def test_holm_is_its_sentence_and_never_below_the_raw_p():
    draw = random.Random(0)
    for count in range(1, 9):
        ps = [draw.random() ** 3 for _ in range(count)]
        assert holm(ps) == pytest.approx(slow_holm(ps))
        assert all(c >= p for c, p in zip(holm(ps), ps, strict=True))


def test_what_has_no_p_value_still_counts_in_the_family():
    assert holm([0.02, None, None]) == [pytest.approx(0.06), None, None]
    assert holm([]) == []


def test_more_seeds_detect_smaller_differences_and_larger_families_larger_ones():
    for level in (0.05, 0.05 / 7, 0.05 / 30):
        effects = [smallest_effect(count, level) for count in range(2, 60)]
        assert effects == sorted(effects, reverse=True)
    for count in (2, 3, 10):
        effects = [smallest_effect(count, 0.05 / family) for family in range(1, 30)]
        assert effects == sorted(effects)
    alone, among = (compare_all([paired("a", "b", A, B)] * family, True)[0] for family in (1, 7))
    assert among.detectable == pytest.approx(smallest_effect(4, 0.05 / 7) * among.paired.sd)
    assert among.detectable > alone.detectable and among.seeds_needed > alone.seeds_needed


def test_power_is_that_of_statsmodels_where_it_has_one():
    compared = 0
    for count, effect, level in itertools.product((3, 5, 20, 200), (0.3, 0.8, 1.5, 3.0), (0.05, 0.01)):
        theirs = TTestPower().power(effect, count, level)
        if math.isfinite(theirs) and theirs > 0.3:  # theirs counts wrong signs too, which matters where power is small
            assert power_of(effect, count, level) == pytest.approx(theirs, abs=1e-3)
            compared += 1
    assert compared > 10


def test_the_smallest_difference_is_found_in_80_percent_of_simulated_comparisons():
    for count, level in ((3, 0.05), (5, 0.05 / 7)):
        draw = np.random.default_rng(0).normal(smallest_effect(count, level), 1.0, (20_000, count))
        assert (stats.ttest_1samp(draw, 0.0, axis=1).pvalue < level).mean() == pytest.approx(0.8, abs=0.01)


def test_the_true_spread_lies_within_its_bounds_in_95_percent_of_samples():
    for count in (2, 3, 10):
        seen = np.random.default_rng(0).normal(size=(20_000, count)).std(axis=1, ddof=1)
        low, high = spread_bounds(count)
        assert ((low * seen <= 1) & (high * seen >= 1)).mean() == pytest.approx(0.95, abs=0.005)


def test_seeds_needed_are_the_fewest_with_80_percent_power():
    found = one(drawn(6, 1.0, seed=3), drawn(6, seed=4))
    effect = abs(found.paired.mean) / found.paired.sd
    assert 2 < found.seeds_needed <= MOST_SEEDS
    assert power_of(effect, found.seeds_needed, LEVEL) >= 0.8 > power_of(effect, found.seeds_needed - 1, LEVEL)


def test_a_tiny_difference_needs_more_seeds_than_are_counted():
    a = drawn(4)
    b = {seed: value + (-1) ** seed + 1e-3 for seed, value in a.items()}
    assert one(a, b).seeds_needed == MOST_SEEDS + 1 and one(a, b).verdict == SAME


def test_one_seed_has_a_difference_but_no_spread_and_none_has_nothing():
    single, nothing = one({0: 2.0}, {0: 1.5}), one({0: 2.0}, {1: 1.5})
    assert (single.paired.mean, single.paired.interval, single.holm, single.verdict) == (0.5, None, None, ONE_SEED)
    assert (nothing.paired.mean, nothing.paired.count, nothing.verdict) == (None, 0, NO_SEED)
    assert {single.detectable, single.seeds_needed, nothing.detectable, nothing.seeds_needed} == {None}


def test_two_seeds_give_finite_figures():
    found = one({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0})
    figures = [found.holm, found.detectable, found.seeds_needed, *found.paired.interval, *found.paired.bootstrap]
    assert all(map(math.isfinite, figures)) and found.paired.bootstrap == (0.5, 1.0)


def test_only_seeds_that_both_finished_are_paired():
    assert paired("a", "b", A, {2: 91.5, 3: 91.6, 9: 1.0}).differences == pytest.approx({2: 0.4, 3: 1.4})


def test_identical_values_are_no_difference_and_a_constant_one_is_no_evidence():
    same = one(A, dict(A))
    assert (same.paired.mean, same.paired.p, same.holm, same.verdict) == (0.0, 1.0, 1.0, SAME)
    shifted = one(A, {seed: value - 0.3 for seed, value in A.items()})  # equal but for rounding
    assert shifted.paired.all_equal and shifted.paired.mean == pytest.approx(0.3)
    assert (shifted.paired.p, shifted.holm, shifted.detectable, shifted.verdict) == (None, None, None, SAME)
    assert shifted.paired.interval == shifted.paired.bootstrap == (shifted.paired.mean,) * 2


def test_pure_noise_is_rarely_called_a_difference():
    wrong, trials = 0, 200
    for trial in range(trials):
        baseline, *others = (drawn(4, seed=10 * trial + i) for i in range(6))
        wrong += any(p < LEVEL for p in slow_holm([paired("a", "b", each, baseline).p for each in others]))
    assert wrong / trials < 0.08
