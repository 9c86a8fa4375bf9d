"""The folder a run leaves behind: config.json, log.jsonl, decay.jsonl, tensorboard/, checkpoints/, summary.json."""

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
BAD_STEPS = "bad_steps.jsonl"  # steps whose loss or gradient was not finite, and what was found of them
ROWS = (LOG, DECAY_LOG, BAD_STEPS)  # what grows line by line
EVALUATION = "evaluation.json"  # of --eval
REQUEUE = "REQUEUE"  # there while a run that was told to end waits to go on
FIGURES = ("training", "decay_over_time", "decay_by_depth", "alpha_by_depth", "spectra")
FOLDERS = ("tensorboard", "checkpoints", "figures")
# What a run writes in its folder, as patterns. Nothing else there is ever deleted.
WRITTEN = (
    CONFIG, *ROWS, SUMMARY, EVALUATION, REQUEUE, *(f"figures/{name}.png" for name in FIGURES),
    "tensorboard/events.out.tfevents.*",
    "checkpoints/best", "checkpoints/best_ema", "checkpoints/step_*", "checkpoints/.step_*",
)  # fmt: skip
STEP = re.compile(r"\.?step_\d+(\.old|\.tmp)?")
# What a checkpoint's folder holds.
MODEL, EMA, STATE, MANIFEST = "model.safetensors", "ema.safetensors", "training_state.pt", "manifest.json"
VERSIONS = ("timm", "torchvision", "numpy", "Pillow")

Row = dict[str, Any]


def run_files(folder: Path) -> list[Path]:
    """What lies in the folder under a name that a run writes."""
    found = [path for pattern in WRITTEN for path in sorted(folder.glob(pattern))]
    return [path for path in found if "step_" not in path.name or is_checkpoint(path)]


def is_checkpoint(path: Path) -> bool:
    """Whether it is a checkpoint's folder, whole or not: by its name, and by a file in it unless it is empty."""
    if not STEP.fullmatch(path.name):
        return False
    inside = os.listdir(path) if path.is_dir() else [path.name]
    return not inside or not {MODEL, EMA, STATE, MANIFEST}.isdisjoint(inside)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint's files, and its folder unless somebody put something else there."""
    if path.is_symlink():
        return path.unlink()
    for name in (MANIFEST, STATE, EMA, MODEL):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def holds_run(folder: Path) -> bool:
    """Whether something lies in the folder under a name that a run writes."""
    return bool(run_files(folder))


def _is_ours(folder: Path) -> bool:
    """Whether a run wrote what lies there: its config.json has what only a run notes."""
    try:
        content = json_of(folder / CONFIG)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "environment" in content


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError if a new run may not use this folder. Nothing is written.

    Names that no run writes may lie there; they are left alone.

    Args:
        folder: The run's folder; it need not exist.
        overwrite: Whether a run in it may be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file")
    found = run_files(folder)
    if found and not _is_ours(folder):
        raise UserError(f"--output_dir {folder}: {found[0].relative_to(folder)} is there, and no run wrote it; "
                        "move it away or give another folder")  # fmt: skip
    if found and overwrite:
        check_no_links(folder, FOLDERS)
    if found and not overwrite:
        raise UserError(f"--output_dir {folder}: holds another run; give --resume, --overwrite or another folder")


def check_no_links(folder: Path, names: Sequence[str] = ("tensorboard", "figures")) -> None:
    """Raise UserError if one of the folders in a run's is a link: what is written there would be somewhere else.

    `checkpoints/` may be one, to a folder on another disk, unless what is in it is to be deleted.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise UserError(f"--output_dir {folder}: {name} is a link; remove it, or give another folder")


def check_inputs_stay(folder: Path, options: Mapping[str, Any]) -> None:
    """Raise UserError if an option's value is a path to what `remove_run` would delete.

    That of --config is no such loss: it has been read, and is written again.
    """
    doomed = [path.resolve() for path in run_files(folder)]
    for name, value in options.items():
        if not isinstance(value, str) or name in ("output_dir", "results_file", "config") or not value or not doomed:
            continue
        with suppress(OSError, ValueError):  # no path
            read = Path(value).resolve()
            if any(read == path or path in read.parents for path in doomed) or read == folder.resolve():
                raise UserError(f"--{name} {value}: lies in the run that --overwrite would delete; give another "
                                "--output_dir")  # fmt: skip


def remove_run(folder: Path) -> None:
    """Delete the files of a run, and nothing else that lies in its folder or in the folders in it."""
    for path in run_files(folder):
        if path.is_dir() and not path.is_symlink():
            remove_checkpoint(path)
        else:
            path.unlink()
    for name in FOLDERS:
        with suppress(OSError):  # it holds something else, is a link, or is not there
            (folder / name).rmdir()


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
        content = json_of(path)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
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
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append one line of JSON a row."""
    try:
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:  # of a full disk Python does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file.

    Raises:
        UserError: If a line is no JSON.
    """
    rows = []
    for number, line in enumerate(lines_of(path), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} cannot be read: {error}") from error
    return rows


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
        with replacing(folder / name) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[:count])
    return lost


def require_rows(folder: Path, counts: Mapping[str, int]) -> None:
    """Raise UserError if a line that a checkpoint has seen cannot be read: going on would cut off all behind it."""
    for name in ROWS:
        lines = lines_of(folder / name)
        whole = len(whole_rows(folder / name))
        if whole < min(counts.get(name, 0), len(lines)):
            raise UserError(f"{folder / name}: line {whole + 1} is damaged; mend or delete it, then go on")


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those around it that are missing; returns those that were made, to be removed again.

    Raises:
        OSError: If one cannot be made; none is left then.
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
    """Remove those of the folders that are empty, the last first."""
    for path in reversed(folders):
        with suppress(OSError):
            path.rmdir()


def whole_rows(path: Path) -> list[Row]:
    """Rows up to the first line that is half written: a crash left it so, or the run is still at it."""
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
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
