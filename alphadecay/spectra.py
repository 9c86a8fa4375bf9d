"""The eigenvalues of W W^T for a weight matrix, through its smaller Gram matrix."""

import math

import numpy as np
import torch
from torch import Tensor

CONV_NORM = 0.5  # published factor on the eigenvalues of a Conv2d
FLOAT64_BELOW = 1e-3  # float32 Gram eigenvalues smaller than this share of the largest lose accuracy
SAFE_TRACE = (1e-20, 1e30)  # outside this range float32 squares are near under- or overflow


class NonFiniteWeight(ValueError):
    """A weight that holds nan or inf."""


def eigenvalues(weight: Tensor, cut_index: int) -> np.ndarray:
    """Eigenvalues of W W^T or W^T W, whichever is smaller.

    A Conv2d weight (out, in, height, width) counts as one out x in matrix a kernel position, scaled by
    sqrt(CONV_NORM), and the eigenvalues of all positions are pooled. Half precision is analysed in float32.
    Where the eigenvalue at `cut_index` is below FLOAT64_BELOW of the largest, or half of them look like zeros,
    everything is done again in float64. Eigenvalues below that share are exact in float32 only relative to the
    largest one, which is all that norms and entropy need. Negative rounding noise comes back as 0.

    Args:
        weight: Shape (rows, columns) or (out, in, height, width), on any device.
        cut_index: Position in the ascending spectrum from which on the caller needs relative accuracy.

    Returns:
        Shape (n,), float64, ascending, none negative.

    Raises:
        NonFiniteWeight: If the weight holds a value that is not finite.
    """
    matrices = as_matrices(weight)
    if matrices.dtype is not torch.float64:
        found = _gram_eigenvalues(matrices.float())
        if found is not None and _good_enough(found, cut_index):
            return found
    found = _gram_eigenvalues(matrices.double())
    if found is None:
        raise NonFiniteWeight("the weight holds values that are not finite (nan or inf)")
    return found


def _good_enough(eigs: np.ndarray, cut_index: int) -> bool:
    """Whether float32 can tell the tail, and whether half of the eigenvalues are zero."""
    noise = len(eigs) * np.finfo(np.float32).eps * eigs[-1]
    return eigs[cut_index] >= FLOAT64_BELOW * eigs[-1] and eigs[(len(eigs) - 1) // 2] > noise


def as_matrices(weight: Tensor) -> Tensor:
    """A weight as a stack of matrices, shape (positions, rows, columns), detached; a view where possible."""
    weight = weight.detach()
    if weight.ndim == 4:
        out_channels, in_channels = weight.shape[:2]
        return weight.permute(2, 3, 0, 1).reshape(-1, out_channels, in_channels) * math.sqrt(CONV_NORM)
    return weight.unsqueeze(0)


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
