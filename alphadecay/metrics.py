"""Measures of a weight other than its tail exponent; `eigs` has shape (n,), float64, ascending."""

import math

import numpy as np

GRAD_TO_WEIGHT_EPS = 1e-8  # published constant
ENTROPY_EPS = 6e-5  # published constant: added to probabilities; smaller singular values do not count


def alpha_hat(alpha: float, largest_eigenvalue: float) -> float:
    """log(1 + exp(alpha x log10(largest eigenvalue))), as in the published program."""
    return float(np.logaddexp(0.0, alpha * math.log10(largest_eigenvalue)))


def spectral_norm(eigs: np.ndarray) -> float:
    """The largest singular value of the weight (the published program reports its square)."""
    return math.sqrt(eigs[-1])


def frobenius_norm(eigs: np.ndarray) -> float:
    """The Frobenius norm of the weight (the published program reports its square)."""
    return math.sqrt(eigs.sum())


def stable_rank(eigs: np.ndarray) -> float:
    """Sum of the eigenvalues / largest eigenvalue: between 1 and their number."""
    return float(eigs.sum() / eigs[-1])


def entropy(eigs: np.ndarray) -> float:
    """Entropy of the normalised spectrum / entropy of a uniform spectrum of the same rank, about 0 to 1.

    As in the published program: entropy = -sum(p log p) / log(rank + 6e-5) with p = eigenvalue / sum + 6e-5 and rank
    the number of singular values above 6e-5. With rank 0 or 1 the published quotient divides by a number near zero;
    here the entropy is then 0.
    """
    probabilities = eigs / eigs.sum() + ENTROPY_EPS
    rank = int((np.sqrt(eigs) > ENTROPY_EPS).sum())
    if rank <= 1:
        return 0.0
    return float(-(probabilities * np.log(probabilities)).sum() / math.log(rank + ENTROPY_EPS))


def grad_to_weight(grad_norm: float, spectral_norm: float) -> float:
    """Norm of the gradient / (largest eigenvalue of the weight + 1e-8), as in the published program."""
    return grad_norm / (spectral_norm**2 + GRAD_TO_WEIGHT_EPS)
