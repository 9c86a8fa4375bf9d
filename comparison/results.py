"""What the runs of a comparison left: their state, figures, logs and ledgers; one row a run in results.csv."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from comparison.cells import Cell
from comparison.grid import Grid
from runtime import runfolder
from runtime.errors import EXIT_NON_FINITE, UserError

CELL, FAILED, OUTPUT = "cell.json", "failed.json", "output.txt"  # in a run's folder, besides what the trainer leaves
FINISHED, BROKEN, STARTED, WAITING = "finished", "failed", "started", "waiting"
COLUMNS = (
    "domain", "setting", "strategy", "weight_decay", "point", "seed", "metric", "value", "state", "published",
    "mean_applied_decay", "weight_norm", "train_loss", "step", "seconds", "samples_per_second", "git_commit", "machine",
    "folder",
)  # fmt: skip
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A cell and what its folder holds."""

    cell: Cell
    folder: Path
    kept: str | None = None  # the state that `state` is to stay at

    @property
    def state(self) -> str:
        """finished, failed, started (to be resumed), or waiting; as the folder has it now."""
        if self.kept is not None:
            return self.kept
        if (self.folder / runfolder.SUMMARY).exists():
            return FINISHED
        if (self.folder / FAILED).exists():
            return BROKEN
        return STARTED if runfolder.holds_run(self.folder) else WAITING

    @cached_property
    def failure(self) -> Row:
        """Of a failed run: status (exit status; negative: killed by that signal) and lines (the last of its output)."""
        return runfolder.read_json(self.folder / FAILED, "a failure")

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
        return runfolder.read_json(self.folder / runfolder.SUMMARY, "a summary") if self.state == FINISHED else {}

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """One row an evaluation."""
        return runfolder.whole_rows(self.folder / runfolder.LOG)

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        """One row a module and refresh."""
        return runfolder.whole_rows(self.folder / runfolder.LEDGER)

    @cached_property
    def environment(self) -> Row:
        """Versions, commit, command and machine; empty where nothing has run."""
        path = self.folder / runfolder.CONFIG
        return runfolder.read_config(path).get("environment", {}) if path.exists() else {}

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
    """The runs as their folders have them now, whatever other processes do to them while a report is written."""
    found = []
    for run in runs:
        kept = replace(run, kept=run.state)
        if kept.state == BROKEN:
            kept.failure  # noqa: B018 - read and kept, for another call may take the run up again
        found.append(kept)
    return found


def write_csv(path: Path, runs: Sequence[Run], root: Path) -> None:
    """One row a run, finished or not.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(run.row(root) for run in runs)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}") from error
