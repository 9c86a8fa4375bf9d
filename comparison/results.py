"""Results of a run, read from its folder: state, metric, logs; and the files that note its spec and its failure."""

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
from comparison.programs import RunSpec
from runtime import runfolder
from runtime.errors import EXIT_FAILED, EXIT_NON_FINITE, UserError

SPEC, FAILED, OUTPUT = "cell.json", "failed.json", "output.txt"  # in a run's folder, besides the trainer's files
FINISHED, BROKEN, STARTED, WAITING = "finished", "failed", "started", "waiting"
DAMAGED = "damaged"  # a file in the run's folder is invalid; only `at_rest` gives this state
Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run spec and the results in its folder."""

    spec: RunSpec
    folder: Path
    kept: str | None = None  # a fixed value for `state`; None: read the state from the folder
    damage: str = ""  # the problem with a file in the folder; empty if there is none

    @property
    def state(self) -> str:
        """The current state: finished, failed, started (to be resumed) or waiting; damaged if it cannot be read."""
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

    def check(self) -> str:
        """Read and check all files of the run; returns the first problem, or nothing."""
        for part in (self.noted, self.failure, self.summary, self.environment, self.log, self.decay_log):
            del part
        self.__dict__.pop("decay_log")  # frees the largest; figures read it again, for a few runs only
        return self.problems[0] if self.problems else self.other_option()

    def other_option(self) -> str:
        """An option whose value differs between config.json and the spec: somebody replaced or continued the run."""
        if self.state != FINISHED or not (self.folder / runfolder.CONFIG).exists():
            return ""
        program = self.spec.setting.program
        config: dict[str, Any] = self._read(lambda: remains.read_object(self.folder / runfolder.CONFIG), {})
        planned = json.loads(json.dumps(program.read_options(self.spec.words()).flat()))
        for name in ("seed", "max_steps", *program.fixed):
            if name in config and config[name] != planned[name]:
                actual, expected = remains.shown(config[name]), remains.shown(planned[name])
                return f"{self.folder / runfolder.CONFIG}: has {name} {actual}; this comparison's run has {expected}"
        return ""

    @cached_property
    def problems(self) -> list[str]:
        """Problems with the files that were read so far."""
        return []

    def _read(self, read: Callable[[], T], default: T) -> T:
        """The result of a reader, or the default; a problem is noted, not raised, so that other runs are still read."""
        try:
            return read()
        except UserError as error:
            self.problems.append(str(error))
            return default

    @cached_property
    def noted(self) -> Row:
        """cell.json: the identity of the run that the folder was made for; empty if there is no such file."""
        path = self.folder / SPEC
        return self._read(lambda: remains.read_object(path), {}) if path.is_symlink() or path.exists() else {}

    @cached_property
    def failure(self) -> Row:
        """Of a failed run: status (exit status; negative: killed by that signal) and lines (the last of its output)."""
        default = {"status": EXIT_FAILED, "lines": []}
        if self.state != BROKEN:
            return default
        return self._read(lambda: remains.read_failure(self.folder / FAILED), default)

    @property
    def diverged(self) -> bool:
        """Whether it failed because loss or gradients were no longer finite."""
        if self.state != BROKEN:
            return False
        # torchrun's own exit status is always 1; it prints the status of the process that failed first.
        printed = any(re.match(rf"\s*exitcode\s*: {EXIT_NON_FINITE} ", line) for line in self.failure["lines"])
        return self.failure["status"] == EXIT_NON_FINITE or (self.spec.setting.processes > 1 and printed)

    @cached_property
    def summary(self) -> Row:
        """summary.json; empty before the run has finished."""
        if self.state != FINISHED:
            return {}
        return self._read(lambda: remains.read_summary(self.folder, self.spec.setting.metric.name), {})

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """One row per evaluation."""
        return self._read(lambda: remains.read_log(self.folder), [])

    @cached_property
    def decay_log(self) -> list[dict[str, Any]]:
        """One row per module and refresh."""
        return self._read(lambda: remains.read_decay_log(self.folder), [])

    @cached_property
    def environment(self) -> Row:
        """Versions, commit and machine; empty if the run has not started."""
        return self._read(lambda: remains.read_environment(self.folder), {})

    @property
    def value(self) -> float | None:
        """The metric at the end; None if the run has not finished or the metric is not finite."""
        value = self.summary.get(self.spec.setting.metric.name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def mean_decay(self) -> float | None:
        """Mean applied decay: averaged over the decayed parameters, then over the run's evaluations."""
        return fmean(row["weight_decay_mean"] for row in self.log) if self.log else None

    def row(self, root: Path) -> dict[str, Any]:
        """The run as a line of results.csv."""
        spec, last = self.spec, self.log[-1] if self.log else {}
        return {
            "domain": spec.setting.domain,
            "setting": spec.setting.label,
            "strategy": spec.strategy,
            "weight_decay": spec.weight_decay,
            "point": spec.point_name,
            "seed": spec.seed,
            "metric": spec.setting.metric.name,
            "value": self.value,
            "state": "diverged" if self.diverged else self.state,
            "published": spec.published,
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
    return [Run(spec, spec.folder(root)) for spec in grid.specs]


def at_rest(runs: Sequence[Run]) -> list[Run]:
    """The runs with their current states fixed and all their files read; runs with unreadable files are damaged."""
    return [_at_rest(run) for run in runs]


def _at_rest(run: Run) -> Run:
    try:
        fixed = replace(run, kept=run.state)
        problem = fixed.check()
    except OSError as error:
        problem = f"{run.folder}: cannot be read: {error.strerror}"
    return replace(run, kept=DAMAGED, damage=problem) if problem else fixed


def write_csv(path: Path, runs: Sequence[Run], root: Path) -> None:
    """Write one row per run, finished or not; UserError if the file cannot be written."""
    try:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(runs[0].row(root)))
            writer.writeheader()
            writer.writerows({name: harmless(value) for name, value in run.row(root).items()} for run in runs)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


REASONS = ("error: ", "stopped: ")  # a trainer's line with its reason to end starts with one of these
TURN = "$ python "  # starts the line with the command, once per start of the run
MOST_SHOWN = 200  # characters of a value in a message
LAST_LINES = 12  # of a failed run's output, kept with the reason


def note_failure(run: Run, status: int, text: str = "") -> None:
    """Write failed.json: the exit status, and the last lines of the output, or of `text` if there is no output."""
    output = run.folder / OUTPUT
    text = output.read_bytes().decode(errors="replace") if output.exists() else text
    text = "".join(text.rpartition(TURN)[1:])
    lines = [line.rstrip().split("\r")[-1] for line in text.split("\n")]  # of a progress bar only its last state
    last = [line for line in lines if line][-LAST_LINES:]
    reason = [line for line in lines if line.startswith(REASONS)][-1:]  # torchrun prints more lines after it
    runfolder.write_json(
        run.folder / FAILED, {"status": status, "lines": last if set(reason) <= set(last) else reason + last}
    )


def forget_failure(run: Run) -> None:
    """Remove failed.json, so that the run is resumed; UserError if it cannot be removed."""
    try:
        (run.folder / FAILED).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{run.folder / FAILED}: cannot be removed: {error.strerror}") from error


def check_same(runs: Sequence[Run], threads: int | None, starting: bool = True) -> None:
    """Make sure that existing folders belong to the same run specs.

    If no runs are to be started, threads may differ, and the report names the files that cannot be read.

    Raises:
        UserError: If an option has changed, or the folder has other content or cannot be read.
    """
    for run in runs:
        try:
            _check_same(run, threads, starting)
        except OSError as error:
            if not starting:
                continue
            raise UserError(f"run {run.spec.name}: {run.folder} cannot be read: {error}") from error


def _check_same(run: Run, threads: int | None, starting: bool) -> None:
    before, now = run.noted, identity(run, threads)
    if run.problems:
        if starting:
            raise UserError(f"run {run.spec.name}: {run.problems[0]}")
        return  # the report names the problem
    if not before:
        if runfolder.holds_run(run.folder):
            raise UserError(f"run {run.spec.name}: {run.folder} has a run that is not part of this comparison")
        return
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name) and (starting or name != "threads"):
            old = f"{escaped(name)[:MOST_SHOWN]} {_value_text(before, name)}"
            raise UserError(
                f"run {run.spec.name}: {run.folder} was begun with {old}, now it is {_value_text(now, name)}; "
                "use another --output_dir, or delete that folder"
            )


def _value_text(options: Row, name: str) -> str:
    """An option's value as messages show it, cut off if it is very long."""
    text = escaped(str(options.get(name, "not given")))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def claim(runs: Sequence[Run], threads: int | None) -> None:
    """Write each run's identity into its folder; UserError if it cannot be written."""
    for run in runs:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            runfolder.write_json(run.folder / SPEC, identity(run, threads))
        except OSError as error:
            raise UserError(f"--output_dir {run.folder}: cannot be written: {error}") from error


def identity(run: Run, threads: int | None) -> dict[str, Any]:
    """What identifies a run: program, processes, threads, seed and options, as they are after a round trip in JSON."""
    spec = run.spec
    options = {name: json.loads(json.dumps(value)) for name, value in spec.options.items()}
    place = {"program": spec.setting.program.script, "processes": spec.setting.processes, "threads": threads}
    return {**place, "seed": spec.seed, **options}
