"""Fit a power law to the top of a spectrum."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FINGER_BINS = 100  # of the histogram of log10 eigenvalues, as published
FINGER_WINDOW = (0.95, 1.5)  # of its peak: where the tail may begin, as published
BLOCK = 64  # tail starts compared at once: bounds the memory of a scan


class DegenerateSpectrum(ValueError):
    """A spectrum to which no power law can be fitted; the message says why."""


@dataclass(frozen=True)
class TailFit:
    """A power law p(x) ~ x**-alpha for x >= xmin."""

    alpha: float  # exponent, above 1; the smaller, the heavier the tail
    xmin: float  # eigenvalue that the tail's others are compared with
    count: int  # eigenvalues in the tail
    ks_distance: float  # largest gap between fitted and empirical distribution, in [0, 1]
    margin: float = math.inf  # by how much the next best place to begin fits worse; inf where the place was given

    @property
    def alpha_error(self) -> float:
        """Standard error of alpha, (alpha - 1) / sqrt(count).

        For independent draws: eigenvalues repel each other, and from seed to seed alpha varies less (at
        initialisation about a tenth of it).
        """
        return (self.alpha - 1) / math.sqrt(self.count)


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
    return _fit_from(eigs, cut, cut)


def fit_paper(eigs: np.ndarray, xmin_pos: float = 2.0) -> TailFit:
    """Fit the k = n // 2 largest eigenvalues, compared with the next smaller one, as the paper's formula has it.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative.
        xmin_pos: Has no effect: the paper takes half.

    Raises:
        DegenerateSpectrum: If the reference is zero, or the tail has no slope.

    Source: AlphaDecay (arXiv 2506.14562), eq. 2. alpha is smaller than that of `fit_median` by about 1 / k.
    """
    cut = len(eigs) - len(eigs) // 2
    return _fit_from(eigs, cut, max(0, cut - 1))


def _fit_from(eigs: np.ndarray, cut: int, reference: int) -> TailFit:
    """The Hill fit of the eigenvalues from index `cut` on, xmin being the one at `reference`."""
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
    """Fit the tail from every eigenvalue but the largest on, and keep the fit with the smallest KS distance.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative. Zeros are left out.
        xmin_pos: Has no effect: the place is searched for.

    Raises:
        DegenerateSpectrum: If there are fewer than two different eigenvalues.

    Source: Clauset, Shalizi and Newman (2009), as the published program's `goodness-of-fit` computes it.
    """
    return _best_start(eigs, _zeros(eigs), len(eigs) - 1)


def fit_finger(eigs: np.ndarray, xmin_pos: float = 2.0, lower_as_published: bool = True) -> TailFit:
    """As `fit_goodness`, but the tail may only begin near the peak of the histogram of log10 eigenvalues.

    The published program compares the logarithm of the window's lower end with eigenvalues themselves, so that
    often there is no lower end, and alpha depends on the weights' scale. That is kept for parity;
    `fix-finger-corrected` compares like with like.

    Args:
        eigs: Eigenvalues, shape (n,), ascending, none negative. Zeros are left out.
        xmin_pos: Has no effect.
        lower_as_published: Whether to keep the published comparison.

    Raises:
        DegenerateSpectrum: If there are fewer than two different eigenvalues, or none to begin at in the window.

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
    """`fit_finger` with the window's lower end compared with eigenvalues, not with their logarithms."""
    return fit_finger(eigs, xmin_pos, lower_as_published=False)


def _best_start(eigs: np.ndarray, first: int, last: int) -> TailFit:
    """The fit with the smallest KS distance among tails that begin at `first` to `last` - 1, the first of equals."""
    starts = np.arange(first, last)
    if not len(starts):
        raise DegenerateSpectrum("no eigenvalue lies where the tail may begin")
    logs = np.log(eigs[first:])
    above = np.cumsum(logs[::-1])[::-1][: len(starts)]  # sum of the logarithms from each start on
    counts = len(eigs) - starts
    sloped = logs[-1] - logs[: len(starts)] > _equal_within(eigs)
    if not sloped[0]:
        raise DegenerateSpectrum("the tail's eigenvalues are all equal")
    starts, counts, own = starts[sloped], counts[sloped], logs[: len(sloped)][sloped]
    alphas = 1 + counts / (above[sloped] - counts * own)
    distances = _ks_distances(logs, starts - first, alphas)
    best = int(np.argmin(distances))
    others = np.delete(distances, best)
    margin = float(others.min() - distances[best]) if len(others) else math.inf
    xmin = float(eigs[starts[best]])
    return TailFit(float(alphas[best]), xmin, int(counts[best]), float(distances[best]), margin)


def _ks_distances(logs: np.ndarray, starts: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """KS distance of the fit from each start on; logs are ascending, starts too."""
    distances = np.empty(len(starts))
    places = np.arange(len(logs))
    for begin in range(0, len(starts), BLOCK):
        block = slice(begin, begin + BLOCK)
        lowest = starts[begin]
        start, slope = starts[block, None], (1 - alphas[block])[:, None]
        behind = places[None, lowest:] - start  # how many of the tail come before each value
        gaps = (logs[None, lowest:] - logs[start]) * slope
        np.minimum(gaps, 0.0, out=gaps)  # below the start, where nothing is compared, exp would overflow
        np.exp(gaps, out=gaps)
        gaps += behind / (len(logs) - start)
        gaps -= 1
        np.abs(gaps, out=gaps)
        gaps[behind < 0] = 0
        distances[block] = gaps.max(axis=1)
    return distances


def count_zeros(eigs: np.ndarray) -> int:
    """How many eigenvalues are zero: at most n x eps x the largest, the rounding noise of the solver."""
    return int((eigs <= len(eigs) * np.finfo(np.float64).eps * eigs[-1]).sum())


def _zeros(eigs: np.ndarray) -> int:
    """`count_zeros`, or DegenerateSpectrum if they leave fewer than two eigenvalues."""
    zeros = count_zeros(eigs)
    _require_positive(eigs, min(zeros, len(eigs) - 1))
    if len(eigs) - zeros < 2:
        raise DegenerateSpectrum("one eigenvalue has no tail")
    return zeros


def _require_positive(eigs: np.ndarray, reference: int) -> None:
    if eigs[-1] == 0:
        raise DegenerateSpectrum("all weights are zero")
    if (zeros := count_zeros(eigs)) > reference:
        raise DegenerateSpectrum(f"{zeros} of {len(eigs)} eigenvalues are zero, the tail's first among them")


def _equal_within(eigs: np.ndarray) -> float:
    """Difference of logarithms that rounding alone can make."""
    return len(eigs) * float(np.finfo(np.float32).eps)


def _ks_distance(tail: np.ndarray, xmin: float, alpha: float) -> float:
    """Kolmogorov-Smirnov distance as published: the empirical distribution steps after each value."""
    empirical = np.arange(len(tail)) / len(tail)
    return float(np.abs(1 - (tail / xmin) ** (1 - alpha) - empirical).max())


FITS: dict[str, Callable[[np.ndarray, float], TailFit]] = {
    "median": fit_median,
    "paper": fit_paper,
    "goodness-of-fit": fit_goodness,
    "fix-finger": fit_finger,
    "fix-finger-corrected": fit_finger_corrected,
}
# Fits that look at the smallest eigenvalues too, which float32 does not give.
LOOK_AT_SMALLEST = frozenset({"fix-finger", "fix-finger-corrected"})
