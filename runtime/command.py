"""How a trainer's command line is read, with the configurations of runs that it names."""

import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime import runfolder
from runtime.errors import UserError
from runtime.options import Check, build, parse
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
)  # said anew in every call
PROGRAMS = {"data_set": "main.py", "dataset": "main_llama.py"}  # an option that only its own configurations have


def read_command(
    classes: Sequence[type],
    argv: Sequence[str],
    checks: Sequence[Check],
    description: str,
    presets: Callable[[Row], Row] = lambda values: {},
) -> list[Any]:
    """A program's options; where the command line is silent, those of --config or of the run that --resume names.

    Args:
        classes, argv, checks, description: As for `runtime.options.parse` and `build`.
        presets: Defaults that follow from the options of the command line, where no stored ones hold.

    Raises:
        UserError: For the first word or constraint that does not hold.
    """
    values, given = parse(classes, argv, description=description)
    source = _stored_config(values)
    stored = {} if source is None else _stored(source, values, {each.name for cls in classes for each in fields(cls)})
    anew = set(PER_CALL) - ({"max_steps"} if values["config"] else set())  # the same run again stops where it did
    defaults = {name: value for name, value in stored.items() if name not in anew} or presets(values)
    if values["config"]:
        defaults.pop("output_dir", None)  # but elsewhere: it is another run
    if values["eval"]:
        defaults.pop("export_hf", None)  # only a run's end exports without being told again
    if defaults:
        values, _ = parse(classes, argv, defaults=defaults)
    if source is not None and values["resume"] not in ("", "auto") and "output_dir" not in given:
        values["output_dir"] = str(source)
    try:
        return build(classes, values, checks)
    except UserError as error:
        named = str(error).removeprefix("--").split(" ")[0].rstrip(":")
        if named in stored and named not in given:
            raise UserError(f"{error} (from {source})") from error
        raise


def _stored_config(values: Mapping[str, Any]) -> Path | None:
    if values["config"]:
        return Path(values["config"])
    resumed = Path(values["output_dir"] if values["resume"] == "auto" else values["resume"])
    if values["resume"] not in ("", "auto") and not any(
        (resumed / name).exists() for name in ("manifest.json", "checkpoints")
    ):
        missing = "is no checkpoint and no run folder with checkpoints in it" if resumed.exists() else "does not exist"
        raise UserError(f"--resume {resumed}: {missing}")
    for folder in (resumed, resumed.parent.parent) if values["resume"] else ():
        if (folder / runfolder.CONFIG).exists():
            return folder
    return None


def _stored(source: Path, values: Mapping[str, Any], known: Container[str]) -> Row:
    """The options that a run's configuration holds, which is one of this program."""
    typed = f"--config {values['config']}" if values["config"] else f"--resume {values['resume']}"
    try:
        stored = runfolder.read_config(source)
    except UserError as error:
        raise UserError(f"{typed}: {error}") from error
    for option, program in PROGRAMS.items():
        if option in stored and option not in known:
            raise UserError(f"{typed}: is of a run of {program}, which has other options; give it to {program}")
    return stored


def command_to_go_on(folder: str, ranks: int) -> str:
    """This program's command with what lets it go on from the folder."""
    program = ["torchrun", f"--nproc_per_node={ranks}"] if ranks > 1 else ["python"]
    anew, words = ("--resume", "--output_dir", "--output-dir"), list[str]()
    for word in sys.argv:
        if words and words[-1] in anew:
            words.pop()
        elif word != "--overwrite" and word.split("=")[0] not in (anew if "=" in word else ()):
            words.append(word)
    return shlex.join([*program, *words, "--resume", "auto", "--output_dir", folder])
