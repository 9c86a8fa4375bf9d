"""What was measured of one weight matrix."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Eigenvalues = npt.NDArray[np.float64]  # ascending, none negative


@dataclass(frozen=True)
class SpectrumRecord:
    """What the spectrum of one weight matrix says. Measures are None where nothing was measured; `note` says why.

    The spectrum holds the eigenvalues of W W^T or W^T W, whichever is smaller: the squares of the weight's singular
    values. Those of a Conv2d are of all its kernel positions together, times 0.5, as published; so its norms are
    those of the weight x sqrt(0.5).

    Attributes:
        name: The module, as in the plain model: without what DistributedDataParallel or torch.compile add.
        role: What the module does in its block, such as attn.qkv.
        shape: Of the weight.
        parameters: Number of entries of the weight.
        eigenvalue_count: Length of the spectrum; 0 where it is no Linear's, Conv1D's or Conv2d's weight.
        alpha: Exponent of the power law p(x) ~ x^-alpha fitted to the tail of the spectrum; above 1, without unit.
            Smaller means a heavier tail. With windows: of their pooled spectrum.
        alpha_hat: log(1 + exp(alpha x log10(largest eigenvalue))); above 0.
        spectral_norm: Largest singular value, in units of the weight.
        frobenius_norm: Root of the sum of all eigenvalues, in units of the weight.
        stable_rank: Sum of the eigenvalues / the largest, between 1 (one direction) and eigenvalue_count (even).
        entropy: -sum(p log p) / log(rank), p = eigenvalue / sum + 6e-5, about 0 (one direction) to 1 (even).
        ks_distance: Kolmogorov-Smirnov distance of the tail from the fit, 0 (perfect) to 1.
        alpha_error: Standard error of alpha, (alpha - 1) / sqrt(eigenvalues in the tail). Meant for independent
            eigenvalues: these repel each other, and from seed to seed alpha varies less.
        xmin: Eigenvalue at which the tail begins, in units of the weight squared.
        grad_norm: Frobenius norm of the weight's gradient; None where it has none.
        note: Why the matrix takes no part or keeps its base decay; empty when neither.

    Source: alpha is a Hill (1975) estimator, by default AlphaDecay's (arXiv 2506.14562, eq. 2) with the upper half of
    the spectrum as tail; the other measures are as the program published with it computes them, but norms are not
    squared.

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


Spectrum = tuple[SpectrumRecord, Eigenvalues]  # a record, and the eigenvalues that were fitted
