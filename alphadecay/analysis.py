"""From a model to one record a weight matrix."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor, nn

from alphadecay import metrics, tails
from alphadecay.matrices import FROZEN, MIN_EIGENVALUES, Matrix, find_matrices
from alphadecay.records import Eigenvalues, SpectrumRecords
from alphadecay.records import SpectrumRecord as SpectrumRecord
from alphadecay.sharing import Snapshots, assign_to_ranks, gather_records, gradient_norms, whole
from alphadecay.spectra import NonFiniteWeight, WindowShape, eigenvalues, farms_window, quick_eigenvalues

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
    "grad_norm": lambda record: record.grad_norm,
    "grad_to_weight": lambda record: (
        None
        if record.grad_norm is None or record.spectral_norm is None
        else metrics.grad_to_weight(record.grad_norm, record.spectral_norm)
    ),
}
OnRecord = Callable[[SpectrumRecord, Eigenvalues], object]
FLOAT64_BELOW = 1e-3  # a tail that begins below this share of the largest eigenvalue needs float64
SENSITIVE = 500.0  # (alpha - 1) x largest eigenvalue / xmin: times 1.2e-7 the error that float32 can make in alpha
CLEAR_MARGIN = 1e-4  # of KS distance: a search that is decided by less is repeated in float64
FILTERED = 1e-5  # eigenvalues up to here are dropped by the published filter_zeros


@dataclass(frozen=True)
class Measuring:
    """How spectra are measured; see `analyze`."""

    fit: str = "median"
    xmin_pos: float = 2.0
    window: str | WindowShape | None = None
    filter_zeros: bool = False

    def __post_init__(self) -> None:
        if self.fit not in tails.FITS:
            raise ValueError(f"fit={self.fit!r} is unknown; choose from {', '.join(tails.FITS)}")
        if not isinstance(self.xmin_pos, int | float) or not self.xmin_pos > 1:
            raise ValueError(f"xmin_pos must be above 1, got {self.xmin_pos!r}")
        sides = self.window if isinstance(self.window, tuple) else ()
        shape = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        if self.window not in (None, "farms") and not shape:
            raise ValueError(f"window={self.window!r} is unknown; choose None, 'farms' or (rows, columns)")

    def window_of(self, matrix: Matrix) -> WindowShape | None:
        """The shape of a matrix' windows; None where it is measured as a whole."""
        return farms_window(*matrix.form[1:]) if isinstance(self.window, str) else self.window


def analyze(
    model: nn.Module,
    fit: str = "median",
    xmin_pos: float = 2.0,
    window: str | WindowShape | None = None,
    *,
    filter_zeros: bool = False,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    process_group: Any = None,
    on_record: OnRecord | None = None,
) -> SpectrumRecords:
    """Measure the spectrum of each weight matrix of a model, in the model's order.

    The spectrum of W holds the eigenvalues x of W W^T (or W^T W, if that is smaller). A power law p(x) ~ x^-alpha is
    fitted to its upper part, by default to its upper half: alpha = 1 + k / sum(log(x / xmin)) over the k eigenvalues
    from xmin on. A smaller alpha means a heavier tail. At initialisation it says what shape the matrix has (about 2.1
    for a square one, 3.5 for 4:1), unless `window` is "farms".

    Matrices that stay out (stem, head, embeddings, tied, frozen, short spectra ...) come with the reason in
    `note` and no measures. A spectrum of which half is zero comes with its measures and a note.

    Args:
        model: Any module, also inside DistributedDataParallel or torch.compile.
        fit: How the tail is found. "median": from the middle of the spectrum on, as published with AlphaDecay; "paper":
            its formula to the letter; "goodness-of-fit": where the KS distance of the fit is smallest;
            "fix-finger": the same near the peak of the histogram, as published; "fix-finger-corrected": without its
            error.
        xmin_pos: For `median`: the tail begins at index int(n / xmin_pos) of the ascending spectrum. Above 1.
        window: None: the whole matrix. "farms": alpha, its error, KS distance and xmin are of the pooled spectrum
            of evenly spaced square windows, so that they do not depend on the matrix' shape. (rows, columns):
            of windows of that shape. All other measures are always the whole matrix'.
        filter_zeros: Drop eigenvalues of at most 1e-5 before the fit, as the published program does when asked;
            this depends on the weights' scale.
        exclude: Globs over module names that stay out, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": they take part as well. A model of which nothing is trained is
            analysed as if "frozen" was given.
        min_eigenvalues: Matrices with fewer stay out; at least 1.
        process_group: Ranks that share the work; all of them must call, and all get the same records. They may hold
            the same model, shards of its weights (FSDP2), or other parts of it (pipeline parallel): the records
            are those of all. None: this process does everything.
        on_record: Called after each matrix, by the process that measured it, with its record and the eigenvalues
            to which the tail was fitted (shape (n,), float64, ascending): for progress, and for drawing spectra.

    Returns:
        One `SpectrumRecord` a weight of two or more dimensions, in a list that prints as a table, has figures (`plot`)
        and a DataFrame (`to_pandas`), and keeps the eigenvalues that this process measured (`spectra`).

    Raises:
        TypeError: If `model` is no module.
        ValueError: For an unknown fit, window or name in `include`, a string where a list is expected, a glob that
            matches nothing, or a weight that is not finite or on the meta device (named).

    Source: AlphaDecay (arXiv 2506.14562), eq. 2, a Hill (1975) estimator; "goodness-of-fit" is from Clauset, Shalizi
    and Newman (2009), "farms" from arXiv 2506.06280.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> records = alphadecay.analyze(model)
        >>> [(record.name, record.alpha is not None, record.note) for record in records]
        [('0', True, ''), ('2', False, '10 eigenvalues, fewer than 50')]
        >>> alphadecay.analyze(model, fit="paper", window="farms", exclude=["0"])[0].note
        "excluded by '0'"
    """
    measuring = Measuring(fit, xmin_pos, window, filter_zeros)
    matrices = find_matrices(model, exclude, min_eigenvalues, include)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        matrices = [replace(m, reason="") if m.reason == FROZEN else m for m in matrices]
    return records_of(matrices, measuring, process_group, on_record)


def records_of(
    matrices: Sequence[Matrix], measuring: Measuring, process_group: Any = None, on_record: OnRecord | None = None
) -> SpectrumRecords:
    """What `analyze` returns, of the matrices of a model that were found before."""
    measurement = Measurement(matrices, measuring, process_group)
    spectra: dict[str, Eigenvalues] = {}

    def note(record: SpectrumRecord, eigs: Eigenvalues) -> None:
        spectra[record.name] = eigs
        if on_record is not None:
            on_record(record, eigs)

    return SpectrumRecords(measurement.run(on_record=note), spectra)


class Measurement:
    """What `analyze` does in two parts: what needs the model as it is now, and the rest, which takes the time.

    Args:
        matrices: Those of the model; measured are the ones that take part.
        measuring: How.
        process_group: As in `analyze`.
        copied: Copy the weights that this rank measures to CPU memory, so that `run` may come later, in a thread.

    Raises:
        ValueError: If a weight is on the meta device.
    """

    def __init__(
        self, matrices: Sequence[Matrix], measuring: Measuring, process_group: Any = None, *, copied: bool = False
    ) -> None:
        self.measuring, self.matrices = measuring, matrices
        taking_part = [m for m in matrices if not m.reason]
        for m in taking_part:
            if m.weight.is_meta:
                raise ValueError(f"{m.name} {m.shape}: its weight is on the meta device, which holds no values")
        self.group = process_group if process_group and dist.get_world_size(process_group) > 1 else None
        self.gradient_norms = gradient_norms(taking_part)
        mine = taking_part if self.group is None else assign_to_ranks(taking_part, self.group)
        self._snapshots = Snapshots(mine) if copied else None
        self._mine = self._snapshots.matrices if self._snapshots else mine

    def run(self, results_group: Any = None, on_record: OnRecord | None = None) -> list[SpectrumRecord]:
        """The records; all ranks must come here.

        Args:
            results_group: The same ranks in a group of their own, for results that are exchanged in a thread.
            on_record: As in `analyze`.
        """
        if self._snapshots:
            self._snapshots.wait()
        found = self._measured(on_record)
        if self.group is not None:
            found = gather_records(found, results_group or self.group)
        if isinstance(found, ValueError):
            raise found
        own = {m.name: record_without_measures(m, m.reason) for m in self.matrices if m.reason}
        names = dict.fromkeys([*(m.name for m in self.matrices), *found])
        return [own.get(name) or found[name] for name in names]

    def _measured(self, on_record: OnRecord | None) -> dict[str, SpectrumRecord] | ValueError:
        """This rank's share, or what one matrix raised: the other ranks must hear of it before they wait for ever."""
        found, error = {}, None
        for matrix in self._mine:
            try:
                record, eigs = measure(matrix, self.measuring)
            except ValueError as raised:
                error = error or raised
                continue
            record = replace(record, grad_norm=self.gradient_norms.get(matrix.name))
            if on_record is not None:
                on_record(record, eigs)
            found[matrix.name] = record
        return error or found


def measure(matrix: Matrix, measuring: Measuring) -> tuple[SpectrumRecord, np.ndarray]:
    """The record of one matrix that takes part, but for its gradient; and the eigenvalues that were fitted.

    Raises:
        NonFiniteWeight: If the weight is not finite, with the matrix named.
    """
    window, weight = measuring.window_of(matrix), whole(matrix.weight)
    try:
        fitted, tail, note = fitted_spectrum(weight, measuring, window, matrix.groups)
        eigs = fitted
        if window is not None:
            quick = quick_eigenvalues(weight, groups=matrix.groups)
            eigs = eigenvalues(weight, groups=matrix.groups) if quick is None else quick
    except NonFiniteWeight as error:
        raise NonFiniteWeight(f"{matrix.name} {tuple(matrix.weight.shape)}: {error}") from error
    zeros = tails.count_zeros(eigs)
    if not note and 2 * zeros >= len(eigs):  # a fit can just exist, but it is one to half a spectrum
        note = f"{zeros} of {len(eigs)} eigenvalues are zero"
    zero = eigs[-1] == 0
    record = replace(
        record_without_measures(matrix, note),
        alpha=tail.alpha if tail else None,
        alpha_hat=metrics.alpha_hat(tail.alpha, eigs[-1]) if tail else None,
        spectral_norm=metrics.spectral_norm(eigs),
        frobenius_norm=metrics.frobenius_norm(eigs),
        stable_rank=None if zero else metrics.stable_rank(eigs),
        entropy=None if zero else metrics.entropy(eigs),
        ks_distance=tail.ks_distance if tail else None,
        alpha_error=tail.alpha_error if tail else None,
        xmin=tail.xmin if tail else None,
    )
    return record, fitted


def fitted_spectrum(
    weight: Tensor, measuring: Measuring, window: WindowShape | None, groups: int = 1
) -> tuple[np.ndarray, tails.TailFit | None, str]:
    """Eigenvalues, the fit to their tail or None, and why there is none; in float32 where that is accurate enough."""
    quick = None if measuring.fit in tails.LOOK_AT_SMALLEST else quick_eigenvalues(weight, window, groups)
    if quick is not None:
        tail, _ = fit_tail(quick, measuring)
        if tail is not None and _accurate(quick, tail):
            return quick, tail, ""
    eigs = eigenvalues(weight, window, groups)
    return eigs, *fit_tail(eigs, measuring)


def fit_tail(eigs: np.ndarray, measuring: Measuring) -> tuple[tails.TailFit | None, str]:
    """The fit to a spectrum's tail, or None and the reason."""
    kept = eigs[eigs > FILTERED] if measuring.filter_zeros else eigs
    try:
        return tails.FITS[measuring.fit](kept if len(kept) else eigs, measuring.xmin_pos), ""
    except tails.DegenerateSpectrum as degenerate:
        return None, str(degenerate)


def _accurate(eigs: np.ndarray, tail: tails.TailFit) -> bool:
    """Whether float32 can tell the tail, which was clearly the best, and whether half of the eigenvalues are zero."""
    noise = len(eigs) * np.finfo(np.float32).eps * eigs[-1]
    begins_high = tail.xmin >= FLOAT64_BELOW * eigs[-1] and tail.margin > CLEAR_MARGIN
    certain = (tail.alpha - 1) * eigs[-1] < SENSITIVE * tail.xmin
    return begins_high and certain and eigs[(len(eigs) - 1) // 2] > noise


def record_without_measures(matrix: Matrix, note: str) -> SpectrumRecord:
    """A record that only says what the matrix is, and why nothing was measured."""
    parameters = math.prod(matrix.shape) if matrix.shape else 0
    return SpectrumRecord(matrix.name, matrix.role, matrix.shape, parameters, matrix.eigenvalue_count, note=note)
