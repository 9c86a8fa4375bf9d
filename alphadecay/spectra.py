"""The eigenvalues of W W^T for a weight matrix, through its smaller Gram matrix; whole, or in square windows."""

import math

import numpy as np
import torch
from torch import Tensor

CONV_NORM = 0.5  # published factor on the eigenvalues of a Conv2d
SAFE_TRACE = (1e-20, 1e30)  # outside this range float32 squares are near under- or overflow
WINDOW_SIDE = 64  # of FARMS windows; of a matrix not much larger, three quarters of its smaller side
WINDOWS_A_SIDE = (3, 9)  # fewest and most, where the side is longer than the window
ROW_BLOCKS, LEAST_SPLIT = 4, 128  # a Gram matrix is symmetric: in blocks of rows, 5/8 of its products do
CHUNK = 2**18  # entries of a weight that are held in float64 at once, about
WindowShape = tuple[int, int]


class NonFiniteWeight(ValueError):
    """A weight that holds nan or inf."""


def eigenvalues(weight: Tensor, window: WindowShape | None = None, groups: int = 1) -> np.ndarray:
    """Eigenvalues of W W^H or W^H W, whichever is smaller, or those of its windows, pooled; computed in float64.

    A Conv2d weight (out, in / groups, height, width) counts as one (out / groups) x (in / groups) matrix a group and
    kernel position, scaled by sqrt(CONV_NORM), and the eigenvalues of all are pooled. Negative rounding noise comes
    back as 0.

    Args:
        weight: Shape (rows, columns) or (out, in / groups, height, width), on any device, in any precision, real or
            complex.
        window: Shape of the windows (see `windows`), or None for the whole matrix.
        groups: Of the convolution.

    Returns:
        Shape (n,), float64, ascending, none negative.

    Raises:
        NonFiniteWeight: If the weight holds a value that is not finite, or one whose square is not.
    """
    found = _eigenvalues(weight, window, groups, torch.float64)
    if found is None:
        if bool(torch.isfinite(weight.detach()).all()):
            raise NonFiniteWeight(
                f"its entries, up to {float(weight.detach().abs().max()):.1e}, have no finite squares"
            )
        raise NonFiniteWeight("the weight holds values that are not finite (nan or inf)")
    return found


def quick_eigenvalues(weight: Tensor, window: WindowShape | None = None, groups: int = 1) -> np.ndarray | None:
    """`eigenvalues` by a solver in float32, exact relative to the largest: small ones lose accuracy.

    None where float32 cannot hold the squares, values are not finite, or the weight itself is in float64.
    """
    wide = weight.dtype in (torch.float64, torch.complex128)
    return None if wide else _eigenvalues(weight, window, groups, torch.float32)


def _eigenvalues(weight: Tensor, window: WindowShape | None, groups: int, precision: torch.dtype) -> np.ndarray | None:
    matrices = as_matrices(weight, groups)
    scale = CONV_NORM if weight.ndim == 4 else 1.0
    return _gram_eigenvalues(matrices if window is None else windows(matrices, window), scale, precision)


def as_matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """A weight as a stack of matrices, shape (groups x positions, rows, columns), detached; a view where possible."""
    weight = weight.detach()
    if weight.ndim == 4:
        out, inputs, height, width = weight.shape
        grouped = weight.reshape(groups, out // groups, inputs, height, width)
        return grouped.permute(0, 3, 4, 1, 2).reshape(-1, out // groups, inputs)
    return weight.unsqueeze(0)


def farms_window(rows: int, columns: int) -> WindowShape:
    """The square window of a matrix: the same for all but small ones, so that their exponents can be compared."""
    side = max(1, min(WINDOW_SIDE, 3 * min(rows, columns) // 4))
    return side, side


def windows(matrices: Tensor, shape: WindowShape) -> Tensor:
    """Windows of matrices, evenly spaced over each.

    Args:
        matrices: Shape (positions, rows, columns).
        shape: Rows and columns of a window; a side longer than the matrix is cut to it.

    Returns:
        Shape (positions x windows, window rows, window columns).

    Source: FARMS (arXiv 2506.06280). There the windows are 100 x 100 in vision, 9 x 9 of them; the exponents of
    a convolution's positions are averaged, here their eigenvalues are pooled.
    """
    height, width = (min(side, length) for side, length in zip(shape, matrices.shape[1:], strict=True))
    tops, lefts = _places(matrices.shape[1], height), _places(matrices.shape[2], width)
    return torch.cat([matrices[:, top : top + height, left : left + width] for top in tops for left in lefts])


def _places(length: int, side: int) -> list[int]:
    """Where windows begin along a side."""
    if length == side:
        return [0]
    count = int(np.clip(round(length / side), *WINDOWS_A_SIDE))
    return sorted({round(place) for place in np.linspace(0, length - side, count)})


def gram(matrices: Tensor) -> Tensor:
    """The lower triangles of W W^H or W^H W, whichever is smaller; above them, blocks are left at 0.

    In float64: products of that type are out of reach of autocast and of torch's settings for float32 products
    (`set_float32_matmul_precision`, TF32), which are global and so may not be touched here.

    Args:
        matrices: Shape (count, rows, columns), of any type.

    Returns:
        Shape (count, n, n) with n the smaller side, in float64 or complex128.
    """
    rows, columns = matrices.shape[1:]
    a = matrices if rows <= columns else matrices.mH
    count, n, length = a.shape
    wide = torch.complex128 if a.is_complex() else torch.float64
    parts = ROW_BLOCKS if n >= LEAST_SPLIT else 1
    edges = [n * i // parts for i in range(parts + 1)]
    found = torch.zeros(count, n, n, dtype=wide, device="cpu" if a.device.type == "mps" else a.device)
    step = max(LEAST_SPLIT, CHUNK // (count * n))
    for start in range(0, length, step):
        chunk = a[:, :, start : start + step].to(found.device).to(wide)  # mps has no float64
        for first, last in zip(edges, edges[1:], strict=False):
            found[:, first:last, :last] += chunk[:, first:last] @ chunk[:, :last].mH
    return found


def _gram_eigenvalues(matrices: Tensor, scale: float, precision: torch.dtype) -> np.ndarray | None:
    """Pooled ascending eigenvalues, solved for in the given precision; None where that precision cannot hold them."""
    grams = gram(matrices)
    if scale != 1:
        grams *= scale
    trace = float(grams.diagonal(dim1=-2, dim2=-1).real.sum())
    lowest, highest = SAFE_TRACE if precision is torch.float32 else (0.0, math.inf)
    if not lowest <= trace < highest:  # also true for nan
        return None
    if precision is torch.float32:
        grams = grams.to(torch.complex64 if grams.is_complex() else torch.float32)
    found = torch.linalg.eigvalsh(grams).flatten().cpu().double().numpy()
    if len(grams) > 1:
        found = np.sort(found)
    return np.maximum(found, 0.0)
