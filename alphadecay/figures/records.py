"""`SpectrumRecords.plot`: check which figure is wanted, and draw it. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from alphadecay.figures.alpha import alpha_by_depth, alpha_by_role, alpha_change
from alphadecay.figures.drawing import print_style
from alphadecay.figures.spectra import by_role, page_count, page_of_role, spectra_by_role
from alphadecay.record import Eigenvalues, Spectrum, SpectrumRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_ALPHA = ("alpha_by_depth", "alpha_by_role", "alpha_change")
OF_SPECTRA = ("spectra_by_role", "spectra_of_role")
FIGURES = (*OF_ALPHA, *OF_SPECTRA)
OF_TWO = ("alpha_change", "alpha_by_role")  # figures that can have other records

Records = Sequence[SpectrumRecord]


@dataclass(frozen=True)
class Wanted:
    """The arguments of `SpectrumRecords.plot`."""

    figure: str
    other: Sequence[SpectrumRecord] | None
    role: str | None
    page: int
    labels: tuple[str, str]


def draw(records: Records, eigenvalues: Mapping[str, Eigenvalues], wanted: Wanted) -> "Figure":
    """Draw the figure so that notebooks can show it; see `SpectrumRecords.plot`."""
    _check(records, wanted)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    with print_style():
        figure = _drawn(records, eigenvalues, wanted)
        figure.draw_without_rendering()  # ticks get their size when drawn first, which must be in this style
    # Notebooks only know how to show figures after pyplot made one; but every notebook calls this method if it exists.
    vars(figure)["_repr_png_"] = partial(_as_png, figure)
    return figure


def _as_png(figure: "Figure") -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    return file.getvalue()


def _drawn(records: Records, eigenvalues: Mapping[str, Eigenvalues], wanted: Wanted) -> Any:
    label, other_label = wanted.labels
    if wanted.figure == "alpha_by_depth":
        return alpha_by_depth(records)
    if wanted.figure == "alpha_by_role":
        return alpha_by_role({label: records} | ({other_label: wanted.other} if wanted.other is not None else {}))
    if wanted.figure == "alpha_change":
        return alpha_change(records, wanted.other or (), other_label)
    spectra = _spectra(records, eigenvalues, wanted)
    if wanted.figure == "spectra_by_role":
        return spectra_by_role(spectra)
    return page_of_role(_of_role(spectra, wanted), wanted.page)


def _check(records: Records, wanted: Wanted) -> None:
    """Raise ValueError for an unknown figure, and for arguments that it needs or does not use."""
    figure = wanted.figure
    if figure not in FIGURES:
        raise ValueError(f"figure={figure!r} is unknown; choose from {', '.join(FIGURES)}")
    if figure == "alpha_change" and wanted.other is None:
        raise ValueError(f"figure='alpha_change' needs other=, records to compare with; {_others(figure)}")
    if figure not in OF_TWO and wanted.other is not None:
        raise ValueError(f"other= is not used by figure={figure!r}, only by {' and '.join(OF_TWO)}")
    if figure != "spectra_of_role" and (wanted.role is not None or wanted.page != 1):
        argument = "page=" if wanted.role is None else "role="
        raise ValueError(f"{argument} is not used by figure={figure!r}, only by spectra_of_role")
    if wanted.other is not None and not {r.name for r in records} & {r.name for r in wanted.other}:
        raise ValueError("other= has none of these modules, by name")
    if wanted.other is not None and len(set(wanted.labels)) < 2:
        raise ValueError(f"labels={wanted.labels!r} are the same; two models need different ones")


def _others(*figures: str) -> str:
    return f"without, choose from {', '.join(name for name in FIGURES if name not in figures)}"


def _spectra(records: Records, eigenvalues: Mapping[str, Eigenvalues], wanted: Wanted) -> list[Spectrum]:
    """The spectra of all measured matrices; ValueError if one has no eigenvalues or none was measured."""
    measured = [record.name for record in records if record.frobenius_norm is not None]
    lacking = [name for name in measured if name not in eigenvalues]
    if lacking:
        raise ValueError(
            f"figure={wanted.figure!r} needs eigenvalues, which {len(lacking)} of {len(measured)} measured matrices "
            f"lack, such as {lacking[0]} (analyze keeps those that its own process measures); {_others(*OF_SPECTRA)}"
        )
    if not measured:
        raise ValueError(f"figure={wanted.figure!r} needs eigenvalues, and no matrix was measured")
    return [(record, eigenvalues[record.name]) for record in records if record.name in eigenvalues]


def _of_role(spectra: Sequence[Spectrum], wanted: Wanted) -> list[Spectrum]:
    """The spectra of the wanted role; ValueError if the role or its wanted page does not exist."""
    roles = by_role(spectra)
    role = next(iter(roles)) if wanted.role is None and len(roles) == 1 else wanted.role
    if role not in roles:
        problem = "is missing" if role is None else f"{role!r} is unknown"
        raise ValueError(f"figure='spectra_of_role': role= {problem}; choose from {', '.join(roles)}")
    pages = page_count(roles[role])
    if not 1 <= wanted.page <= pages:
        raise ValueError(f"page={wanted.page}: {role} has {pages} page{'s' if pages > 1 else ''}; choose from 1 on")
    return roles[role]
