"""What was measured of each weight matrix, and a list of it that shows itself: as text, HTML, DataFrame or figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from alphadecay.tables import aligned, in_html, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Eigenvalues = npt.NDArray[np.float64]  # ascending, none negative
SHOWN = 60  # rows up to which a table that nobody asked to print is shown whole


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


class SpectrumRecords(list[SpectrumRecord]):
    """The records of a model in its order: a list that shows itself, with the eigenvalues that were measured.

    It prints as a table; a notebook shows it as one. Slices and copies are of the same class; equal are lists with
    equal records, whatever eigenvalues they hold.

    Args:
        records: What the list holds.
        spectra: Eigenvalues by module; those of other modules are dropped. None: those of `records`, if it has any.

    Attributes:
        spectra: Module name -> the eigenvalues that were fitted (shape (n,), float64, ascending), of the matrices
            that this process measured. Where ranks share the work, each has its part.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 10))
        >>> records = alphadecay.analyze(model)
        >>> [record.note for record in records]
        ['', '10 eigenvalues, fewer than 50']
        >>> print(records)  # doctest: +ELLIPSIS
        module  role  shape   alpha ...
        ------  ----  ------  ----- ...
        0       0     128x64  ...
        1       1     10x128      - ... 10 eigenvalues, fewer than 50
        >>> records.spectra["0"].shape
        (64,)
        >>> records.plot("spectra_by_role").savefig("spectra.pdf")  # doctest: +SKIP
    """

    spectra: dict[str, Eigenvalues]

    def __init__(
        self, records: Iterable[SpectrumRecord] = (), spectra: Mapping[str, Eigenvalues] | None = None
    ) -> None:
        super().__init__(records)
        if spectra is None:
            spectra = getattr(records, "spectra", {})
        names = {record.name for record in self}
        self.spectra = {name: eigs for name, eigs in spectra.items() if name in names}

    @overload
    def __getitem__(self, index: SupportsIndex) -> SpectrumRecord: ...

    @overload
    def __getitem__(self, index: slice) -> "SpectrumRecords": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "SpectrumRecord | SpectrumRecords":
        found = super().__getitem__(index)
        return SpectrumRecords(found, self.spectra) if isinstance(found, list) else found

    def copy(self) -> "SpectrumRecords":
        """The same records and eigenvalues in another list."""
        return self[:]

    def __str__(self) -> str:
        return aligned(*record_table(self)) if self else "no weight matrix"

    def __repr__(self) -> str:
        if len(self) <= SHOWN:
            return str(self)
        head, rows, texts = record_table(self)
        some = aligned(head, [*rows[: SHOWN // 2], ["..."] + [""] * (len(head) - 1), *rows[-SHOWN // 2 :]], texts)
        return f"{some}\n\n{SHOWN} of {len(self)} matrices; print() shows all"

    def _repr_html_(self) -> str:
        return in_html(*record_table(self)) if self else "no weight matrix"

    def to_pandas(self) -> "DataFrame":
        """A DataFrame with one row a matrix and the attributes of `SpectrumRecord` as columns; None becomes NaN.

        Returns:
            Text in `name`, `role` and `note`, tuples in `shape`, whole numbers in `parameters` and
            `eigenvalue_count`, float64 in the others.

        Raises:
            ImportError: If pandas is not installed.

        Example:
            >>> import torch, alphadecay
            >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
            >>> frame = alphadecay.analyze(model).to_pandas()
            >>> frame[["name", "parameters"]].values.tolist()
            [['0', 4096], ['1', 640]]
            >>> int(frame.alpha.count())
            1
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        frame = DataFrame([asdict(record) for record in self], columns=[field.name for field in fields(SpectrumRecord)])
        wholes = {"parameters": "int64", "eigenvalue_count": "int64"}
        texts = dict.fromkeys(("name", "role", "note", "shape"))
        return frame.astype({name: wholes.get(name, "float64") for name in frame.columns if name not in texts})

    def plot(
        self,
        figure: str = "alpha_by_depth",
        other: Sequence[SpectrumRecord] | None = None,
        *,
        role: str | None = None,
        page: int = 1,
        labels: tuple[str, str] = ("these", "other"),
    ) -> "Figure":
        """Draw one of the figures of `python -m alphadecay analyze`, in print size.

        ================= ==============================================================================
        alpha_by_depth    alpha of each module, roles across and depth downwards
        alpha_by_role     mean alpha of each role and its modules; with `other` both side by side
        alpha_change      alpha less that of the same module in `other`
        spectra_by_role   share of eigenvalues above x, shallow to deep, with the fitted tails
        spectra_of_role   each module of `role`: density of its eigenvalues, fit, where the tail begins
        ================= ==============================================================================

        Args:
            figure: One of these names.
            other: Records to compare with, of a model with modules of the same names.
            role: For spectra_of_role, such as "attn.qkv"; it may be left out where there is one role.
            page: For spectra_of_role, from 1: a page has 24 modules.
            labels: What the figures of two models call these records and `other`.

        Returns:
            A matplotlib figure; a notebook shows it, and `savefig` writes it.

        Raises:
            ValueError: For an unknown figure, role or page, an argument that the figure lacks or has no use for, or
                where it needs eigenvalues that these records do not hold.
            ImportError: If matplotlib is not installed.

        Example:
            >>> import torch, alphadecay
            >>> records = alphadecay.analyze(torch.nn.Sequential(torch.nn.Linear(64, 64)))
            >>> figure = records.plot("spectra_of_role", role="0")
            >>> figure.savefig("spectra.pdf")  # doctest: +SKIP
        """
        from alphadecay.record_figures import Wanted, draw

        return draw(self, Wanted(figure, other, role, page, labels))


def spectra_of(records: SpectrumRecords) -> list[Spectrum]:
    """Each record whose eigenvalues are there, with them."""
    return [(record, records.spectra[record.name]) for record in records if record.name in records.spectra]


def record_table(
    records: Sequence[SpectrumRecord], changes: Mapping[str, float | None] | None = None
) -> tuple[list[str], list[list[str]], set[int]]:
    """Header, one row a matrix, and which columns are text.

    Args:
        records: What to show.
        changes: By how much alpha differs from another model's, by module: a column more.
    """
    more = ["change"] if changes is not None else []
    head = ["module", "role", "shape", "alpha", "+-", "KS", "stable rank", *more, "note"]
    rows = [
        [
            r.name, r.role, "x".join(map(str, r.shape)), number(r.alpha, 3), number(r.alpha_error, 2),
            number(r.ks_distance, 3), number(r.stable_rank, 1),
            *([number(changes[r.name], 3, "+")] if changes is not None else []), r.note,
        ]
        for r in records
    ]  # fmt: skip
    return head, rows, {0, 1, 2, len(head) - 1}
