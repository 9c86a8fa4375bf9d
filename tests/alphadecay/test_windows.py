"""FARMS windows: an exponent that does not depend on a matrix' shape."""

import math

import numpy as np
import pytest
import torch
from recipes import draw, gaussian, model_of

import alphadecay
from alphadecay.spectra import CONV_NORM, as_matrices, eigenvalues, farms_window, windows
from alphadecay.tails import fit_median

SHAPES = [(64, 64), (64, 256), (192, 192), (576, 192), (192, 768), (256, 1024), (512, 512), (768, 3072)]


def record(weight, window="farms", **options):
    return alphadecay.analyze(model_of(m=weight), window=window, min_eigenvalues=1, **options)[0]


def test_gaussian_matrices_of_all_shapes_score_alike():
    alphas = {shape: np.mean([record(gaussian(*shape, seed)).alpha for seed in range(5)]) for shape in SHAPES}
    middle = np.mean(list(alphas.values()))
    assert all(abs(alpha / middle - 1) < 0.02 for alpha in alphas.values()), alphas
    whole = [record(gaussian(*shape), window=None).alpha for shape in SHAPES]
    assert max(whole) / min(whole) > 1.5  # without windows the shape is what alpha tells


def slow_windows(matrix, side):
    """Windows of a square shape, by hand."""
    found = []
    for top in places(len(matrix), side):
        found += [matrix[top : top + side, left : left + side] for left in places(len(matrix[0]), side)]
    return found


def places(length, side):
    count = 1 if length == side else min(9, max(3, round(length / side)))
    return sorted({round(i * (length - side) / max(1, count - 1)) for i in range(count)})


def count_along(length, side):
    """How many windows lie along a side: 3 to 9 that differ, evenly spaced."""
    if side >= length:
        return 1
    count = min(9, max(3, round(length / side)))
    return len({round(i * (length - side) / (count - 1)) for i in range(count)})


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_windows_are_those_of_the_slow_twin(shape):
    weight = gaussian(*shape)
    side, _ = farms_window(*shape)
    expected = slow_windows(weight, side)
    assert len(windows(as_matrices(weight), (side, side))) == len(expected)
    pooled = np.sort(np.concatenate([torch.linalg.svdvals(w.double()).square().numpy() for w in expected]))
    assert eigenvalues(weight, (side, side)) == pytest.approx(pooled, rel=1e-9)
    assert record(weight).alpha == pytest.approx(fit_median(pooled).alpha, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64), (70, 65), (4096, 64)])
@pytest.mark.parametrize("window", [(64, 64), (100, 200), (1, 5)])
def test_windows_are_never_larger_than_the_matrix_and_reach_its_ends(shape, window):
    matrix = torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(1, *shape)
    cut = windows(matrix, window)
    assert cut.shape[1] == min(window[0], shape[0]) and cut.shape[2] == min(window[1], shape[1])
    assert cut[0, 0, 0] == 0 and cut[-1, -1, -1] == matrix[0, -1, -1]
    assert len(cut) == math.prod(count_along(*each) for each in zip(shape, window, strict=True))


def test_a_convolution_is_cut_by_kernel_position():
    weight = draw("gaussian", [128, 64, 3, 3], 0)
    side, _ = farms_window(128, 64)
    each = [CONV_NORM * eigenvalues(position, (side, side)) for position in as_matrices(weight)]
    assert eigenvalues(weight, (side, side)) == pytest.approx(np.sort(np.concatenate(each)), rel=1e-9)
    assert len(each) == 9 and record(weight).alpha > 1


def test_only_the_tail_is_the_windows():
    weight = gaussian(192, 768)
    whole, cut = record(weight, window=None), record(weight)
    for name in ("spectral_norm", "frobenius_norm", "stable_rank", "entropy", "eigenvalue_count"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    assert cut.alpha < 0.7 * whole.alpha and cut.xmin < whole.xmin and cut.alpha_error < whole.alpha_error


@pytest.mark.parametrize("seed", range(3))
def test_heavier_tails_have_smaller_alpha(seed):
    assert record(draw("student_t", [192, 768], seed, df=2.2)).alpha < record(gaussian(192, 768, seed)).alpha


@pytest.mark.parametrize("window", ["square", (64,), (0, 64), (64.0, 64), 64])
def test_bad_windows_are_named(window):
    with pytest.raises(ValueError, match="window="):
        record(gaussian(64, 64), window=window)
