"""Fit a power law to the top of a spectrum."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FINGER_BINS = 100  # of the histogram of log10 eigenvalues, as published
FINGER_WINDOW = (0.95, 1.5)  # times the histogram's peak: range in which the tail may start, as published
BLOCK = 64  # tail starts compared at a time, to limit memory


class DegenerateSpectrum(ValueError):
    """No power law can be fitted to the spectrum; the message says why."""


@dataclass(frozen=True)
class TailFit:
    """A power law p(x) ~ x**-alpha for x >= xmin (Clauset, Shalizi and Newman, arXiv 0706.1062)."""

    alpha: float  # exponent, above 1; a smaller alpha means a heavier tail
    xmin: float  # reference eigenvalue of the fit
    count: int  # eigenvalues in the tail
    ks_distance: float  # largest difference between the fitted and the empirical distribution, in [0, 1]
    margin: float = math.inf  # KS distance of the second best start minus this one; inf if no start was searched

    @property
    def alpha_error(self) -> float:
        """Standard error of alpha, (alpha - 1) / sqrt(count), for independent draws.

        Eigenvalues repel each other, so from seed to seed alpha varies less (at initialisation by a tenth of it).

        Source: Clauset, Shalizi and Newman (2009), eq. 3.2.
        """
        return (self.alpha - 1) / math.sqrt(self.count)


def median_cut(count: int, xmin_pos: float) -> int:
    """Index of the ascending spectrum at which the tail of the `median` fit starts."""
    return int(count / xmin_pos)


def fit_median(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """Fit the tail from index int(n / xmin_pos) on, as the published program does.

    alpha = 1 + k / sum(log(x / xmin)) over the k eigenvalues of the tail; xmin is the smallest of them.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative.
        xmin_pos: The spectrum's smallest n / xmin_pos eigenvalues are below the tail: 2 fits the upper half. Above 1.

    Raises:
        ValueError: If xmin_pos is not above 1.
        DegenerateSpectrum: If the tail starts at zero or its eigenvalues are all equal.

    Source: AlphaDecay (arXiv 2506.14562), eq. 2, as its program computes it: xmin is in the tail, while in the paper's
    formula it is the next smaller eigenvalue. A Hill (1975) estimator.
    """
    if not xmin_pos > 1:
        raise ValueError(f"xmin_pos must be above 1, got {xmin_pos}")
    cut = median_cut(len(eigs), xmin_pos)
    return _fit_from(eigs, cut, cut)


def fit_paper(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """Fit the k = n // 2 largest eigenvalues, with the next smaller one as xmin, as the paper's formula does.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative.
        xmin_pos: Ignored; see `FITS`.

    Raises:
        DegenerateSpectrum: If xmin is zero, or the tail's eigenvalues are all equal.

    Source: AlphaDecay (arXiv 2506.14562), eq. 2. alpha is smaller than that of `fit_median` by about 1 / k.
    """
    cut = len(eigs) - len(eigs) // 2
    return _fit_from(eigs, cut, max(0, cut - 1))


def _fit_from(eigs: np.ndarray, cut: int, reference: int) -> TailFit:
    """The Hill fit (1975) of eigs, shape (n,), from index `cut` on, with xmin = eigs[reference].

    alpha = 1 + k / sum of log(x / xmin) over the k eigenvalues x of the tail.
    """
    tail, xmin = eigs[cut:], float(eigs[reference])
    _require_positive(eigs, reference)
    if not len(tail):
        raise DegenerateSpectrum("one eigenvalue has no tail")
    logs = np.log(tail / xmin)
    if logs[-1] <= _equal_within(eigs):
        raise DegenerateSpectrum("the tail's eigenvalues are all equal")
    alpha = 1 + len(tail) / float(logs.sum())
    return TailFit(alpha, xmin, len(tail), _ks_distance(tail, xmin, alpha))


def fit_goodness(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """Fit a tail from each eigenvalue except the largest on, and return the fit with the smallest KS distance.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative. Zeros are left out.
        xmin_pos: Ignored; see `FITS`.

    Raises:
        DegenerateSpectrum: If there are fewer than two different eigenvalues.

    Source: Clauset, Shalizi and Newman (2009), as the published program's `goodness-of-fit` computes it.
    """
    return _best_start(eigs, _zeros(eigs), len(eigs) - 1)


def fit_finger(eigs: np.ndarray, xmin_pos: float = 2.0, lower_as_published: bool = True) -> TailFit:
    """As `fit_goodness`, but the tail may only start near the peak of the histogram of log10 eigenvalues.

    The published program compares the logarithm of the range's lower end with eigenvalues, so that the range often has
    no lower end, and alpha depends on the weights' scale. `fix-finger` does the same, to match it;
    `fix-finger-corrected` compares eigenvalues with eigenvalues.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative. Zeros are left out.
        xmin_pos: Ignored; see `FITS`.
        lower_as_published: Whether to compare with the logarithm, as published.

    Raises:
        DegenerateSpectrum: If there are fewer than two different eigenvalues, or the range contains no start.

    Source: TempBalance's `xmin_peak` rule, as the published program's `fix-finger` computes it.
    """
    zeros = _zeros(eigs)
    counts, edges = np.histogram(np.log10(eigs[zeros:]), bins=FINGER_BINS)
    peak = 10 ** edges[np.argmax(counts)]
    lowest = FINGER_WINDOW[0] * peak
    if lower_as_published:
        lowest = math.log10(lowest)
    first = max(zeros, int(np.searchsorted(eigs, lowest, side="left")))
    last = min(len(eigs) - 1, int(np.searchsorted(eigs, FINGER_WINDOW[1] * peak, side="right")))
    return _best_start(eigs, first, last)


def fit_finger_corrected(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """As `fit_finger`, but the range's lower end itself is compared with eigenvalues, not its logarithm."""
    return fit_finger(eigs, xmin_pos, lower_as_published=False)


def _best_start(eigs: np.ndarray, first: int, last: int) -> TailFit:
    """The fit with the smallest KS distance of tails from index `first` to `last` - 1 on; the first one if several do.

    alpha as in `fit_median`; eigs has shape (n,), ascending.
    """
    starts = np.arange(first, last)
    if not len(starts):
        raise DegenerateSpectrum("no eigenvalue is in the range where the tail may start")
    logs = np.log(eigs[first:])
    log_sums = np.cumsum(logs[::-1])[::-1][: len(starts)]  # sum of the logarithms from each start on
    counts = len(eigs) - starts
    sloped = logs[-1] - logs[: len(starts)] > _equal_within(eigs)
    if not sloped[0]:
        raise DegenerateSpectrum("the tail's eigenvalues are all equal")
    starts, counts, start_logs = starts[sloped], counts[sloped], logs[: len(sloped)][sloped]
    alphas = 1 + counts / (log_sums[sloped] - counts * start_logs)
    distances = _ks_distances(logs, starts - first, alphas)
    best = int(np.argmin(distances))
    others = np.delete(distances, best)
    margin = float(others.min() - distances[best]) if len(others) else math.inf
    xmin = float(eigs[starts[best]])
    return TailFit(float(alphas[best]), xmin, int(counts[best]), float(distances[best]), margin)


def _ks_distances(logs: np.ndarray, starts: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """`_ks_distance` of the fit from each start on.

    Args:
        logs: Logarithms of eigenvalues, shape (n,), ascending.
        starts: Indices into logs, shape (m,), ascending.
        alphas: Exponent of the fit from each start on, shape (m,).

    Returns:
        Shape (m,), float64.
    """
    distances = np.empty(len(starts))
    indices = np.arange(len(logs))
    for begin in range(0, len(starts), BLOCK):
        block = slice(begin, begin + BLOCK)
        lowest = starts[begin]
        start, slope = starts[block, None], (1 - alphas[block])[:, None]  # (starts in the block, 1)
        preceding = indices[None, lowest:] - start  # how many values of the tail are before each one
        gaps = (logs[None, lowest:] - logs[start]) * slope  # (starts in the block, values from `lowest` on)
        np.minimum(gaps, 0.0, out=gaps)  # exp would overflow below the start, where nothing is compared
        np.exp(gaps, out=gaps)
        gaps += preceding / (len(logs) - start)
        gaps -= 1
        np.abs(gaps, out=gaps)
        gaps[preceding < 0] = 0
        distances[block] = gaps.max(axis=1)
    return distances


def count_zeros(eigs: np.ndarray) -> int:
    """Number of eigenvalues, shape (n,), ascending, that are zero: at most n x eps x the largest (solver noise)."""
    return int((eigs <= len(eigs) * np.finfo(np.float64).eps * eigs[-1]).sum())


def _zeros(eigs: np.ndarray) -> int:
    """`count_zeros`, or DegenerateSpectrum if fewer than two eigenvalues remain."""
    zeros = count_zeros(eigs)
    _require_positive(eigs, min(zeros, len(eigs) - 1))
    if len(eigs) - zeros < 2:
        raise DegenerateSpectrum("one eigenvalue has no tail")
    return zeros


def _require_positive(eigs: np.ndarray, reference: int) -> None:
    if eigs[-1] == 0:
        raise DegenerateSpectrum("all weights are zero")
    if (zeros := count_zeros(eigs)) > reference:
        raise DegenerateSpectrum(f"{zeros} of {len(eigs)} eigenvalues are zero, also the one at which the tail starts")


def _equal_within(eigs: np.ndarray) -> float:
    """Difference of logarithms that rounding alone can cause."""
    return len(eigs) * float(np.finfo(np.float32).eps)


def _ks_distance(tail: np.ndarray, xmin: float, alpha: float) -> float:
    """Kolmogorov-Smirnov distance of a tail, shape (k,), ascending, as AlphaDecay (arXiv 2506.14562) computes it.

    max |1 - (x / xmin)^(1 - alpha) - i / k| over the tail: the empirical distribution steps after each value.
    """
    empirical = np.arange(len(tail)) / len(tail)
    return float(np.abs(1 - (tail / xmin) ** (1 - alpha) - empirical).max())


# All fits have the arguments (eigenvalues, xmin_pos), so that they can be exchanged; only `median` uses xmin_pos.
FITS: dict[str, Callable[[np.ndarray, float], TailFit]] = {
    "median": fit_median,
    "paper": fit_paper,
    "goodness-of-fit": fit_goodness,
    "fix-finger": fit_finger,
    "fix-finger-corrected": fit_finger_corrected,
}
# Fits that depend on the smallest eigenvalues too, which the float32 solver computes inaccurately.
LOOK_AT_SMALLEST = frozenset({"fix-finger", "fix-finger-corrected"})
