"""Measure the weight matrices of a model: one record per matrix."""

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

# Metrics by which modules can be scored. The published program calls the two squares fnorm and spectral_norm.
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
SENSITIVE = 500.0  # of (alpha - 1) x largest eigenvalue / xmin; this x 1.2e-7 is the error of alpha in float32
CLEAR_MARGIN = 1e-4  # KS distance; if the best tail is better by less, the search is repeated in float64
FILTERED = 1e-5  # the published filter_zeros drops eigenvalues up to this


@dataclass(frozen=True)
class Measuring:
    """Settings of a measurement; see `analyze`. The constructor refuses impossible ones."""

    fit: str = "median"
    xmin_pos: float = 2.0
    window: str | WindowShape | None = None
    filter_zeros: bool = False

    def __post_init__(self) -> None:
        if self.fit not in tails.FITS:
            raise ValueError(f"fit={self.fit!r} is unknown; choose from {', '.join(tails.FITS)}")
        if not isinstance(self.xmin_pos, int | float) or not 1 < self.xmin_pos < float("inf"):
            raise ValueError(f"xmin_pos must be above 1, got {self.xmin_pos!r}")
        sides = self.window if isinstance(self.window, tuple) else ()
        is_shape = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        if self.window not in (None, "farms") and not is_shape:
            raise ValueError(f"window={self.window!r} is unknown; choose None, 'farms' or (rows, columns)")

    def window_of(self, matrix: Matrix) -> WindowShape | None:
        """The shape of a matrix' windows; None if it is measured as a whole."""
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
    from xmin on. A smaller alpha means a heavier tail. At initialisation alpha depends on the shape of the matrix
    (about 2.1 for a square one, 3.5 for 4:1), unless `window` is "farms".

    Skipped matrices (stem, head, embeddings, tied, frozen, short spectra ...) have records with the reason in `note`
    and no measures. If at least half of a spectrum is zero, its record has measures and a note.

    Args:
        model: Any module, also inside DistributedDataParallel or torch.compile.
        fit: How the tail is found. "median": from the middle of the spectrum on, as published with AlphaDecay; "paper":
            exactly its formula; "goodness-of-fit": where the KS distance of the fit is smallest; "fix-finger": the same
            near the peak of the histogram, as published; "fix-finger-corrected": the same without the published error.
        xmin_pos: For `median`: the tail begins at index int(n / xmin_pos) of the ascending spectrum. Above 1.
        window: None: the whole matrix. "farms": alpha, its error, KS distance and xmin are of the pooled spectrum
            of evenly spaced square windows, so that they do not depend on the matrix' shape. (rows, columns):
            of windows of that shape. All other measures are always of the whole matrix.
        filter_zeros: Drop eigenvalues of at most 1e-5 before the fit, an option of the published program; the result
            depends on the weights' scale.
        exclude: Globs of modules to skip, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": measure these too. If no parameter of the model is trained,
            "frozen" is always included.
        min_eigenvalues: Skip matrices with fewer eigenvalues; at least 1.
        process_group: Ranks that share the work; all of them must call this function and get the same records. They may
            hold the same model, shards of its weights (FSDP2), or different parts of it (pipeline parallel); the
            records are of all parts. None: this process measures everything.
        on_record: Called after each matrix, by the process that measured it, with its record and the eigenvalues
            to which the tail was fitted (shape (n,), float64, ascending): to show progress or draw spectra.

    Returns:
        One `SpectrumRecord` per weight of two or more dimensions, in a list that prints as a table, has figures
        (`plot`) and a DataFrame (`to_pandas`), and keeps the eigenvalues that this process measured (`spectra`).

    Raises:
        TypeError: If `model` is not a module.
        ValueError: For an unknown fit, window or name in `include`, a string where a list is expected, a glob that
            matches nothing, or a weight that is not finite or on the meta device; the message names it.

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
    """Measure matrices that `find_matrices` returned; see `analyze`."""
    measurement = Measurement(matrices, measuring, process_group)
    spectra: dict[str, Eigenvalues] = {}

    def note(record: SpectrumRecord, eigs: Eigenvalues) -> None:
        spectra[record.name] = eigs
        if on_record is not None:
            on_record(record, eigs)

    return SpectrumRecords(measurement.run(on_record=note), spectra)


class Measurement:
    """The work of `analyze` in two parts: the constructor reads the model, and `run` measures, which takes long.

    Args:
        matrices: Matrices of the model; those without a reason to be skipped are measured.
        measuring: Settings of the measurement.
        process_group: As in `analyze`.
        copied: Copy the weights that this rank measures to CPU memory, so that `run` can run later, in a thread.

    Raises:
        ValueError: If a weight is on the meta device.
    """

    def __init__(
        self, matrices: Sequence[Matrix], measuring: Measuring, process_group: Any = None, *, copied: bool = False
    ) -> None:
        self.measuring, self.matrices = measuring, matrices
        adapted = [m for m in matrices if not m.reason]
        for m in adapted:
            if m.weight.is_meta:
                raise ValueError(f"{m.name} {m.shape}: its weight is on the meta device, which holds no values")
        self.group = process_group if process_group and dist.get_world_size(process_group) > 1 else None
        self.gradient_norms = gradient_norms(adapted)
        share = adapted if self.group is None else assign_to_ranks(adapted, self.group)
        self._snapshots = Snapshots(share) if copied else None
        self._share = self._snapshots.matrices if self._snapshots else share

    def run(self, results_group: Any = None, on_record: OnRecord | None = None) -> list[SpectrumRecord]:
        """Measure, and return the records of all ranks; all ranks must call this.

        Args:
            results_group: Another process group of the same ranks, to exchange records in a thread.
            on_record: As in `analyze`.
        """
        if self._snapshots:
            self._snapshots.wait()
        measured = self._measured(on_record)
        if self.group is not None:
            measured = gather_records(measured, results_group or self.group)
        if isinstance(measured, Exception):
            raise measured
        skipped = {m.name: record_without_measures(m, m.reason) for m in self.matrices if m.reason}
        names = dict.fromkeys([*(m.name for m in self.matrices), *measured])
        return [skipped.get(name) or measured[name] for name in names]

    def _measured(self, on_record: OnRecord | None) -> dict[str, SpectrumRecord] | Exception:
        """This rank's records by name, or the first error: the caller sends it to the ranks that wait for records."""
        records: dict[str, SpectrumRecord] = {}
        first_error: Exception | None = None
        for matrix in self._share:
            name, label = matrix.name, f"{matrix.name} {tuple(matrix.weight.shape)}"
            try:
                record, eigs = measure(matrix, self.measuring)
            except ValueError as raised:
                first_error = first_error or raised
                continue
            except Exception as raised:  # a device's error, which may not be sent as it is
                failed = RuntimeError(f"{label}: its spectrum failed: {type(raised).__name__}: {raised}")
                first_error = first_error or failed
                continue
            finally:
                del matrix  # a gathered weight is freed before the next one is gathered
            record = replace(record, grad_norm=self.gradient_norms.get(name))
            if on_record is not None:
                on_record(record, eigs)
            records[name] = record
        return first_error or records


def measure(matrix: Matrix, measuring: Measuring) -> tuple[SpectrumRecord, np.ndarray]:
    """Measure one matrix: its record without grad_norm, and the eigenvalues to which the tail was fitted, shape (n,).

    Raises:
        NonFiniteWeight: If the weight is not finite; the message names the matrix.
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
    if not note and 2 * zeros >= len(eigs):  # a fit may succeed, but it would use only half of the spectrum
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
    """Eigenvalues, and the fit to their tail or None and why; computed in float32 if that is accurate enough.

    Args:
        weight: Shape (rows, columns), or (rows, columns, height, width) of a Conv2d's kernel.
        measuring: Settings of the measurement.
        window: Shape (rows, columns) of windows; None: the whole matrix.
        groups: Groups of a Conv2d.

    Returns:
        Eigenvalues of shape (n,), float64, ascending; the fit or None; "" or why there is no fit.
    """
    quick = None if measuring.fit in tails.LOOK_AT_SMALLEST else quick_eigenvalues(weight, window, groups)
    if quick is not None:
        tail, _ = fit_tail(quick, measuring)
        if tail is not None and _accurate(quick, tail):
            return quick, tail, ""
    eigs = eigenvalues(weight, window, groups)
    return eigs, *fit_tail(eigs, measuring)


def fit_tail(eigs: np.ndarray, measuring: Measuring) -> tuple[tails.TailFit | None, str]:
    """The fit to the tail of a spectrum of shape (n,) and "", or None and the reason."""
    kept = eigs[eigs > FILTERED] if measuring.filter_zeros else eigs
    try:
        return tails.FITS[measuring.fit](kept if len(kept) else eigs, measuring.xmin_pos), ""
    except tails.DegenerateSpectrum as degenerate:
        return None, str(degenerate)


def _accurate(eigs: np.ndarray, tail: tails.TailFit) -> bool:
    """Whether float32 eigenvalues, shape (n,), are accurate enough for this fit and to count how many are zero."""
    noise = len(eigs) * np.finfo(np.float32).eps * eigs[-1]
    begins_high = tail.xmin >= FLOAT64_BELOW * eigs[-1] and tail.margin > CLEAR_MARGIN
    certain = (tail.alpha - 1) * eigs[-1] < SENSITIVE * tail.xmin
    return begins_high and certain and eigs[(len(eigs) - 1) // 2] > noise


def record_without_measures(matrix: Matrix, note: str) -> SpectrumRecord:
    """A record with name, role and shape of a matrix and a note, but no measures."""
    parameters = math.prod(matrix.shape) if matrix.shape else 0
    return SpectrumRecord(matrix.name, matrix.role, matrix.shape, parameters, matrix.eigenvalue_count, note=note)
