"""Measures of a weight other than its tail exponent."""

import math

import numpy as np

GRAD_TO_WEIGHT_EPS = 1e-8  # published constant
ENTROPY_EPS = 6e-5  # published constant: added to probabilities, and the smallest singular value that counts


def alpha_hat(alpha: float, largest_eigenvalue: float) -> float:
    """log(1 + exp(alpha x log10(largest eigenvalue))), as the published program has it."""
    return float(np.logaddexp(0.0, alpha * math.log10(largest_eigenvalue)))


def spectral_norm(eigs: np.ndarray) -> float:
    """The largest singular value of the weight (the published program reports its square)."""
    return math.sqrt(eigs[-1])


def frobenius_norm(eigs: np.ndarray) -> float:
    """The Frobenius norm of the weight (the published program reports its square)."""
    return math.sqrt(eigs.sum())


def stable_rank(eigs: np.ndarray) -> float:
    """Sum of the eigenvalues over the largest: between 1 and their number."""
    return float(eigs.sum() / eigs[-1])


def entropy(eigs: np.ndarray) -> float:
    """Entropy of the normalised spectrum over that of an even one of the same rank, about 0 to 1.

    p = eigenvalue / sum + 6e-5, entropy = -sum(p log p) / log(rank + 6e-5), rank counting singular values
    above 6e-5, as the published program has it. A spectrum of rank 1 or less has entropy 0 here; there the
    published quotient divides by a number near zero.
    """
    probabilities = eigs / eigs.sum() + ENTROPY_EPS
    rank = int((np.sqrt(eigs) > ENTROPY_EPS).sum())
    if rank <= 1:
        return 0.0
    return float(-(probabilities * np.log(probabilities)).sum() / math.log(rank + ENTROPY_EPS))


def grad_to_weight(grad_norm: float, spectral_norm: float) -> float:
    """Norm of the gradient over the weight's largest eigenvalue + 1e-8, as the published program has it."""
    return grad_norm / (spectral_norm**2 + GRAD_TO_WEIGHT_EPS)
