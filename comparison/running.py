"""Runs as separate processes, at most N at once. All end when the comparison is stopped; every failure is recorded.

A run's folder is locked while a process works in it. The lock is an open file that the process inherits, so the lock
stays even if the comparison is killed and its process is not. So two calls never train in one folder; the second waits.
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
from comparison.results import BROKEN, FINISHED, OUTPUT, SPEC, TURN, Run, claim, note_failure
from runtime import runfolder
from runtime.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted, UserError
from runtime.strategies import STRATEGIES
from runtime.tables import say

LOCK, THREADS = ".lock", "OMP_NUM_THREADS"
POLL = 0.5  # seconds between checks of processes and locks
PATIENCE = 60.0  # seconds that a run may take to save and end after it was asked to
Place = Mapping[str, str]  # variables for the environment of a run's process
Event = tuple[str, Run]  # "begins" or "ends"


def places(jobs: int, threads: int | None, gpus: Sequence[str], gpus_per_run: int) -> list[Place]:
    """Environments for `jobs` runs at once; GPUs, named as in CUDA_VISIBLE_DEVICES, are assigned in turn.

    If `threads` is None, torch chooses. Each place gets `gpus_per_run` GPUs, or all if there are fewer.
    """
    made: list[Place] = []
    for i in range(jobs):
        environment: dict[str, str] = {}
        if threads is not None:
            environment[THREADS] = str(threads)
        if gpus:
            assigned = [gpus[(i * gpus_per_run + j) % len(gpus)] for j in range(min(gpus_per_run, len(gpus)))]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(assigned)
        made.append(environment)
    return made


class Stopping:
    """Whether the runs have been asked to end (`requested`), and the processes to terminate then."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.RLock()  # reentrant: a signal handler may run while this thread holds it

    @contextmanager
    def watching(self, process: subprocess.Popen) -> Iterator[None]:
        """While the context lasts, `stop` and `kill` also end this process."""
        with self._lock:
            self._processes.add(process)
            if self.requested.is_set():
                process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)

    def wait(self, seconds: float) -> None:
        """Return when all processes have ended, at the latest after this many seconds."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in set(self._processes)) and time.monotonic() < end:
            time.sleep(POLL)

    def stop(self) -> None:
        """Ask all processes to end; they save first."""
        with self._lock:
            self.requested.set()
            for process in self._processes:
                process.terminate()

    def kill(self) -> None:
        """Kill all processes at once; they can be resumed from their last checkpoints."""
        with self._lock:
            for process in self._processes:
                os.killpg(process.pid, signal.SIGKILL)


def run_all(
    runs: Sequence[Run], where: Sequence[Place], stopping: Stopping, events: "queue.Queue[Event]"
) -> list[UserError]:
    """Start or resume all runs in their order, `len(where)` at a time; return when none is running any more.

    Once a stop is requested, no further run begins, and the running ones save and end. `events` gets ("begins", run)
    and ("ends", run). Returns the errors of runs that could not be started, or whose failure could not be noted.
    """
    errors: list[UserError] = []
    free: queue.Queue[Place] = queue.Queue()
    for place in where:
        free.put(place)

    def go(run: Run) -> None:
        place = free.get()
        if not stopping.requested.is_set():
            events.put(("begins", run))
            try:
                run_one(run, place, stopping)
            except (OSError, UserError) as error:
                errors.append(UserError(f"run {run.spec.name}: {error}"))
            events.put(("ends", run))
        free.put(place)

    with ThreadPoolExecutor(len(where), thread_name_prefix="run") as pool:
        list(pool.map(go, runs))
    return errors


def run_one(run: Run, environment: Mapping[str, str], stopping: Stopping) -> None:
    """Start or resume a run and wait for its end; its state can then be read from its folder.

    If another process works in its folder, wait for that process first. If a stop is requested, the run can be resumed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOCK, "w") as lock:
        if not _locked(lock, stopping):
            return
        if run.state in (FINISHED, BROKEN):  # another process has ended it meanwhile
            return
        if not (run.folder / SPEC).exists():  # somebody has deleted the folder meanwhile
            threads = environment.get(THREADS)
            claim([run], int(threads) if threads else None)
        (run.folder / runfolder.REQUEUE).unlink(missing_ok=True)  # left by an earlier start
        status = _process(run, environment, stopping, lock)
        if run.state != FINISHED and not (stopping.requested.is_set() or _was_preempted(run, status)):
            note_failure(run, status)


def _was_preempted(run: Run, status: int) -> bool:
    """Whether somebody else asked the run to end. torchrun's exit status does not say so, the file REQUEUE does."""
    return status in (EXIT_PREEMPTED, EXIT_INTERRUPTED) or (run.folder / runfolder.REQUEUE).exists()


def _locked(lock: IO[str], stopping: Stopping) -> bool:
    """Wait for the lock; False if a stop is requested meanwhile."""
    while not stopping.requested.is_set():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL)
        else:
            return True
    return False


def _process(run: Run, environment: Mapping[str, str], stopping: Stopping, lock: IO[str]) -> int:
    """Run the run's process and return its exit status; negative: killed by that signal."""
    command = run.spec.command(run.folder)
    with open(run.folder / OUTPUT, "a") as output:
        output.write(f"{TURN}{' '.join(command[1:])}\n")
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),),
            start_new_session=True,  # so that Ctrl-C reaches only the comparison, which then stops its runs
        )  # fmt: skip
        with stopping.watching(process):
            return _waited(process, stopping)


def _waited(process: subprocess.Popen, stopping: Stopping) -> int:
    """Wait for the exit status; kill a process that has not ended PATIENCE seconds after a stop was requested."""
    requested_at = None
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            if stopping.requested.is_set():
                requested_at = requested_at or time.monotonic()
                if time.monotonic() - requested_at > PATIENCE:
                    os.killpg(process.pid, signal.SIGKILL)


def rehearse(runs: Sequence[Run], environment: Mapping[str, str]) -> None:
    """Build data, model and optimizer of one run without training: the first with an adaptive strategy, or the first.

    Raises:
        UserError: If its program refuses.
    """
    strategies = [name for name, strategy in STRATEGIES.items() if strategy.assigns]
    adaptive = [run for run in runs if run.spec.options.get("decay") in strategies]
    run = (adaptive or list(runs))[0]
    command = [*run.spec.setting.program.command(run.spec.setting.processes), *run.spec.words(), "--dry_run"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no error message"]
        reason = next((line for line in lines if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
        raise UserError(f"run {run.spec.name}: {reason}")


def run_here(todo: Sequence[Run], where: Sequence[Place], board: Board) -> None:
    """Start or resume the runs, as many at a time as there are places, and wait until all have ended.

    If Ctrl-C or a signal ends the wait, running runs save and end first; a second Ctrl-C kills them.

    Raises:
        UserError: If the folder of a run cannot be used; raised after the other runs have ended.
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
                    event, run = events.get(timeout=POLL)
                    (board.begins if event == "begins" else board.ends)(run)
    except BaseException:
        stopping.stop()
        try:
            with suppress(OSError):  # the terminal may be closed
                say("stopping: running runs save first; the same command resumes them")
            work.join()
        except (KeyboardInterrupt, Preempted):
            stopping.kill()
            work.join()
        raise
    if errors:
        raise errors[0]
