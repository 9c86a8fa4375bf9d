"""The eigenvalues of W W^T for a weight matrix, through its smaller Gram matrix; whole, or in square windows."""

import math

import numpy as np
import torch
from torch import Tensor

CONV_NORM = 0.5  # published factor on the eigenvalues of a Conv2d
SAFE_TRACE = (1e-20, 1e30)  # outside this range float32 squares are near under- or overflow
WINDOW_SIDE = 64  # of FARMS windows; of a matrix not much larger, three quarters of its smaller side
WINDOWS_A_SIDE = (3, 9)  # fewest and most, where the side is longer than the window
WindowShape = tuple[int, int]


class NonFiniteWeight(ValueError):
    """A weight that holds nan or inf."""


def eigenvalues(weight: Tensor, window: WindowShape | None = None) -> np.ndarray:
    """Eigenvalues of W W^T or W^T W, whichever is smaller, or those of its windows, pooled; computed in float64.

    A Conv2d weight (out, in, height, width) counts as one out x in matrix a kernel position, scaled by
    sqrt(CONV_NORM), and the eigenvalues of all positions are pooled. Negative rounding noise comes back as 0.

    Args:
        weight: Shape (rows, columns) or (out, in, height, width), on any device, in any precision.
        window: Shape of the windows (see `windows`), or None for the whole matrix.

    Returns:
        Shape (n,), float64, ascending, none negative.

    Raises:
        NonFiniteWeight: If the weight holds a value that is not finite.
    """
    found = _eigenvalues(weight, window, torch.float64)
    if found is None:
        raise NonFiniteWeight("the weight holds values that are not finite (nan or inf)")
    return found


def quick_eigenvalues(weight: Tensor, window: WindowShape | None = None) -> np.ndarray | None:
    """`eigenvalues` computed in float32, exact relative to the largest: small ones lose accuracy.

    None where float32 cannot hold the squares, values are not finite, or the weight itself is in float64.
    """
    return None if weight.dtype is torch.float64 else _eigenvalues(weight, window, torch.float32)


def _eigenvalues(weight: Tensor, window: WindowShape | None, precision: torch.dtype) -> np.ndarray | None:
    matrices = as_matrices(weight).to(precision)
    return _gram_eigenvalues(matrices if window is None else windows(matrices, window))


def as_matrices(weight: Tensor) -> Tensor:
    """A weight as a stack of matrices, shape (positions, rows, columns), detached; a view where possible."""
    weight = weight.detach()
    if weight.ndim == 4:
        out_channels, in_channels = weight.shape[:2]
        return weight.permute(2, 3, 0, 1).reshape(-1, out_channels, in_channels) * math.sqrt(CONV_NORM)
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


def window_count(rows: int, columns: int, shape: WindowShape) -> int:
    """How many windows of a shape a matrix has."""
    return len(_places(rows, min(shape[0], rows))) * len(_places(columns, min(shape[1], columns)))


def _gram_eigenvalues(matrices: Tensor) -> np.ndarray | None:
    """Pooled ascending Gram eigenvalues in the given precision; None where that precision cannot hold them."""
    transposed = matrices.mT
    wide = matrices.shape[1] < matrices.shape[2]
    grams = matrices @ transposed if wide else transposed @ matrices
    trace = float(grams.diagonal(dim1=-2, dim2=-1).sum())
    lowest, highest = SAFE_TRACE if matrices.dtype is torch.float32 else (0.0, math.inf)
    if not lowest <= trace < highest:  # also true for nan
        return None
    found = torch.linalg.eigvalsh(grams).flatten().cpu().double().numpy()
    if len(grams) > 1:
        found = np.sort(found)
    return np.maximum(found, 0.0)
