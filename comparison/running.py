"""The runs on this machine: independent processes, so many at once, that outlive neither a stop nor a failure unseen.

A run's folder is locked while a process works in it, also by a process that a killed comparison left behind: the lock
is the open file, which the process inherits. So two calls never train in one folder; the second waits.
"""

import fcntl
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO

from comparison.board import Board
from comparison.programs import ROOT
from comparison.results import BROKEN, CELL, FINISHED, OUTPUT, TURN, Run, claim, note_failure
from runtime import runfolder
from runtime.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted, UserError
from runtime.strategies import STRATEGIES
from runtime.tables import say

LOCK, THREADS = ".lock", "OMP_NUM_THREADS"
POLL = 0.5  # seconds between looks at processes and locks
PATIENCE = 60.0  # seconds a run that was told to end may take to save
Place = Mapping[str, str]  # where a run takes place: the environment of its process
Event = tuple[str, Run]  # "begins" or "ends"


def places(jobs: int, threads: int | None, gpus: Sequence[str], gpus_a_run: int) -> list[Place]:
    """So many places for runs side by side; GPUs, as CUDA_VISIBLE_DEVICES names them, are dealt out in turn.

    Without `threads` torch chooses how many itself; a place gets `gpus_a_run` GPUs, at most all.
    """
    made: list[Place] = []
    for i in range(jobs):
        environment: dict[str, str] = {}
        if threads is not None:
            environment[THREADS] = str(threads)
        if gpus:
            mine = [gpus[(i * gpus_a_run + j) % len(gpus)] for j in range(min(gpus_a_run, len(gpus)))]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        made.append(environment)
    return made


class Stopping:
    """Whether the runs have been told to end, and the processes that must then be told."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # a signal's handler may come while this thread holds it

    @contextmanager
    def watching(self, process: subprocess.Popen) -> Iterator[None]:
        """The process is told to end too while the context lasts."""
        with self._lock:
            self._processes.add(process)
            if self.told.is_set():
                process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)

    def wait(self, seconds: float) -> None:
        """Return when the processes have ended, or after so many seconds."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in set(self._processes)) and time.monotonic() < end:
            time.sleep(POLL)

    def stop(self) -> None:
        """Tell all processes to end; they save first."""
        with self._lock:
            self.told.set()
            for process in self._processes:
                process.terminate()

    def kill(self) -> None:
        """End all processes at once; they go on from their last checkpoints."""
        with self._lock:
            for process in self._processes:
                os.killpg(process.pid, signal.SIGKILL)


def run_all(
    runs: Sequence[Run], where: Sequence[Place], stopping: Stopping, events: "queue.Queue[Event]"
) -> list[UserError]:
    """Take all runs to their end, `len(where)` at a time, in their order; returns when none is going on any more.

    Once `stopping` is told, no further run begins and those going on save and end; `events` gets ("begins", run) and
    ("ends", run). Returns what kept runs from starting, or their end from being noted.
    """
    errors: list[UserError] = []
    free: queue.Queue[Place] = queue.Queue()
    for place in where:
        free.put(place)

    def go(run: Run) -> None:
        place = free.get()
        if not stopping.told.is_set():
            events.put(("begins", run))
            try:
                run_one(run, place, stopping)
            except (OSError, UserError) as error:
                errors.append(UserError(f"cell {run.cell.name}: {error}"))
            events.put(("ends", run))
        free.put(place)

    with ThreadPoolExecutor(len(where), thread_name_prefix="run") as pool:
        list(pool.map(go, runs))
    return errors


def run_one(run: Run, environment: Mapping[str, str], stopping: Stopping) -> None:
    """Start or resume a run and wait for its end; how it ended is in its folder then.

    If another process works in its folder, wait for that one. Told to stop, it leaves what can be resumed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOCK, "w") as lock:
        if not _locked(lock, stopping):
            return
        if run.state in (FINISHED, BROKEN):  # meanwhile, by another
            return
        if not (run.folder / CELL).exists():  # the folder was deleted meanwhile
            threads = environment.get(THREADS)
            claim([run], int(threads) if threads else None)
        (run.folder / runfolder.REQUEUE).unlink(missing_ok=True)  # of an earlier turn
        status = _process(run, environment, stopping, lock)
        if run.state != FINISHED and not (stopping.told.is_set() or _can_go_on(run, status)):
            note_failure(run, status)


def _can_go_on(run: Run, status: int) -> bool:
    """Whether a run was told to end by another than the comparison; torchrun's own status does not say so."""
    return status in (EXIT_PREEMPTED, EXIT_INTERRUPTED) or (run.folder / runfolder.REQUEUE).exists()


def _locked(lock: IO[str], stopping: Stopping) -> bool:
    """Wait for the lock; False if told to stop meanwhile."""
    while not stopping.told.is_set():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL)
        else:
            return True
    return False


def _process(run: Run, environment: Mapping[str, str], stopping: Stopping, lock: IO[str]) -> int:
    """The exit status of the run's process; negative: killed by that signal."""
    command = run.cell.command(run.folder)
    with open(run.folder / OUTPUT, "a") as output:
        output.write(f"{TURN}{' '.join(command[1:])}\n")
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),),
            start_new_session=True,  # Ctrl-C is for the comparison, which tells its runs
        )  # fmt: skip
        with stopping.watching(process):
            return _waited(process, stopping)


def _waited(process: subprocess.Popen, stopping: Stopping) -> int:
    """The exit status, once there is one; a process that was told to end and does not is killed."""
    told_at = None
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            if stopping.told.is_set():
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > PATIENCE:
                    os.killpg(process.pid, signal.SIGKILL)


def rehearse(runs: Sequence[Run], environment: Mapping[str, str]) -> None:
    """Build what a run would train, and nothing more: of the first of these that holds an adaptive decay.

    Raises:
        UserError: If its program refuses.
    """
    kinds = [name for name, strategy in STRATEGIES.items() if strategy.assigns]
    adaptive = [run for run in runs if run.cell.options.get("decay") in kinds]
    run = (adaptive or list(runs))[0]
    command = [*run.cell.setting.program.command(run.cell.setting.processes), *run.cell.words(), "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        said = next((line for line in lines if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        raise UserError(f"cell {run.cell.name}: {said}")


def run_here(todo: Sequence[Run], where: Sequence[Place], board: Board) -> None:
    """Take the runs to their end, as many at a time as there are places.

    Whatever ends the wait (Ctrl-C, a signal) first lets the runs that go on save and end; a second Ctrl-C kills them.

    Raises:
        UserError: Of the first run whose folder could not be worked in, once the others have ended.
    """
    events: queue.Queue[Event] = queue.Queue()
    stopping = Stopping()
    errors: list[UserError] = []
    work = threading.Thread(target=lambda: errors.extend(run_all(todo, where, stopping, events)), name="runs")
    try:
        with board:
            work.start()
            while work.is_alive() or not events.empty():
                with suppress(queue.Empty):
                    what, run = events.get(timeout=POLL)
                    (board.begins if what == "begins" else board.ends)(run)
    except BaseException:
        stopping.stop()
        try:
            with suppress(OSError):  # nobody may be left to read it
                say("stopping: the runs that go on save first; the same command then goes on with them")
            work.join()
        except (KeyboardInterrupt, Preempted):
            stopping.kill()
            work.join()
        raise
    if errors:
        raise errors[0]
