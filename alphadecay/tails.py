"""Fit a power law to the top of a spectrum."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class DegenerateSpectrum(ValueError):
    """A spectrum to which no power law can be fitted; the message says why."""


@dataclass(frozen=True)
class TailFit:
    """A power law p(x) ~ x**-alpha for x >= xmin."""

    alpha: float  # exponent, above 1; the smaller, the heavier the tail
    xmin: float  # smallest eigenvalue that counts as tail
    count: int  # eigenvalues in the tail, xmin included
    ks_distance: float  # largest gap between fitted and empirical distribution, in [0, 1]


def median_cut(count: int, xmin_pos: float) -> int:
    """Index into the ascending spectrum where the tail of the `median` fit begins."""
    return int(count / xmin_pos)


def fit_median(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """Fit the tail from index int(n / xmin_pos) on, as the published program does.

    alpha = 1 + k / sum(log(x / xmin)) over the k eigenvalues from the cut on, xmin being the first of them.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative.
        xmin_pos: Which share of the spectrum stays below the tail, as a divisor: 2 fits the upper half. Above 1.

    Raises:
        ValueError: If xmin_pos leaves no tail.
        DegenerateSpectrum: If the tail begins at zero or has no slope.

    Source: AlphaDecay (arXiv 2506.14562), eq. 2, as its program computes it: the cut value itself is counted
    and is the reference (the paper's formula refers to the next smaller eigenvalue). A Hill (1975) estimator.
    """
    if not xmin_pos > 1:
        raise ValueError(f"xmin_pos must be above 1, got {xmin_pos}")
    cut = median_cut(len(eigs), xmin_pos)
    tail, xmin = eigs[cut:], float(eigs[cut])
    if eigs[-1] == 0:
        raise DegenerateSpectrum("all weights are zero")
    if (zeros := count_zeros(eigs)) > cut:
        raise DegenerateSpectrum(f"{zeros} of {len(eigs)} eigenvalues are zero, the tail's first among them")
    logs = np.log(tail / xmin)
    if logs[-1] <= len(eigs) * np.finfo(np.float32).eps:
        raise DegenerateSpectrum("the tail's eigenvalues are all equal")
    alpha = 1 + len(tail) / float(logs.sum())
    return TailFit(alpha, xmin, len(tail), _ks_distance(tail, xmin, alpha))


def count_zeros(eigs: np.ndarray) -> int:
    """How many eigenvalues are zero: at most n x eps x the largest, the rounding noise of the solver."""
    return int((eigs <= len(eigs) * np.finfo(np.float64).eps * eigs[-1]).sum())


def _ks_distance(tail: np.ndarray, xmin: float, alpha: float) -> float:
    """Kolmogorov-Smirnov distance as published: the empirical distribution steps after each value."""
    empirical = np.arange(len(tail)) / len(tail)
    return float(np.abs(1 - (tail / xmin) ** (1 - alpha) - empirical).max())


FITS: dict[str, Callable[[np.ndarray, float], TailFit]] = {"median": fit_median}
