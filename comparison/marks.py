"""What a comparison notes in a run's folder: which cell it is of, and how it failed."""

import json
from collections.abc import Sequence
from typing import Any

from alphadecay.tables import escaped
from comparison.results import CELL, FAILED, OUTPUT, Row, Run
from runtime import runfolder
from runtime.errors import UserError

REASONS = ("error: ", "stopped: ")  # how trainers begin the line that says why they end
TURN = "$ python "  # how the line of a command begins, in the output of several turns
MOST_SHOWN = 200  # characters of a value in a message
LAST_LINES = 12  # of a failed run's output, kept with the reason


def note_failure(run: Run, status: int, text: str = "") -> None:
    """Write down that and how a run failed; `--retry_failed` takes it up again.

    Args:
        run: The run.
        status: Its process' exit status; negative: killed by that signal.
        text: What is known of the reason where the run has no output.
    """
    output = run.folder / OUTPUT
    text = output.read_bytes().decode(errors="replace") if output.exists() else text
    text = "".join(text.rpartition(TURN)[1:])
    lines = [line.rstrip().split("\r")[-1] for line in text.split("\n")]  # of a bar its last state
    last = [line for line in lines if line][-LAST_LINES:]
    said = [line for line in lines if line.startswith(REASONS)][-1:]  # torchrun says more behind it
    runfolder.write_json(
        run.folder / FAILED, {"status": status, "lines": last if set(said) <= set(last) else said + last}
    )


def forget_failure(run: Run) -> None:
    """Let a failed run be taken up again; UserError if its mark cannot be removed."""
    try:
        (run.folder / FAILED).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{run.folder / FAILED}: cannot be removed: {error.strerror}") from error


def check_same(runs: Sequence[Run], threads: int | None, starting: bool = True) -> None:
    """Make sure that folders that were begun before are of the same cells.

    Args:
        runs: All runs.
        threads: CPU threads of a run; they only count where runs are started.
        starting: Whether runs are started. If not, what cannot be read is left to the report.

    Raises:
        UserError: If an option is not as it was, or the folder holds something else or cannot be looked into.
    """
    for run in runs:
        try:
            _check_same(run, threads, starting)
        except OSError as error:
            if not starting:
                continue
            raise UserError(f"cell {run.cell.name}: {run.folder} cannot be looked into: {error}") from error


def _check_same(run: Run, threads: int | None, starting: bool) -> None:
    before, now = run.noted, identity(run, threads)
    if run.wrong:
        if starting:
            raise UserError(f"cell {run.cell.name}: {run.wrong[0]}")
        return  # the report says so
    if not before:
        if runfolder.holds_run(run.folder):
            raise UserError(f"cell {run.cell.name}: {run.folder} holds a run that is not this comparison's")
        return
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name) and (starting or name != "threads"):
            what = f"{escaped(name)[:MOST_SHOWN]} {_was(before, name)}"
            raise UserError(
                f"cell {run.cell.name}: {run.folder} was begun with {what}, now it is {_was(now, name)}; "
                "take another --output_dir, or delete that folder"
            )


def _was(options: Row, name: str) -> str:
    """A value as messages have it: in full, if it is one that people write."""
    text = escaped(str(options.get(name, "not given")))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def claim(runs: Sequence[Run], threads: int | None) -> None:
    """Note in each run's folder which cell it is of.

    Raises:
        UserError: If the folders cannot be written.
    """
    for run in runs:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            runfolder.write_json(run.folder / CELL, identity(run, threads))
        except OSError as error:
            raise UserError(f"--output_dir {run.folder}: cannot be written: {error}") from error


def identity(run: Run, threads: int | None) -> dict[str, Any]:
    """What makes a cell the one it is: its program and words, as JSON gives them back."""
    cell = run.cell
    words = {name: json.loads(json.dumps(value)) for name, value in cell.options.items()}
    place = {"program": cell.setting.program.script, "processes": cell.setting.processes, "threads": threads}
    return {**place, "seed": cell.seed, **words}
