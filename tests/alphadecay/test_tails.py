"""The fits: slow twins, accuracy on hard spectra, laws, and where they differ from the published program on purpose."""

import math

import numpy as np
import pytest
import torch
from recipes import draw, gaussian, model_of
from test_spectra import CHANGES, DEGENERATE, HARD, SEEDS

import alphadecay
from alphadecay.spectra import eigenvalues
from alphadecay.tails import FITS, DegenerateSpectrum, fit_goodness, fit_paper

SEARCHED = ("goodness-of-fit", "fix-finger", "fix-finger-corrected")


def slow_paper(eigs):
    """Equation 2 of the paper, one number at a time: lambda_1 <= ... <= lambda_n, k = n // 2."""
    n, k = len(eigs), len(eigs) // 2
    return 1 + k / sum(math.log(eigs[n - i] / eigs[n - k - 1]) for i in range(1, k + 1))


def slow_search(eigs, may_begin=lambda value: True):
    """Fit from each eigenvalue that may begin the tail, and keep the fit with the smallest KS distance."""
    found = []
    for i, xmin in enumerate(eigs[:-1]):
        if may_begin(xmin):
            tail = eigs[i:]
            alpha = 1 + len(tail) / sum(math.log(x / xmin) for x in tail)
            gaps = [abs(1 - (x / xmin) ** (1 - alpha) - j / len(tail)) for j, x in enumerate(tail)]
            found.append((max(gaps), alpha))
    return min(found, key=lambda pair: pair[0])[1]


def slow_finger(eigs, corrected):
    logs = [math.log10(x) for x in eigs]
    width = (logs[-1] - logs[0]) / 100
    counts = [0] * 100
    for x in logs:
        counts[min(99, int((x - logs[0]) / width))] += 1
    peak = 10 ** (logs[0] + width * counts.index(max(counts)))
    lowest = 0.95 * peak if corrected else math.log10(0.95 * peak)
    return slow_search(eigs, lambda value: lowest <= value <= 1.5 * peak)


SLOW = {
    "paper": slow_paper,
    "goodness-of-fit": slow_search,
    "fix-finger": lambda eigs: slow_finger(eigs, corrected=False),
    "fix-finger-corrected": lambda eigs: slow_finger(eigs, corrected=True),
}


def alpha(weight, **options):
    return alphadecay.analyze(model_of(m=weight), min_eigenvalues=1, **options)[0].alpha


@pytest.mark.parametrize("fit", SLOW)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", HARD.values(), ids=HARD)
def test_every_fit_is_its_slow_twin_on_float64_singular_values(weight, seed, fit):
    weight = weight(seed)
    exact = np.sort(torch.linalg.svdvals(weight.double()).square().numpy())
    exact = exact[exact > len(exact) * np.finfo(np.float64).eps * exact[-1]]  # zeros are left out of a search
    if fit == "paper":
        exact = eigenvalues(weight)  # which counts them
    assert alpha(weight, fit=fit) == pytest.approx(SLOW[fit](exact.tolist()), rel=1e-4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("count", [3, 4, 5])
def test_tiny_spectra_have_a_fit(fit, count):
    eigs = np.geomspace(1, 8, count)
    fitted = FITS[fit](eigs, 2.0)
    assert fitted.alpha > 1 and 0 <= fitted.ks_distance <= 1 and 1 <= fitted.count <= count


def test_the_papers_formula_by_hand():
    fit = fit_paper(np.array([1.0, 2.0, 4.0, 8.0]))  # k = 2, reference 2: logs of 2 and 4
    assert fit.alpha == pytest.approx(1 + 2 / math.log(8)) and (fit.xmin, fit.count) == (2.0, 2)


def test_the_published_fit_counts_one_more_than_the_papers():
    eigs = eigenvalues(gaussian(192, 192))
    assert FITS["median"](eigs, 2.0).alpha > fit_paper(eigs).alpha


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("fit", ["median", "paper", "goodness-of-fit"])
def test_a_power_law_is_recognised(fit, exponent):
    quantiles = (np.arange(2000) + 0.5) / 2000
    eigs = (1 - quantiles) ** (-1 / (exponent - 1))
    fitted = FITS[fit](eigs, 2.0)
    assert fitted.alpha == pytest.approx(exponent, rel=0.03) and fitted.ks_distance < 0.01


def test_a_search_finds_where_the_tail_begins():
    tail = 10 * (1 - (np.arange(400) + 0.5) / 400) ** (-1 / 1.5)
    eigs = np.concatenate([np.linspace(1, 9, 600), tail])
    fitted = fit_goodness(eigs)
    assert fitted.xmin == pytest.approx(10, rel=0.1) and fitted.alpha == pytest.approx(2.5, rel=0.05)


# The published fix-finger compares a logarithm with eigenvalues: it depends on the scale, see its docstring.
@pytest.mark.parametrize("fit", [fit for fit in FITS if fit != "fix-finger"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("columns", [40, 64, 128])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_alpha_is_unmoved_when_the_weight_is(seed, change, columns, fit):
    weight = gaussian(64, columns, seed)
    assert alpha(change(weight), fit=fit) == pytest.approx(alpha(weight, fit=fit), rel=1e-4)


def test_the_published_finger_depends_on_the_scale_and_the_corrected_one_does_not():
    eigs = eigenvalues(draw("lowrank", [192, 192], 0, rank=16, noise=1e-3))
    eigs /= np.median(eigs)
    published, corrected = ([FITS[fit](scale * eigs, 2.0).alpha for scale in (1, 1e3)] for fit in SEARCHED[1:])
    assert published[0] != pytest.approx(published[1]) and corrected[0] == pytest.approx(corrected[1])


@pytest.mark.parametrize("fit", ["paper", *SEARCHED])
def test_heavier_tails_have_smaller_alpha(fit):
    heavy, light = (
        [alpha(weight(seed), fit=fit) for seed in range(8)]
        for weight in (lambda seed: draw("student_t", [128, 128], seed, df=2.2), lambda seed: gaussian(128, 128, seed))
    )
    assert np.median(heavy) < np.median(light)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    "weight", [DEGENERATE["all weights are zero"], DEGENERATE["are all equal"]], ids=["zero", "equal"]
)
def test_a_degenerate_matrix_has_no_alpha_with_any_fit(weight, fit):
    record = alphadecay.analyze(model_of(m=weight), fit=fit)[0]
    assert record.alpha is None and record.note
    with pytest.raises(DegenerateSpectrum):
        FITS[fit](eigenvalues(weight), 2.0)


@pytest.mark.parametrize("fit", SEARCHED)
def test_zeros_are_left_out_of_a_search_where_the_published_one_gives_nan(fit):
    weight = gaussian(64, 96)
    weight[:10] = 0
    assert alpha(weight, fit=fit) == pytest.approx(alpha(weight[10:], fit=fit), rel=1e-6)


def test_filtered_zeros_do_not_count_as_published():
    weight = gaussian(64, 96)
    weight[:40] = 1e-4 * weight[:40]  # eigenvalues of about 1e-9
    kept = eigenvalues(weight)
    kept = kept[kept > 1e-5]
    assert len(kept) == 24
    assert alpha(weight, filter_zeros=True) == pytest.approx(FITS["median"](kept, 2.0).alpha, rel=1e-6)
    assert alpha(weight, filter_zeros=True) != pytest.approx(alpha(weight), rel=0.1)


def test_the_error_of_alpha_is_that_of_independent_draws():
    record = alphadecay.analyze(model_of(m=gaussian(192, 192)))[0]
    assert record.alpha_error == pytest.approx((record.alpha - 1) / math.sqrt(96))


@pytest.mark.parametrize("shape", [(30000, 64), (256, 512), (64, 64)], ids=str)
@pytest.mark.parametrize("fit", SLOW)
def test_the_promise_about_accuracy_is_of_alphas_own_size(fit, shape):
    # 30000 x 64 has eigenvalues within 20 % of each other: alpha is about 30, and a tenth of a thousandth of it 3e-3.
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) / shape[0] ** 0.5
    exact = np.sort(np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2)
    assert alpha(weight, fit=fit) == pytest.approx(SLOW[fit](exact.tolist()), rel=1e-4, abs=0)
