"""Laws of spectra and of the tail fit."""

import math

import numpy as np
import pytest
import torch
from recipes import draw, gaussian, model_of

import alphadecay
from alphadecay.spectra import eigenvalues
from alphadecay.tails import DegenerateSpectrum, fit_median

SEEDS = range(3)


def slow_alpha(eigs, xmin_pos):
    """The published rule, one number at a time."""
    ascending = sorted(eigs)
    tail = ascending[int(len(ascending) / xmin_pos) :]
    return 1 + len(tail) / sum(math.log(x / tail[0]) for x in tail)


def alpha(weight, **options):
    return alphadecay.analyze(model_of(m=weight), **options)[0].alpha


@pytest.mark.parametrize("xmin_pos", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_fit_agrees_with_the_slow_twin(seed, xmin_pos):
    eigs = eigenvalues(gaussian(60, 90, seed))
    assert fit_median(eigs, xmin_pos).alpha == pytest.approx(slow_alpha(eigs.tolist(), xmin_pos), rel=1e-9)


def test_fit_by_hand():
    fit = fit_median(np.array([0.1, 1.0, 1.0, math.e**2]), 2.0)  # tail 1, e^2: alpha = 1 + 2 / 2
    assert (fit.alpha, fit.xmin, fit.count) == (pytest.approx(2.0), 1.0, 2)
    assert fit.ks_distance == pytest.approx(1 - math.e**-2 - 0.5)  # at e^2 the model says 0.86, the data 0.5


def half_zero(seed):
    weight = gaussian(80, 80, seed)
    weight[:32] = 0
    return weight


def outlier(seed):
    weight = gaussian(96, 160, seed)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    s[0] = 1e3 * s[48]  # its eigenvalue is 1e6 times the median
    return (u @ torch.diag(s) @ v).float()


HARD = {
    "gaussian": lambda seed: gaussian(96, 192, seed),
    "heavy-tailed": lambda seed: draw("student_t", [128, 96], seed, df=2.2),
    "low rank": lambda seed: draw("lowrank", [96, 96], seed, rank=8, noise=1e-4),
    "nearly half zero": half_zero,
    "outlier": outlier,
    "tiny": lambda seed: gaussian(4, 6, seed),
    "tiny values": lambda seed: gaussian(64, 64, seed) * 1e-22,
    "huge values": lambda seed: gaussian(64, 64, seed) * 1e22,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", HARD.values(), ids=HARD)
def test_alpha_is_that_of_float64_singular_values(weight, seed):
    weight = weight(seed)
    exact = torch.linalg.svdvals(weight.double()).square().tolist()
    assert alpha(weight, min_eigenvalues=1) == pytest.approx(slow_alpha(exact, 2.0), rel=1e-4)


ROTATION = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(9))).Q
CHANGES = {
    "scaled": lambda w: 1e3 * w,
    "transposed": lambda w: w.T.contiguous(),
    "rows reversed": lambda w: w.flip(0),
    "columns reversed": lambda w: w.flip(1),
    "rotated": lambda w: ROTATION @ w,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_alpha_is_unmoved_when_the_weight_is(seed, change):
    weight = gaussian(64, 128, seed)
    assert alpha(change(weight)) == pytest.approx(alpha(weight), rel=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_heavier_tails_have_smaller_alpha(seed):
    assert alpha(draw("student_t", [128, 128], seed, df=2.2)) < alpha(gaussian(128, 128, seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_analysed_in_float32(dtype):
    weight = gaussian(64, 96).to(dtype)
    assert alpha(weight) == alpha(weight.float())


def test_records_describe_the_true_weights():
    weight = gaussian(64, 96)
    record = alphadecay.analyze(model_of(m=weight))[0]
    assert record.frobenius_norm == pytest.approx(weight.norm().item(), rel=1e-5)
    assert record.spectral_norm == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=1e-5)
    assert record.stable_rank == pytest.approx((record.frobenius_norm / record.spectral_norm) ** 2)
    assert (record.shape, record.parameters, record.eigenvalue_count) == ((64, 96), 64 * 96, 64)
    assert 0 < record.ks_distance < 1 and record.xmin > 0


DEGENERATE = {
    "all weights are zero": torch.zeros(64, 64),
    "eigenvalues are zero": gaussian(64, 64) * (torch.arange(64) % 3 == 0)[:, None],
    "are all equal": torch.eye(64),
}


@pytest.mark.parametrize(("note", "weight"), DEGENERATE.items(), ids=DEGENERATE)
def test_a_degenerate_matrix_has_no_alpha_and_says_why(note, weight):
    record = alphadecay.analyze(model_of(m=weight))[0]
    assert record.alpha is None and note in record.note
    with pytest.raises(DegenerateSpectrum, match=note):
        fit_median(eigenvalues(weight))


def test_a_half_zero_matrix_says_so():
    weight = gaussian(64, 64)
    weight[:32] = 0
    record = alphadecay.analyze(model_of(m=weight))[0]
    assert record.note == "32 of 64 eigenvalues are zero" and record.alpha > 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    weight = gaussian(64, 64)
    weight[3, 4] = value
    with pytest.raises(ValueError, match=r"blocks_1 \(64, 64\): .* not finite"):
        alphadecay.analyze(model_of(blocks_0=gaussian(64, 64), blocks_1=weight))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"fit": "mean"}, "mean"),
        ({"xmin_pos": 1.0}, "1.0"),
        ({"window": "x"}, "x"),
        ({"exclude": ["q*"]}, r"q\*"),
    ],
)
def test_bad_arguments_are_named(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        alphadecay.analyze(model_of(m=gaussian(64, 64)), **options)
