"""A list of records of weight matrices that shows itself as text, HTML, DataFrame or figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, SupportsIndex, overload

from alphadecay.record import Eigenvalues, Spectrum
from alphadecay.record import SpectrumRecord as SpectrumRecord
from alphadecay.tables import aligned, in_html, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SHOWN = 60  # rows up to which repr() shows the whole table


class SpectrumRecords(list[SpectrumRecord]):
    """The records of a model in the model's order: a list that shows itself, with the measured eigenvalues.

    It prints as a table and shows as a table in notebooks. Slices and copies have the same class. Lists with equal
    records are equal, even if their eigenvalues differ.

    Args:
        records: The records of the list.
        spectra: Module name -> eigenvalues; other modules are dropped. None: the spectra of `records`, if it has any.

    Attributes:
        spectra: Module name -> the eigenvalues to which the tail was fitted (shape (n,), float64, ascending), of the
            matrices that this process measured. If ranks share the work, each rank has only its part.

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
        item = super().__getitem__(index)
        return SpectrumRecords(item, self.spectra) if isinstance(item, list) else item

    def copy(self) -> "SpectrumRecords":
        """The same records and eigenvalues in another list."""
        return self[:]

    def __str__(self) -> str:
        return aligned(*record_table(self)) if self else "no weight matrix"

    def __repr__(self) -> str:
        if len(self) <= SHOWN:
            return str(self)
        head, rows, texts = record_table(self)
        shortened = aligned(head, [*rows[: SHOWN // 2], ["..."] + [""] * (len(head) - 1), *rows[-SHOWN // 2 :]], texts)
        return f"{shortened}\n\n{SHOWN} of {len(self)} matrices; print() shows all"

    def _repr_html_(self) -> str:
        return in_html(*record_table(self)) if self else "no weight matrix"

    def to_pandas(self) -> "DataFrame":
        """A DataFrame with one row per matrix and the attributes of `SpectrumRecord` as columns; None becomes NaN.

        Returns:
            Text in `name`, `role` and `note`, tuples in `shape`, int64 in `parameters` and `eigenvalue_count`, float64
            in the other columns.

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
        alpha_by_depth    alpha of each module, with a column per role and depth downwards
        alpha_by_role     mean alpha of each role and its modules; with `other` both side by side
        alpha_change      alpha minus that of the same module in `other`
        spectra_by_role   share of eigenvalues above x, shallow to deep, with the fitted tails
        spectra_of_role   each module of `role`: density of its eigenvalues, fit, where the tail begins
        ================= ==============================================================================

        Args:
            figure: One of these names.
            other: Records of another model to compare with; its modules must have the same names.
            role: For spectra_of_role: a role, such as "attn.qkv"; not needed if there is only one role.
            page: For spectra_of_role: the page, from 1; a page has 24 modules.
            labels: Names of these records and of `other` in figures of two models.

        Returns:
            A matplotlib figure; a notebook shows it, and `savefig` writes it.

        Raises:
            ValueError: For an unknown figure, role or page, an argument that the figure needs or cannot use, or if it
                needs eigenvalues that these records do not hold.
            ImportError: If matplotlib is not installed.

        Example:
            >>> import torch, alphadecay
            >>> records = alphadecay.analyze(torch.nn.Sequential(torch.nn.Linear(64, 64)))
            >>> figure = records.plot("spectra_of_role", role="0")
            >>> figure.savefig("spectra.pdf")  # doctest: +SKIP
        """
        from alphadecay.figures.records import Wanted, draw

        return draw(self, self.spectra, Wanted(figure, other, role, page, labels))


def spectra_of(records: SpectrumRecords) -> list[Spectrum]:
    """Each record that has eigenvalues, with them."""
    return [(record, records.spectra[record.name]) for record in records if record.name in records.spectra]


def record_table(
    records: Sequence[SpectrumRecord], changes: Mapping[str, float | None] | None = None
) -> tuple[list[str], list[list[str]], set[int]]:
    """Header, one row per matrix, and the indices of the columns with text.

    Args:
        records: The records to show.
        changes: Module name -> difference of alpha from another model's; None: without this column.
    """
    change = ["change"] if changes is not None else []
    head = ["module", "role", "shape", "alpha", "+-", "KS", "stable rank", *change, "note"]
    rows = [
        [
            r.name, r.role, "x".join(map(str, r.shape)), number(r.alpha, 3), number(r.alpha_error, 2),
            number(r.ks_distance, 3), number(r.stable_rank, 1),
            *([number(changes[r.name], 3, "+")] if changes is not None else []), r.note,
        ]
        for r in records
    ]  # fmt: skip
    return head, rows, {0, 1, 2, len(head) - 1}
