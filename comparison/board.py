"""How far a comparison is: a live table on a terminal, else a line a finished run."""

import sys
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from alphadecay.tables import escaped
from comparison.results import BROKEN, DAMAGED, FINISHED, Run
from runtime.tables import say


class Board:
    """Counts what begins and ends of all runs, `jobs` of them at once, shows it, and tells how long the rest takes."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.runs, self.jobs = runs, jobs
        self._began: dict[str, float] = {}  # of what is going on
        self._took: dict[str, list[float]] = {}  # seconds of what has ended in this call, by setting
        self._states = {run.cell.name: run.state for run in runs}
        self._values = {run.cell.name: run.value for run in runs}
        self._start = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> "Board":
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self.rendered, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begins(self, run: Run) -> None:
        """A run has been started or resumed."""
        self._began[run.cell.name] = time.monotonic()

    def ends(self, run: Run) -> None:
        """A run has ended, in whatever way."""
        name, fresh = run.cell.name, Run(run.cell, run.folder)
        took = time.monotonic() - self._began.pop(name, time.monotonic())
        self._states[name], self._values[name] = fresh.state, fresh.value
        if fresh.state == FINISHED:
            self._took.setdefault(run.cell.setting.name, []).append(took)
        if self._live is None:
            say(f"{self.counts()}  {name}: {_outcome(fresh)}, {_clock(took)}{self._left_words()}")

    def counts(self) -> str:
        """Such as "[3/42]"."""
        ended = [state for state in self._states.values() if state in (FINISHED, BROKEN)]
        return f"[{len(ended)}/{len(self.runs)}]"

    def seconds_left(self) -> float | None:
        """A guess from runs of the same setting that have finished; None before any has."""
        known = {name: fmean(took) for name, took in self._took.items()}
        if not known:
            return None
        usual, now, rest = median(known.values()), time.monotonic(), 0.0
        for run in self.runs:
            name = run.cell.name
            if self._states[name] not in (FINISHED, BROKEN):
                expected = known.get(run.cell.setting.name, usual)
                gone = now - self._began[name] if name in self._began else 0.0
                rest += max(expected - gone, 0.0)
        return rest / self.jobs

    def _left_words(self) -> str:
        left = self.seconds_left()
        return f", about {_clock(left)} left" if left is not None else ""

    def rendered(self) -> Any:
        """The table as rich shows it; finished strategies give way where the terminal is low."""
        from rich.table import Table

        table = Table(title=self._title(), title_justify="left", box=None, pad_edge=False)
        for column in ("", "strategy", "finished", "failed", "metric so far", "going on"):
            table.add_column(column, justify="left" if column in ("", "strategy", "going on") else "right")
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.cell.setting.name, run.cell.strategy), []).append(run)
        for (setting, strategy), members in groups.items():
            table.add_row(setting, strategy, *self._row(members))
        return table

    def _title(self) -> str:
        gone = _clock(time.monotonic() - self._start)
        return f"{self.counts()} {len(self._began)} going on, {gone} gone{self._left_words()}"

    def _row(self, members: Sequence[Run]) -> list[str]:
        names = [run.cell.name for run in members]
        finished = sum(self._states[name] == FINISHED for name in names)
        failed = sum(self._states[name] == BROKEN for name in names)
        values = [v for name in names if (v := self._values[name]) is not None]
        now = [f"{r.cell.point_name} seed {r.cell.seed}" for r in members if r.cell.name in self._began]
        mean = f"{fmean(values):.4g}" if values else ""
        return [f"{finished}/{len(members)}", str(failed or ""), mean, ", ".join(now)]


def show_cells(runs: Sequence[Run]) -> None:
    """Print every run with its state and command."""
    for run in runs:
        say(f"{run.cell.name} ({run.state})\n  {escaped(' '.join(run.cell.command(run.folder)))}")
    settings = dict.fromkeys(run.cell.setting.name for run in runs)
    say(f"\n{len(runs)} runs in {len(settings)} settings: {', '.join(settings)}")


def show_failures(runs: Sequence[Run]) -> None:
    """Print failed runs with the last lines of their output, and damaged ones with what is wrong."""
    for run in runs:
        if run.state == DAMAGED:
            say(f"\ndamaged: {run.cell.name}: {run.damage}")
        if run.state == BROKEN:
            say(f"\nfailed: {run.cell.name}, {status_words(run.failure['status'])}: {run.folder}")
            for line in run.failure["lines"]:
                say(f"  | {line}")


def status_words(status: int) -> str:
    """An exit status in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _outcome(run: Run) -> str:
    if run.state == FINISHED:
        return f"{run.cell.setting.metric.name} {'none' if run.value is None else format(run.value, '.4g')}"
    return "failed, " + status_words(run.failure["status"]) if run.state == BROKEN else "stopped, to be resumed"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
