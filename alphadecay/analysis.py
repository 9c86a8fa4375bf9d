"""From a model to one record a weight matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import nn

from alphadecay import metrics, tails
from alphadecay.matrices import MIN_EIGENVALUES, Matrix, find_matrices
from alphadecay.spectra import NonFiniteWeight, eigenvalues


@dataclass(frozen=True)
class SpectrumRecord:
    """What the spectrum of one weight says. Measures are None where nothing was measured; `note` says why."""

    name: str  # module, as in the plain model
    role: str  # what it does in its block, such as attn.qkv
    shape: tuple[int, ...]  # of the weight
    parameters: int  # entries of the weight
    eigenvalue_count: int
    alpha: float | None = None  # exponent of the tail, above 1; smaller means heavier
    alpha_hat: float | None = None  # log(1 + exp(alpha x log10(largest eigenvalue)))
    spectral_norm: float | None = None  # largest singular value
    frobenius_norm: float | None = None
    stable_rank: float | None = None  # between 1 and eigenvalue_count
    entropy: float | None = None  # of the spectrum, about 0 (one direction) to 1 (even)
    ks_distance: float | None = None  # of the fit, 0 (perfect) to 1
    xmin: float | None = None  # smallest eigenvalue counted as tail
    note: str = ""  # why it takes no part or keeps its base decay; empty when neither


# Scores that an adaptive decay can be steered by. The squares are what the published program calls fnorm and
# spectral_norm.
SCORES: dict[str, Callable[[SpectrumRecord], float | None]] = {
    "alpha": lambda record: record.alpha,
    "alpha_hat": lambda record: record.alpha_hat,
    "spectral_norm": lambda record: record.spectral_norm,
    "largest_eigenvalue": lambda record: None if record.spectral_norm is None else record.spectral_norm**2,
    "frobenius_norm": lambda record: record.frobenius_norm,
    "squared_frobenius_norm": lambda record: None if record.frobenius_norm is None else record.frobenius_norm**2,
    "stable_rank": lambda record: record.stable_rank,
    "entropy": lambda record: record.entropy,
}


def analyze(
    model: nn.Module,
    fit: str = "median",
    xmin_pos: float = 2.0,
    window: str | None = None,
    *,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    process_group: Any = None,
) -> list[SpectrumRecord]:
    """Measure the spectrum of each weight matrix of a model, in the model's order.

    Matrices that stay out (stem, head, embeddings, tied, frozen, short spectra ...) come with the reason in
    `note` and no measures. A spectrum of which half is zero comes with its measures and a note.

    Args:
        model: Any module, also inside DistributedDataParallel or torch.compile.
        fit: How the tail is found; one of `alphadecay.tails.FITS`.
        xmin_pos: For `median`: the tail begins at index int(n / xmin_pos) of the ascending spectrum. Above 1.
        window: None: the whole matrix. (Shape-fair windows are not implemented yet.)
        exclude: Globs over module names that stay out, such as "blocks.0.*".
        include: "stem", "head" or both: they take part as well.
        min_eigenvalues: Matrices with fewer stay out.
        process_group: Ranks that hold the same model and share the work; all of them must call. Does not
            affect the result. None: this process does everything.

    Raises:
        ValueError: For an unknown fit, a glob that matches nothing, or a weight that is not finite (named).
    """
    if fit not in tails.FITS:
        raise ValueError(f"fit={fit!r} is unknown; choose from {', '.join(tails.FITS)}")
    if window is not None:
        raise ValueError(f"window={window!r} is unknown; choose None")
    if not xmin_pos > 1:
        raise ValueError(f"xmin_pos must be above 1, got {xmin_pos}")
    matrices = find_matrices(model, exclude, min_eigenvalues, include)
    measured = _measure_shared([m for m in matrices if not m.reason], fit, xmin_pos, process_group)
    return [record_without_measures(m, m.reason) if m.reason else measured[m.name] for m in matrices]


def measure(matrix: Matrix, fit: str, xmin_pos: float) -> SpectrumRecord:
    """The record of one matrix that takes part.

    Raises:
        NonFiniteWeight: If the weight is not finite, with the matrix named.
    """
    cut = tails.median_cut(matrix.eigenvalue_count, xmin_pos)
    try:
        eigs = eigenvalues(matrix.weight, cut)
    except NonFiniteWeight as error:
        raise NonFiniteWeight(f"{matrix.name} {tuple(matrix.weight.shape)}: {error}") from error
    tail, note = None, ""
    try:
        tail = tails.FITS[fit](eigs, xmin_pos)
        zeros = tails.count_zeros(eigs)
        if 2 * zeros >= len(eigs):  # a fit can just exist, but it is one to half a spectrum
            note = f"{zeros} of {len(eigs)} eigenvalues are zero"
    except tails.DegenerateSpectrum as degenerate:
        note = str(degenerate)
    zero = eigs[-1] == 0
    return replace(
        record_without_measures(matrix, note),
        alpha=tail.alpha if tail else None,
        alpha_hat=metrics.alpha_hat(tail.alpha, eigs[-1]) if tail else None,
        spectral_norm=metrics.spectral_norm(eigs),
        frobenius_norm=metrics.frobenius_norm(eigs),
        stable_rank=None if zero else metrics.stable_rank(eigs),
        entropy=None if zero else metrics.entropy(eigs),
        ks_distance=tail.ks_distance if tail else None,
        xmin=tail.xmin if tail else None,
    )


def record_without_measures(matrix: Matrix, note: str) -> SpectrumRecord:
    """A record that only says what the matrix is, and why nothing was measured."""
    weight = matrix.weight
    return SpectrumRecord(
        matrix.name, matrix.role, tuple(weight.shape), weight.numel(), matrix.eigenvalue_count, note=note
    )


def _measure_shared(matrices: list[Matrix], fit: str, xmin_pos: float, group: Any) -> dict[str, SpectrumRecord]:
    """Records by name; with a process group each rank measures its share and all end with the same floats."""
    if group is None or dist.get_world_size(group) == 1:
        return {m.name: measure(m, fit, xmin_pos) for m in matrices}
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    outcome: dict[str, SpectrumRecord] | ValueError
    try:
        outcome = {m.name: measure(m, fit, xmin_pos) for m in share_of(matrices, rank, ranks)}
    except ValueError as error:  # the others must hear of it before they wait for this rank for ever
        outcome = error
    outcomes: list[Any] = [None] * ranks
    dist.all_gather_object(outcomes, outcome, group=group)
    for each in outcomes:
        if isinstance(each, ValueError):
            raise each
    return {name: record for each in outcomes for name, record in each.items()}


def share_of(matrices: list[Matrix], rank: int, ranks: int) -> list[Matrix]:
    """The matrices one rank measures: the costliest first, each to the rank that has least to do."""
    loads = [0.0] * ranks
    shares: list[list[Matrix]] = [[] for _ in range(ranks)]
    for matrix in sorted(matrices, key=_cost, reverse=True):
        lightest = loads.index(min(loads))
        loads[lightest] += _cost(matrix)
        shares[lightest].append(matrix)
    return shares[rank]


def _cost(matrix: Matrix) -> float:
    """Multiplications in units that rank matrices: the Gram product and the cubic eigenvalue solver."""
    rows, columns = sorted(matrix.weight.shape[:2])
    positions = matrix.eigenvalue_count / rows
    return positions * (rows * rows * columns + 4.0 * rows**3)
