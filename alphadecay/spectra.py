"""The eigenvalues of W W^T of a weight matrix or of its windows, from the smaller Gram matrix."""

import math

import numpy as np
import torch
from torch import Tensor

CONV_NORM = 0.5  # published factor on the eigenvalues of a Conv2d
SAFE_TRACE = (1e-20, 1e30)  # outside this range float32 squares are near under- or overflow
WINDOW_SIDE = 64  # of FARMS windows, but at most three quarters of the matrix' smaller side
WINDOWS_PER_SIDE = (3, 9)  # fewest and most, if the side is longer than the window
# A Gram matrix is symmetric, so computing it in 4 row blocks needs only 5/8 of the multiplications; small ones are not
# split.
ROW_BLOCKS, LEAST_SPLIT = 4, 128
SMALL = 512  # CUDA solves one matrix after another; up to this side the CPU is faster
CHUNK = 2**18  # number of weight entries in float64 at a time, approximately
WindowShape = tuple[int, int]


class NonFiniteWeight(ValueError):
    """A weight that contains nan or inf, or a value whose square is not finite."""


def eigenvalues(weight: Tensor, window: WindowShape | None = None, groups: int = 1) -> np.ndarray:
    """Eigenvalues of W W^H or W^H W, whichever is smaller, in float64; with windows, those of all windows are pooled.

    A Conv2d weight counts as one (out / groups) x (in / groups) matrix per group and kernel position. Each is scaled by
    sqrt(CONV_NORM), and their eigenvalues are pooled. Negative eigenvalues are rounding noise and become 0.

    Args:
        weight: Of shape (rows, columns) or (out, in / groups, height, width), on any device, of any floating-point or
            complex dtype.
        window: Shape of the windows (see `windows`), or None for the whole matrix.
        groups: Number of groups of the convolution.

    Returns:
        Shape (n,), float64, ascending, none negative.

    Raises:
        NonFiniteWeight: If a value of the weight or its square is not finite.

    Source: AlphaDecay (arXiv 2506.14562), as its program computes them.
    """
    eigs = _eigenvalues(weight, window, groups, torch.float64)
    if eigs is None:
        if bool(torch.isfinite(weight.detach()).all()):
            raise NonFiniteWeight(
                f"its entries, up to {float(weight.detach().abs().max()):.1e}, have no finite squares"
            )
        raise NonFiniteWeight("the weight holds values that are not finite (nan or inf)")
    return eigs


def quick_eigenvalues(weight: Tensor, window: WindowShape | None = None, groups: int = 1) -> np.ndarray | None:
    """`eigenvalues`, of a weight of the same shapes, with a float32 solver: errors are relative to the largest one.

    None if float32 cannot hold the squares, a value is not finite, or the weight is float64 or complex128.
    """
    is_double = weight.dtype in (torch.float64, torch.complex128)
    return None if is_double else _eigenvalues(weight, window, groups, torch.float32)


def _eigenvalues(weight: Tensor, window: WindowShape | None, groups: int, precision: torch.dtype) -> np.ndarray | None:
    """As `eigenvalues`, with shapes as there; None as in `_gram_eigenvalues`."""
    matrices = as_matrices(weight, groups)
    scale = CONV_NORM if weight.ndim == 4 else 1.0
    return _gram_eigenvalues(matrices if window is None else windows(matrices, window), scale, precision)


def as_matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight as a stack of matrices, detached; a view if possible.

    Args:
        weight: Shape (rows, columns) or (out, in / groups, height, width), of any dtype.
        groups: Number of groups of the convolution.

    Returns:
        Shape (1, rows, columns) or (groups x height x width, out / groups, in / groups), of the same dtype.
    """
    weight = weight.detach()
    if weight.ndim == 4:
        out, inputs, height, width = weight.shape
        grouped = weight.reshape(groups, out // groups, inputs, height, width)  # inputs is in / groups
        return grouped.permute(0, 3, 4, 1, 2).reshape(-1, out // groups, inputs)
    return weight.unsqueeze(0)


def farms_window(rows: int, columns: int) -> WindowShape:
    """Shape of a matrix' square windows: the same for all but small matrices, so that their alphas can be compared."""
    side = max(1, min(WINDOW_SIDE, 3 * min(rows, columns) // 4))
    return side, side


def windows(matrices: Tensor, shape: WindowShape) -> Tensor:
    """Evenly spaced windows of each matrix.

    Args:
        matrices: Shape (count, rows, columns), of any dtype.
        shape: Rows and columns of a window; a side longer than the matrix is cut to it.

    Returns:
        Shape (windows per matrix x count, window rows, window columns), of the same dtype.

    Source: FARMS (arXiv 2506.06280). There, vision models have 9 x 9 windows of 100 x 100 entries, and the alphas of a
    convolution's kernel positions are averaged; here their eigenvalues are pooled.
    """
    height, width = (min(side, length) for side, length in zip(shape, matrices.shape[1:], strict=True))
    tops, lefts = _window_starts(matrices.shape[1], height), _window_starts(matrices.shape[2], width)
    return torch.cat([matrices[:, top : top + height, left : left + width] for top in tops for left in lefts])


def _window_starts(length: int, side: int) -> list[int]:
    """Index at which each window starts along one dimension of a matrix."""
    if length == side:
        return [0]
    count = int(np.clip(round(length / side), *WINDOWS_PER_SIDE))
    return sorted({round(start) for start in np.linspace(0, length - side, count)})


def gram(matrices: Tensor) -> Tensor:
    """W W^H or W^H W of each matrix W, whichever is smaller: the lower triangle; above it, some blocks remain 0.

    It is computed in float64, which autocast and torch's settings for float32 products (`set_float32_matmul_precision`,
    TF32) do not affect. Those settings are global, so they must not be changed here.

    Args:
        matrices: Shape (count, rows, columns), of any dtype.

    Returns:
        Shape (count, n, n) with n the smaller side, float64 or complex128.
    """
    rows, columns = matrices.shape[1:]
    a = matrices if rows <= columns else matrices.mH
    count, n, length = a.shape
    wide = torch.complex128 if a.is_complex() else torch.float64
    parts = ROW_BLOCKS if n >= LEAST_SPLIT else 1
    edges = [n * i // parts for i in range(parts + 1)]
    grams = torch.zeros(count, n, n, dtype=wide, device="cpu" if a.device.type == "mps" else a.device)
    step = max(LEAST_SPLIT, CHUNK // (count * n))
    for start in range(0, length, step):
        chunk = a[:, :, start : start + step].to(grams.device).to(wide)  # MPS has no float64
        for first, last in zip(edges, edges[1:], strict=False):
            grams[:, first:last, :last] += chunk[:, first:last] @ chunk[:, :last].mH
    return grams


def _gram_eigenvalues(matrices: Tensor, scale: float, precision: torch.dtype) -> np.ndarray | None:
    """The pooled eigenvalues of scale x Gram matrix, for matrices of shape (count, rows, columns).

    Shape (n,), float64, ascending; the solver has the given precision. None if that cannot hold them, or one is nan.
    """
    grams = gram(matrices)
    if scale != 1:
        grams *= scale
    trace = float(grams.diagonal(dim1=-2, dim2=-1).real.sum())
    lowest, highest = SAFE_TRACE if precision is torch.float32 else (0.0, math.inf)
    if not lowest <= trace < highest:  # also true for nan
        return None
    if precision is torch.float32:
        grams = grams.to(torch.complex64 if grams.is_complex() else torch.float32)
    eigs = _solved(grams).flatten().cpu().double().numpy()
    if len(grams) > 1:
        eigs = np.sort(eigs)
    return np.maximum(eigs, 0.0)


def _solved(grams: Tensor) -> Tensor:
    """Eigenvalues of Hermitian matrices, shape (count, n, n) -> (count, n); on the CPU if the device fails.

    cuSOLVER does not converge for some matrices, and a full GPU has no memory for it: both raise a RuntimeError.
    """
    try:
        return torch.linalg.eigvalsh(grams if grams.shape[-1] > SMALL else grams.cpu())
    except RuntimeError:
        return torch.linalg.eigvalsh(grams.cpu().to(torch.complex128 if grams.is_complex() else torch.float64))
