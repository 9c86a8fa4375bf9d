"""What a run's folder holds: state, figures, logs, and the marks of which cell it is of and how it failed."""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from alphadecay.tables import escaped, harmless
from comparison import remains
from comparison.grid import Grid
from comparison.programs import Cell
from runtime import runfolder
from runtime.errors import EXIT_FAILED, EXIT_NON_FINITE, UserError

CELL, FAILED, OUTPUT = "cell.json", "failed.json", "output.txt"  # in a run's folder, besides what the trainer leaves
FINISHED, BROKEN, STARTED, WAITING = "finished", "failed", "started", "waiting"
DAMAGED = "damaged"  # a file in its folder is not what a run leaves; only runs `at_rest` are in this state
Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A cell and what its folder holds."""

    cell: Cell
    folder: Path
    kept: str | None = None  # the state that `state` is to stay at
    damage: str = ""  # what is wrong with a file that it left

    @property
    def state(self) -> str:
        """finished, failed, started (to be resumed), waiting; damaged if that cannot be seen. As it is now."""
        if self.kept is not None:
            return self.kept
        try:
            if (self.folder / runfolder.SUMMARY).exists():
                return FINISHED
            if (self.folder / FAILED).exists():
                return BROKEN
            return STARTED if runfolder.holds_run(self.folder) else WAITING
        except OSError:
            return DAMAGED

    def look(self) -> str:
        """Read all that the run left; what is wrong with it, or nothing."""
        for part in (self.noted, self.failure, self.summary, self.environment, self.log, self.decay_log):
            del part
        self.__dict__.pop("decay_log")  # the largest: it is read again where it is drawn, of a few runs
        return self.wrong[0] if self.wrong else self.other_option()

    def other_option(self) -> str:
        """An option of the run in the folder that is not the cell's: somebody replaced the run, or let it go on."""
        if self.state != FINISHED or not (self.folder / runfolder.CONFIG).exists():
            return ""
        program = self.cell.setting.program
        found: dict[str, Any] = self._read(lambda: remains.read_object(self.folder / runfolder.CONFIG), {})
        wanted = json.loads(json.dumps(program.read_options(self.cell.words()).flat()))
        for name in ("seed", "max_steps", *program.fixed):
            if name in found and found[name] != wanted[name]:
                is_, was = remains.shown(found[name]), remains.shown(wanted[name])
                return f"{self.folder / runfolder.CONFIG}: is of a run with {name} {is_}; this cell's is {was}"
        return ""

    @cached_property
    def wrong(self) -> list[str]:
        """What is wrong with the files that were read so far."""
        return []

    def _read(self, read: Callable[[], T], otherwise: T) -> T:
        """What a reader finds; what is wrong is noted, not raised, so that no run stands in the way of others."""
        try:
            return read()
        except UserError as error:
            self.wrong.append(str(error))
            return otherwise

    @cached_property
    def noted(self) -> Row:
        """cell.json: which cell the folder was begun for; empty where that is not noted."""
        path = self.folder / CELL
        return self._read(lambda: remains.read_object(path), {}) if path.is_symlink() or path.exists() else {}

    @cached_property
    def failure(self) -> Row:
        """Of a failed run: status (exit status; negative: killed by that signal) and lines (the last of its output)."""
        nothing = {"status": EXIT_FAILED, "lines": []}
        if self.state != BROKEN:
            return nothing
        return self._read(lambda: remains.read_failure(self.folder / FAILED), nothing)

    @property
    def diverged(self) -> bool:
        """Whether it failed because loss or gradients were no longer finite."""
        if self.state != BROKEN:
            return False
        # torchrun ends with 1 whatever happened, and tells the status of the process that ended first.
        told = any(re.match(rf"\s*exitcode\s*: {EXIT_NON_FINITE} ", line) for line in self.failure["lines"])
        return self.failure["status"] == EXIT_NON_FINITE or (self.cell.setting.processes > 1 and told)

    @cached_property
    def summary(self) -> Row:
        """summary.json; empty before the run has finished."""
        if self.state != FINISHED:
            return {}
        return self._read(lambda: remains.read_summary(self.folder, self.cell.setting.metric.name), {})

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """One row an evaluation."""
        return self._read(lambda: remains.read_log(self.folder), [])

    @cached_property
    def decay_log(self) -> list[dict[str, Any]]:
        """One row a module and refresh."""
        return self._read(lambda: remains.read_decay_log(self.folder), [])

    @cached_property
    def environment(self) -> Row:
        """Versions, commit and machine; empty where nothing has run."""
        return self._read(lambda: remains.read_environment(self.folder), {})

    @property
    def value(self) -> float | None:
        """The metric at the end; None before the run has finished, and if it is not finite."""
        value = self.summary.get(self.cell.setting.metric.name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def mean_decay(self) -> float | None:
        """Mean applied decay: over parameters that are decayed at all, then over the run's evaluations."""
        return fmean(row["weight_decay_mean"] for row in self.log) if self.log else None

    def row(self, root: Path) -> dict[str, Any]:
        """The run as a line of results.csv."""
        cell, last = self.cell, self.log[-1] if self.log else {}
        return {
            "domain": cell.setting.domain,
            "setting": cell.setting.label,
            "strategy": cell.strategy,
            "weight_decay": cell.weight_decay,
            "point": cell.point_name,
            "seed": cell.seed,
            "metric": cell.setting.metric.name,
            "value": self.value,
            "state": "diverged" if self.diverged else self.state,
            "published": cell.published,
            "mean_applied_decay": self.mean_decay,
            "weight_norm": last.get("weight_norm"),
            "train_loss": last.get("train_loss"),
            "step": last.get("step"),
            "seconds": self.summary.get("seconds"),
            "samples_per_second": self.summary.get("samples_per_second"),
            "git_commit": self.environment.get("git_commit"),
            "machine": self.environment.get("machine"),
            "folder": str(self.folder.relative_to(root)),
        }


def read_runs(grid: Grid, root: Path) -> list[Run]:
    """The grid's runs in their order; their folders are below `root`."""
    return [Run(cell, cell.folder(root)) for cell in grid.cells]


def at_rest(runs: Sequence[Run]) -> list[Run]:
    """The runs as their folders have them now, all read; one of which something cannot be read is damaged."""
    return [_at_rest(run) for run in runs]


def _at_rest(run: Run) -> Run:
    try:
        found = replace(run, kept=run.state)
        wrong = found.look()
    except OSError as error:
        wrong = f"{run.folder}: cannot be looked into: {error.strerror}"
    return replace(run, kept=DAMAGED, damage=wrong) if wrong else found


def write_csv(path: Path, runs: Sequence[Run], root: Path) -> None:
    """One row a run, finished or not; UserError if it cannot be written."""
    try:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(runs[0].row(root)))
            writer.writeheader()
            writer.writerows({name: harmless(each) for name, each in run.row(root).items()} for run in runs)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


REASONS = ("error: ", "stopped: ")  # how trainers begin the line that says why they end
TURN = "$ python "  # how the line of a command begins, in the output of several turns
MOST_SHOWN = 200  # characters of a value in a message
LAST_LINES = 12  # of a failed run's output, kept with the reason


def note_failure(run: Run, status: int, text: str = "") -> None:
    """Write down that and how a run failed, with its status and its output, or `text` where there is none."""
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

    Threads only count where runs are started; if they are not, what cannot be read is left to the report.

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
    """Note in each run's folder which cell it is of; UserError if it cannot be written."""
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
