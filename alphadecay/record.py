"""The measures of one weight matrix."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Eigenvalues = npt.NDArray[np.float64]  # shape (n,), ascending, none negative


@dataclass(frozen=True)
class SpectrumRecord:
    """The measures of one weight matrix and its spectrum. They are None if it was not measured; `note` says why.

    The spectrum holds the eigenvalues of W W^T or W^T W, whichever is smaller: the squares of the weight's singular
    values. For a Conv2d it holds those of all kernel positions, times 0.5, as published; so its norms are those of the
    weight x sqrt(0.5).

    Attributes:
        name: The module's name in the plain model, without the parts that DistributedDataParallel or torch.compile add.
        role: What the module does in its block, such as attn.qkv.
        shape: Shape of the weight.
        parameters: Number of entries of the weight.
        eigenvalue_count: Length of the spectrum; 0 if the weight is not a Linear's, Conv1D's or Conv2d's.
        alpha: Exponent of the power law p(x) ~ x^-alpha fitted to the tail of the spectrum; above 1, without unit.
            Smaller means a heavier tail. With windows, it is of their pooled spectrum.
        alpha_hat: log(1 + exp(alpha x log10(largest eigenvalue))); above 0.
        spectral_norm: Largest singular value, in units of the weight.
        frobenius_norm: Root of the sum of all eigenvalues, in units of the weight.
        stable_rank: Sum of the eigenvalues / the largest, between 1 (one direction) and eigenvalue_count (even).
        entropy: -sum(p log p) / log(rank + 6e-5), p = eigenvalue / sum + 6e-5, about 0 (one direction) to 1 (even).
        ks_distance: Kolmogorov-Smirnov distance of the tail from the fit, 0 (perfect) to 1.
        alpha_error: Standard error of alpha, (alpha - 1) / sqrt(number of eigenvalues in the tail). It assumes
            independent eigenvalues, but eigenvalues repel each other, so alpha varies less from seed to seed.
        xmin: Eigenvalue at which the tail begins, in units of the weight squared.
        grad_norm: Frobenius norm of the weight's gradient; None without a gradient.
        note: Why the matrix is skipped or keeps its base decay; empty if it is adapted.

    Source: alpha is a Hill (1975) estimator, by default AlphaDecay's (arXiv 2506.14562, eq. 2) with the upper half of
    the spectrum as tail. The other measures are those of AlphaDecay's published program, but norms are not squared.

    Example:
        >>> import torch, alphadecay
        >>> record = alphadecay.analyze(torch.nn.Sequential(torch.nn.Linear(64, 128)))[0]
        >>> record.name, record.shape, record.eigenvalue_count, record.note
        ('0', (128, 64), 64, '')
        >>> 1 < record.alpha < 10 and 1 <= record.stable_rank <= 64
        True
    """

    name: str
    role: str
    shape: tuple[int, ...]
    parameters: int
    eigenvalue_count: int
    alpha: float | None = None
    alpha_hat: float | None = None
    spectral_norm: float | None = None
    frobenius_norm: float | None = None
    stable_rank: float | None = None
    entropy: float | None = None
    ks_distance: float | None = None
    alpha_error: float | None = None
    xmin: float | None = None
    grad_norm: float | None = None
    note: str = ""


Spectrum = tuple[SpectrumRecord, Eigenvalues]  # a record, and the eigenvalues to which the tail was fitted
