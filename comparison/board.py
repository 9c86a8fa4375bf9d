"""Progress of a comparison: a live table on a terminal; elsewhere one line per run that ends."""

import shlex
import sys
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from alphadecay.tables import escaped
from comparison.results import BROKEN, DAMAGED, FINISHED, Run
from runtime.tables import say


class Board:
    """Shows which of all runs have begun and ended, and estimates the time left if `jobs` of them run at once."""

    def __init__(self, runs: Sequence[Run], jobs: int) -> None:
        self.runs, self.jobs = runs, jobs
        self._began: dict[str, float] = {}  # start times of the runs that are running, by name
        self._took: dict[str, list[float]] = {}  # seconds of the runs that have finished in this call, by setting
        self._states = {run.spec.name: run.state for run in runs}
        self._values = {run.spec.name: run.value for run in runs}
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
        """Note that a run has been started or resumed."""
        self._began[run.spec.name] = time.monotonic()

    def ends(self, run: Run) -> None:
        """Note that a run has finished, failed or been stopped."""
        name, fresh = run.spec.name, Run(run.spec, run.folder)
        took = time.monotonic() - self._began.pop(name, time.monotonic())
        self._states[name], self._values[name] = fresh.state, fresh.value
        if fresh.state == FINISHED:
            self._took.setdefault(run.spec.setting.name, []).append(took)
        if self._live is None:
            say(f"{self.counts()}  {name}: {_outcome(fresh)}, {_clock(took)}{self._left_words()}")

    def counts(self) -> str:
        """How many runs have ended, such as "[3/42]"."""
        ended = [state for state in self._states.values() if state in (FINISHED, BROKEN)]
        return f"[{len(ended)}/{len(self.runs)}]"

    def seconds_left(self) -> float | None:
        """An estimate from the finished runs of each setting; None before any run has finished."""
        mean_seconds = {name: fmean(took) for name, took in self._took.items()}
        if not mean_seconds:
            return None
        usual, now, rest = median(mean_seconds.values()), time.monotonic(), 0.0
        for run in self.runs:
            name = run.spec.name
            if self._states[name] not in (FINISHED, BROKEN):
                expected = mean_seconds.get(run.spec.setting.name, usual)
                elapsed = now - self._began[name] if name in self._began else 0.0
                rest += max(expected - elapsed, 0.0)
        return rest / self.jobs

    def _left_words(self) -> str:
        left = self.seconds_left()
        return f", about {_clock(left)} left" if left is not None else ""

    def rendered(self) -> Any:
        """The live table, as rich shows it."""
        from rich.table import Table

        table = Table(title=self._title(), title_justify="left", box=None, pad_edge=False)
        for column in ("", "strategy", "finished", "failed", "metric so far", "running"):
            table.add_column(column, justify="left" if column in ("", "strategy", "running") else "right")
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.spec.setting.name, run.spec.strategy), []).append(run)
        for (setting, strategy), members in groups.items():
            table.add_row(setting, strategy, *self._row(members))
        return table

    def _title(self) -> str:
        elapsed = _clock(time.monotonic() - self._start)
        return f"{self.counts()} {len(self._began)} running, {elapsed} elapsed{self._left_words()}"

    def _row(self, members: Sequence[Run]) -> list[str]:
        names = [run.spec.name for run in members]
        finished = sum(self._states[name] == FINISHED for name in names)
        failed = sum(self._states[name] == BROKEN for name in names)
        values = [v for name in names if (v := self._values[name]) is not None]
        now = [f"{r.spec.point_name} seed {r.spec.seed}" for r in members if r.spec.name in self._began]
        mean = f"{fmean(values):.4g}" if values else ""
        return [f"{finished}/{len(members)}", str(failed or ""), mean, ", ".join(now)]


def show_runs(runs: Sequence[Run]) -> None:
    """Print every run with its state and command."""
    for run in runs:
        say(f"{run.spec.name} ({run.state})\n  {escaped(shlex.join(run.spec.command(run.folder)))}")
    settings = dict.fromkeys(run.spec.setting.name for run in runs)
    say(f"\n{len(runs)} runs in {len(settings)} settings: {', '.join(settings)}")


def show_failures(runs: Sequence[Run]) -> None:
    """Print failed runs with the last lines of their output, and damaged runs with the reason."""
    for run in runs:
        if run.state == DAMAGED:
            say(f"\ndamaged: {run.spec.name}: {run.damage}")
        if run.state == BROKEN:
            say(f"\nfailed: {run.spec.name}, {status_words(run.failure['status'])}: {run.folder}")
            for line in run.failure["lines"]:
                say(f"  | {line}")


def status_words(status: int) -> str:
    """An exit status in words, such as "exit status 1"."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _outcome(run: Run) -> str:
    if run.state == FINISHED:
        return f"{run.spec.setting.metric.name} {'none' if run.value is None else format(run.value, '.4g')}"
    return "failed, " + status_words(run.failure["status"]) if run.state == BROKEN else "stopped, to be resumed"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
