"""Reads a trainer's command line and the stored configuration that --config or --resume names."""

import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime import runfolder
from runtime.errors import UserError
from runtime.options import Check, build, parse
from runtime.run_options import settle
from runtime.runfolder import Row

PER_CALL = (
    "resume",
    "overwrite",
    "config",
    "eval",
    "results_file",
    "dry_run",
    "self_test_resume",
    "max_steps",
    "allow_changed",
)  # never taken from a stored configuration
PROGRAMS = {"data_set": "main.py", "dataset": "main_llama.py"}  # an option that only this program's configurations have


def read_command(
    classes: Sequence[type],
    argv: Sequence[str],
    checks: Sequence[Check],
    description: str,
    presets: Callable[[Row], Row] = lambda values: {},
) -> list[Any]:
    """A program's options: from the command line, then from the configuration that --config or --resume names.

    Args:
        classes, argv, checks, description: As for `runtime.options.parse` and `build`.
        presets: Computes defaults from the command line's options; used if there is no stored configuration.

    Raises:
        UserError: For the first word that cannot be read or the first constraint that is violated.
    """
    values, typed = parse(classes, argv, description=description)
    source = _stored_config(values)
    stored = {} if source is None else _stored(source, values, {f.name for cls in classes for f in fields(cls)})
    not_stored = set(PER_CALL) - ({"max_steps"} if values["config"] else set())  # a repeated run has the same last step
    defaults = {name: value for name, value in stored.items() if name not in not_stored} or presets(values)
    if values["config"]:
        defaults.pop("output_dir", None)  # a repeated run needs a folder of its own
    if values["eval"]:
        defaults.pop("export_hf", None)  # an evaluation exports only if the command line says so
    if defaults:
        values, _ = parse(classes, argv, defaults=defaults)
    if source is not None and values["resume"] not in ("", "auto") and "output_dir" not in typed:
        values["output_dir"] = str(source)
    settle(values, typed)
    try:
        return build(classes, values, checks)
    except UserError as error:
        name = str(error).removeprefix("--").split(" ")[0].rstrip(":")
        if name in stored and name not in typed:
            raise UserError(f"{error} (from {source})") from error
        raise


def _stored_config(values: Mapping[str, Any]) -> Path | None:
    if values["config"]:
        return Path(values["config"])
    resumed = Path(values["output_dir"] if values["resume"] == "auto" else values["resume"])
    if values["resume"] not in ("", "auto") and not any(
        (resumed / name).exists() for name in ("manifest.json", "checkpoints")
    ):
        missing = "is neither a checkpoint nor a run folder with checkpoints" if resumed.exists() else "does not exist"
        raise UserError(f"--resume {resumed}: {missing}")
    for folder in (resumed, resumed.parent.parent) if values["resume"] else ():
        if (folder / runfolder.CONFIG).exists():
            return folder
    return None


def _stored(source: Path, values: Mapping[str, Any], known: Container[str]) -> Row:
    """The options in a run's configuration; raises UserError if it is of another program."""
    typed = f"--config {values['config']}" if values["config"] else f"--resume {values['resume']}"
    try:
        stored = runfolder.read_config(source)
    except UserError as error:
        raise UserError(f"{typed}: {error}") from error
    for option, program in PROGRAMS.items():
        if option in stored and option not in known:
            raise UserError(f"{typed}: is a run of {program}, which has other options; use {program}")
    return stored


def resume_command(folder: str, ranks: int) -> str:
    """The command that resumes this run from the folder."""
    program = ["torchrun", f"--nproc_per_node={ranks}"] if ranks > 1 else ["python"]
    replaced, words = ("--resume", "--output_dir", "--output-dir"), list[str]()
    for word in sys.argv:
        if words and words[-1] in replaced:
            words.pop()
        elif word != "--overwrite" and word.split("=")[0] not in (replaced if "=" in word else ()):
            words.append(word)
    return shlex.join([*program, *words, "--resume", "auto", "--output_dir", folder])
