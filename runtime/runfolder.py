"""The folder a run leaves behind: config.json, log.jsonl, decay.jsonl, tensorboard/, checkpoints/, summary.json."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import UserError

CONFIG, LOG, LEDGER, SUMMARY = "config.json", "log.jsonl", "decay.jsonl", "summary.json"
BAD_STEPS = "bad_steps.jsonl"  # steps whose loss or gradient was not finite, and what was found of them
ROWS = (LOG, LEDGER, BAD_STEPS)  # what grows line by line
REQUEUE = "REQUEUE"  # there while a run that was told to end waits to go on
FOLDERS = ("tensorboard", "checkpoints", "figures")
VERSIONS = ("timm", "torchvision", "numpy", "Pillow")

Row = dict[str, Any]


def holds_run(folder: Path) -> bool:
    """Whether the folder has files of a run in it."""
    return any((folder / name).exists() for name in (CONFIG, LOG, SUMMARY, "checkpoints"))


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError if a new run may not use this folder. Nothing is written.

    Args:
        folder: The run's folder; it need not exist.
        overwrite: Whether a run in it may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file")
    if holds_run(folder) and not overwrite:
        raise UserError(f"--output_dir {folder}: holds another run; give --resume, --overwrite or another folder")


def remove_run(folder: Path) -> None:
    """Delete the files of a run, and nothing else that lies in its folder."""
    for name in (CONFIG, *ROWS, SUMMARY, REQUEUE):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.json, or a file of that kind.

    Raises:
        UserError: If it cannot be read.
    """
    return read_json(folder / CONFIG if folder.is_dir() else folder, "a run's configuration")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """What a JSON file holds.

    Args:
        path: The file.
        what: It is to be, for the error.

    Raises:
        UserError: If it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}") from error
    return content


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Write config.json: every option, and under "environment" what else a result depends on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, dict(options) | {"environment": environment()})
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written: {error}") from error


def environment() -> Row:
    """Versions, commit, command and machine."""
    return {
        "versions": {"python": platform.python_version()} | library_versions(),
        "git_commit": _git_commit(),
        "command": sys.argv,
        "machine": platform.platform(),
    }


def library_versions() -> dict[str, str | None]:
    """Versions of the libraries that results depend on; torch's says CPU or CUDA."""
    import torch

    return {"torch": str(torch.__version__)} | {name: _version(name) for name in VERSIONS}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is never half there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave it empty under its name
    temporary.replace(path)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append one line of JSON a row."""
    try:
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:  # of a full disk Python does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def cut_back(folder: Path, counts: Mapping[str, int], from_folder: Path) -> list[str]:
    """Keep of the files of rows what a checkpoint has seen: the first `counts` lines of each.

    Returns:
        A line on each file that has lost some of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lost = []
    for name in ROWS:
        rows, count = whole_rows(from_folder / name), counts.get(name, 0)
        if len(rows) < count:
            lost.append(f"{from_folder / name} has {len(rows)} lines, the checkpoint had seen {count}")
        if not count:
            (folder / name).unlink(missing_ok=True)
            continue
        temporary = folder / f".{name}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        temporary.replace(folder / name)
    return lost


def whole_rows(path: Path) -> list[Row]:
    """Rows up to the first line that is half written: a crash left it so, or the run is still at it."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
