"""The output of `python -m alphadecay analyze`: tables, CSV, JSON, figures."""

import csv
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from alphadecay._version import __version__
from alphadecay.command.sources import BadInput, Source
from alphadecay.figures.alpha import alpha_by_depth, alpha_by_role, alpha_change, alpha_changes
from alphadecay.figures.drawing import print_style
from alphadecay.figures.spectra import by_role, spectra_by_role, spectra_of_role
from alphadecay.records import Spectrum, SpectrumRecord, record_table
from alphadecay.tables import aligned, escaped, harmless, number

CSV, JSON, FIGURES = "spectra.csv", "spectra.json", "figures"
JSON_START = b'{\n "source": {'  # every spectra.json starts with this
OF_A_RUN = ("checkpoints", "log.jsonl", "decay.jsonl", "summary.json")  # files that only a run folder has


@dataclass(frozen=True)
class Measured:
    """A source and its measured spectra."""

    source: Source
    label: str  # short, for figures
    records: Sequence[SpectrumRecord]  # of all matrices, in the model's order
    spectra: Sequence[Spectrum]  # of the measured matrices

    @property
    def alphas(self) -> dict[str, float | None]:
        """Alpha by module."""
        return {record.name: record.alpha for record in self.records}


def tables(measured: Measured, other: Measured | None) -> str:
    """A table with one line per matrix, then one with one line per role, as text."""
    compared = other is not None
    changes = alpha_changes(measured.records, other.records) if other else None
    means = [
        [
            row["role"], str(row["modules"]), number(row["alpha"], 3), number(row["alpha_min"], 3),
            number(row["alpha_max"], 3), number(row["stable_rank"], 1),
            *([number(row["alpha_change"], 3, "+")] if compared else []),
        ]
        for row in spectrum_role_means(measured, other)
    ]  # fmt: skip
    mean_head = ["role", "modules", "mean alpha", "min", "max", "stable rank", *(["mean change"] if compared else [])]
    against = f"\nchange: from {escaped(other.source.description)}" if other else ""
    return (
        f"{escaped(measured.source.description)}{against}\n\n{aligned(*record_table(measured.records, changes))}\n\n"
        f"{aligned(mean_head, means, {0})}"
    )


def spectrum_role_means(measured: Measured, other: Measured | None) -> list[dict[str, Any]]:
    """Means over the measured modules of each role."""
    changes = alpha_changes(measured.records, other.records) if other else {}
    means = []
    for role, members in by_role(measured.spectra).items():
        alphas = [r.alpha for r, _ in members if r.alpha is not None]
        ranks = [r.stable_rank for r, _ in members if r.stable_rank is not None]
        role_changes = [change for r, _ in members if (change := changes.get(r.name)) is not None]
        means.append(
            {
                "role": role,
                "modules": len(members),
                "alpha": fmean(alphas) if alphas else None,
                "alpha_min": min(alphas, default=None),
                "alpha_max": max(alphas, default=None),
                "stable_rank": fmean(ranks) if ranks else None,
                "alpha_change": fmean(role_changes) if role_changes else None,
            }
        )
    return means


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise BadInput unless an analysis can be written there without replacing other files.

    Args:
        folder: It need not exist; files with other names in it do not matter.
        overwrite: Whether an earlier analysis may be replaced.
    """
    where = f"--output_dir {folder}"
    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if existing == folder and not folder.is_dir():
        raise BadInput(f"{where}: is a file")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"{where}: cannot be written, because of {existing}")
    if any(os.path.lexists(folder / name) for name in OF_A_RUN):
        raise BadInput(f"{where}: holds a run, whose figures would be replaced; use another folder")
    foreign = [name for name, is_ours in OURS.items() if os.path.lexists(folder / name) and not is_ours(folder / name)]
    if foreign or (not (folder / JSON).exists() and any(os.path.lexists(folder / name) for name in OURS)):
        name = (foreign or [name for name in OURS if os.path.lexists(folder / name)])[0]
        raise BadInput(f"{where}: {name} in it is not from an earlier analysis; use another folder")
    if (folder / JSON).exists() and not overwrite:
        raise BadInput(f"{where}: holds another analysis; give --overwrite or another folder")


def _is_analysis(path: Path) -> bool:
    """Whether a file is the JSON of an earlier analysis."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(JSON_START)) == JSON_START
    except OSError:
        return False


OURS: dict[str, Callable[[Path], bool]] = {  # name of each output -> whether what has this name may be replaced
    JSON: _is_analysis,
    CSV: lambda path: path.is_file() and not path.is_symlink(),
    FIGURES: lambda path: path.is_dir() and not path.is_symlink(),
}


def write_all(folder: Path, measured: Measured, other: Measured | None, settings: Mapping[str, Any]) -> None:
    """Write spectra.csv, spectra.json and figures/ into a folder, which is created if necessary.

    Args:
        folder: Files with these names in it are replaced.
        measured: The analysis to write.
        other: The analysis to compare it with.
        settings: Settings of the measurement, for the JSON file.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    _write_csv(folder / CSV, measured, other)
    content = {
        "source": _source(measured.source),
        "against": _source(other.source) if other else None,
        "settings": dict(settings),
        "versions": _versions(),
        "roles": spectrum_role_means(measured, other),
        "modules": _rows(measured, other),
    }
    (folder / JSON).write_text(json.dumps(content, indent=1) + "\n")
    _write_figures(folder / FIGURES, measured, other)


def _rows(measured: Measured, other: Measured | None) -> list[dict[str, Any]]:
    rows = [asdict(record) for record in measured.records]
    if other is not None:
        alphas, changes = other.alphas, alpha_changes(measured.records, other.records)
        rows = [row | {"alpha_against": alphas[row["name"]], "alpha_change": changes[row["name"]]} for row in rows]
    return rows


def _write_csv(path: Path, measured: Measured, other: Measured | None) -> None:
    names = [field.name for field in fields(SpectrumRecord)]
    names += ["alpha_against", "alpha_change"] if other else []
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in _rows(measured, other):
            row |= {"shape": "x".join(map(str, row["shape"]))}
            writer.writerow({name: harmless(value) for name, value in row.items()})


def _source(source: Source) -> dict[str, Any]:
    return {"what": source.argument, "description": source.description, "sha256": source.files}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "alphadecay": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    for name in ("timm", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _write_figures(folder: Path, measured: Measured, other: Measured | None) -> None:
    """Write each figure as PNG and PDF; the pages with the modules' spectra are one PNG each, and one PDF."""
    from matplotlib.backends.backend_pdf import PdfPages

    sets = {measured.label: measured.records} | ({other.label: other.records} if other else {})
    figures = {
        "alpha_by_depth": alpha_by_depth(measured.records),
        "alpha_by_role": alpha_by_role(sets),
        "spectra_by_role": spectra_by_role(measured.spectra),
    }
    if other is not None:
        figures["alpha_change"] = alpha_change(measured.records, other.records, other.label)
    with print_style():
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
            figure.set_layout_engine("none")  # the layout is complete: computing it again would only take time
            figure.savefig(folder / f"{name}.pdf")
        with PdfPages(folder / "spectra_by_module.pdf") as pdf:
            for role, members in by_role(measured.spectra).items():
                for i, page in enumerate(spectra_of_role(members), 1):
                    number = f"_{i}" if i > 1 else ""
                    page.savefig(folder / f"spectra_{re.sub(r'[^A-Za-z0-9.-]', '_', role)}{number}.png")
                    page.set_layout_engine("none")
                    pdf.savefig(page)
