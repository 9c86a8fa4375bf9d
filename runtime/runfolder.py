"""The folder of a run: config.json, log.jsonl, decay.jsonl, tensorboard/, checkpoints/, summary.json."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import json_of, lines_of, replacing

CONFIG, LOG, DECAY_LOG, SUMMARY = "config.json", "log.jsonl", "decay.jsonl", "summary.json"
BAD_STEPS = "bad_steps.jsonl"  # steps whose loss or gradient was not finite, and where
ROWS = (LOG, DECAY_LOG, BAD_STEPS)  # files that grow line by line
EVALUATION = "evaluation.json"  # of --eval
REQUEUE = "REQUEUE"  # exists while a run that a signal ended waits to be resumed
FIGURES = ("training", "decay_over_time", "decay_by_depth", "alpha_by_depth", "spectra")
FOLDERS = ("tensorboard", "checkpoints", "figures")
# Patterns of the files that a run writes in its folder. No other files are ever deleted.
WRITTEN = (
    CONFIG, *ROWS, SUMMARY, EVALUATION, REQUEUE, *(f"figures/{name}.png" for name in FIGURES),
    "tensorboard/events.out.tfevents.*",
    "checkpoints/best", "checkpoints/best_ema", "checkpoints/step_*", "checkpoints/.step_*",
)  # fmt: skip
STEP = re.compile(r"\.?step_\d+(\.old|\.tmp)?")
# The files of a checkpoint.
MODEL, EMA, STATE, MANIFEST = "model.safetensors", "ema.safetensors", "training_state.pt", "manifest.json"
METADATA, SHARD = ".metadata", re.compile(r"__\d+_\d+\.distcp")  # of a sharded one, in place of MODEL
VERSIONS = ("timm", "torchvision", "numpy", "Pillow")

Row = dict[str, Any]


def run_files(folder: Path) -> list[Path]:
    """The files and checkpoints in the folder whose names are those that a run writes."""
    paths = [path for pattern in WRITTEN for path in sorted(folder.glob(pattern))]
    return [path for path in paths if "step_" not in path.name or is_checkpoint(path)]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint's folder, intact or not: by its name, and by a file in it unless it is empty."""
    if not STEP.fullmatch(path.name):
        return False
    names = os.listdir(path) if path.is_dir() else [path.name]
    if any(map(SHARD.fullmatch, names)):
        return True
    return not names or not {MODEL, EMA, STATE, MANIFEST, METADATA}.isdisjoint(names)


def remove_checkpoint(path: Path) -> None:
    """Delete the files of a checkpoint, or of what a crash left of one, and its folder unless it has other files."""
    if path.is_symlink():
        return path.unlink()
    shards = [each.name for each in path.glob("*.distcp") if SHARD.fullmatch(each.name)]
    for name in (MANIFEST, STATE, EMA, MODEL, METADATA, f"{METADATA}.tmp", *shards):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def holds_run(folder: Path) -> bool:
    """Whether the folder has a file or checkpoint with a name that a run writes."""
    return bool(run_files(folder))


def _is_ours(folder: Path) -> bool:
    """Whether a run wrote the files in the folder: only a run's config.json has an "environment"."""
    try:
        content = json_of(folder / CONFIG)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "environment" in content


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError if a new run may not use this folder. Nothing is written.

    Files with names that no run writes are allowed and left unchanged.

    Args:
        folder: The run folder; it need not exist.
        overwrite: Whether a run in it may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file")
    files = run_files(folder)
    if files and not _is_ours(folder):
        raise UserError(f"--output_dir {folder}: has a file {files[0].relative_to(folder)} that no run wrote; "
                        "move it away or give another folder")  # fmt: skip
    if files and overwrite:
        check_no_links(folder, FOLDERS)
    if files and not overwrite:
        raise UserError(f"--output_dir {folder}: holds another run; give --resume, --overwrite or another folder")


def check_no_links(folder: Path, names: Sequence[str] = ("tensorboard", "figures")) -> None:
    """Raise UserError if a folder in the run folder is a link: the run would write somewhere else.

    `checkpoints/` may be a link, to a folder on another disk, unless its content is to be deleted.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise UserError(f"--output_dir {folder}: {name} is a link; remove it, or give another folder")


def check_inputs_stay(folder: Path, options: Mapping[str, Any]) -> None:
    """Raise UserError if an option's value is a path to a file that `remove_run` would delete.

    The file of --config may be deleted: it has been read, and is written again.
    """
    doomed = [path.resolve() for path in run_files(folder)]
    for name, value in options.items():
        if not isinstance(value, str) or name in ("output_dir", "results_file", "config") or not value or not doomed:
            continue
        with suppress(OSError, ValueError):  # not a path
            read = Path(value).resolve()
            if any(read == path or path in read.parents for path in doomed) or read == folder.resolve():
                raise UserError(f"--{name} {value}: is in the run that --overwrite would delete; give another "
                                "--output_dir")  # fmt: skip


def remove_run(folder: Path) -> None:
    """Delete the files of a run, and no other files in its folder or subfolders."""
    for path in run_files(folder):
        if path.is_dir() and not path.is_symlink():
            remove_checkpoint(path)
        else:
            path.unlink()
    for name in FOLDERS:
        with suppress(OSError):  # it has other files, is a link, or does not exist
            (folder / name).rmdir()


def read_config(folder: Path) -> dict[str, Any]:
    """The options in a run folder's config.json, or in a file with the same format.

    Raises:
        UserError: If it cannot be read.
    """
    return read_json(folder / CONFIG if folder.is_dir() else folder, "a run's configuration")


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        expected: What the file should be, for the error.

    Raises:
        UserError: If it cannot be read or is not a JSON object.
    """
    try:
        content = json_of(path)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as {expected}: {error}") from error
    return content


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Write config.json: every option, and under "environment" versions, commit, command and machine."""
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
    """Write a JSON file so that it is never incomplete."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append one line of JSON per row."""
    try:
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:  # for a full disk Python does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none if the file does not exist.

    Raises:
        UserError: If a line is not JSON.
    """
    rows = []
    for number, line in enumerate(lines_of(path), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} cannot be read: {error}") from error
    return rows


def cut_back(folder: Path, counts: Mapping[str, int], from_folder: Path) -> list[str]:
    """Cut each file of rows back to its length when a checkpoint was written: its first `counts` lines.

    Returns:
        A message for each file that lacks some of these lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    messages = []
    for name in ROWS:
        rows, count = whole_rows(from_folder / name), counts.get(name, 0)
        if len(rows) < count:
            messages.append(f"{from_folder / name} has {len(rows)} lines, but had {count} at the checkpoint")
        if not count:
            (folder / name).unlink(missing_ok=True)
            continue
        with replacing(folder / name) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[:count])
    return messages


def require_rows(folder: Path, counts: Mapping[str, int]) -> None:
    """Raise UserError if a line from before a checkpoint cannot be read: resuming would delete all lines after it."""
    for name in ROWS:
        lines = lines_of(folder / name)
        intact = len(whole_rows(folder / name))
        if intact < min(counts.get(name, 0), len(lines)):
            raise UserError(f"{folder / name}: line {intact + 1} is damaged; repair or delete it, then resume")


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its missing parents; return those that were made.

    Raises:
        OSError: If one cannot be made; then those already made are removed.
    """
    made: list[Path] = []
    try:
        for path in [*reversed(folder.absolute().parents), folder]:
            if not path.exists():
                path.mkdir()
                made.append(path)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty, in reverse order."""
    for path in reversed(folders):
        with suppress(OSError):
            path.rmdir()


def whole_rows(path: Path) -> list[Row]:
    """Rows up to the first incomplete line, which a crash left or the run is still writing."""
    rows: list[Row] = []
    for line in lines_of(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None
