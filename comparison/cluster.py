"""Runs as jobs of a cluster, through submitit: the cluster schedules them, this module submits and watches them."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comparison.board import Board
from comparison.programs import ROOT
from comparison.remains import read_object, shown
from comparison.results import BROKEN, FINISHED, Run, note_failure
from comparison.running import PATIENCE, Stopping, run_one
from runtime import runfolder
from runtime.errors import EXIT_FAILED, UserError

FOLDER, JOBS = "cluster", "jobs.json"
JOB = re.compile(r"\d{1,18}(_\d{1,18})?")
REFUSALS = (RuntimeError, TypeError, ValueError, NameError, AssertionError)  # raised by submitit for bad parameters
LOOK_EVERY = {"slurm": 15.0, "local": 0.5}  # seconds


class ClusterRun:
    """A run as submitit calls it in a job. Before the job's time limit the run saves, and the job is requeued."""

    def __init__(self, run: Run, environment: Mapping[str, str]) -> None:
        self.run, self.environment = run, environment
        self._stopping: Stopping | None = None

    def __call__(self) -> str:
        """Train until the run ends; returns the run's state."""
        self._stopping = Stopping()
        try:
            run_one(self.run, self.environment, self._stopping)
        except BaseException:  # if the job is cancelled, its process must end too
            self._end()
            raise
        return Run(self.run.spec, self.run.folder).state

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job."""
        import submitit

        self._end()
        return submitit.helpers.DelayedSubmission(ClusterRun(self.run, self.environment))

    def _end(self) -> None:
        if self._stopping is not None:
            self._stopping.stop()
            self._stopping.wait(PATIENCE)


def run_on_cluster(
    kind: str, runs: Sequence[Run], root: Path, parameters: Mapping[str, Any], environment: Mapping[str, str],
    board: Board,
) -> None:  # fmt: skip
    """Submit the runs that have no queued or running job, and watch all runs until they have ended.

    The nodes of the cluster must see the comparison's folder.

    Args:
        kind: slurm; or local: all runs at once, as jobs on this machine.
        runs: The runs to submit and watch.
        root: The comparison's folder.
        parameters: submitit's parameters, used by slurm only.
        environment: Variables to add to the environment of each run.
        board: Is notified when runs begin and end.

    Raises:
        UserError: If submitit refuses.
    """
    jobs = _submitted(kind, runs, root, parameters, environment)
    begun: set[str] = set()
    left = list(runs)
    while left:
        for run in list(left):
            name, job = run.spec.name, jobs[run.spec.name]
            done = job.done()
            if name not in begun and (done or job.state == "RUNNING"):
                begun.add(name)
                board.begins(run)
            ended = run.state in (FINISHED, BROKEN)
            if done or (ended and kind == "slurm"):  # Slurm's accounting may be late
                if not ended and not (run.folder / runfolder.REQUEUE).exists():  # REQUEUE: the run was preempted
                    note_failure(run, EXIT_FAILED, job.stderr() or f"job {job.job_id} ended as {job.state}")
                left.remove(run)
                board.ends(run)
        time.sleep(LOOK_EVERY[kind])


def executor_for(kind: str, root: Path, parameters: Mapping[str, Any]) -> Any:
    """The executor of submitit; writes nothing. UserError for an unknown cluster or parameter."""
    import submitit

    try:
        executor = submitit.AutoExecutor(root / FOLDER, cluster=kind)
        executor.update_parameters(name="alphadecay", **(parameters if kind == "slurm" else {}))
    except REFUSALS as error:
        raise UserError(f"--submit {kind}: {error}") from error
    return executor


def checked_jobs(path: Path) -> dict[str, str]:
    """Read the job numbers that an earlier call wrote, by run name; UserError if the file has anything else."""
    job_numbers = read_object(path)
    for name, number in job_numbers.items():
        if not isinstance(number, str) or not JOB.fullmatch(number):
            raise UserError(f"{path}: is damaged: {shown(name)}: {shown(number)} is not a job number")
    return job_numbers


def _submitted(
    kind: str, runs: Sequence[Run], root: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """One job per run, by run name: the job that an earlier call submitted, if it is not done, or a new one."""
    import submitit

    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    job_numbers = checked_jobs(folder / JOBS) if (folder / JOBS).exists() else {}
    jobs: dict[str, Any] = {}
    if kind == "slurm":  # local jobs end with the call that submitted them
        names = [run.spec.name for run in runs if run.spec.name in job_numbers]
        jobs = {name: submitit.SlurmJob(folder, job_numbers[name]) for name in names}
        jobs = {name: job for name, job in jobs.items() if not job.done()}
    new = [run for run in runs if run.spec.name not in jobs]
    if not new:
        return jobs
    executor = executor_for(kind, root, parameters)
    try:
        with _importable(), executor.batch():
            submitted = [executor.submit(ClusterRun(run, environment)) for run in new]
    except (*REFUSALS, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--submit {kind}: {error}") from error
    jobs |= {run.spec.name: job for run, job in zip(new, submitted, strict=True)}
    runfolder.write_json(folder / JOBS, job_numbers | {name: job.job_id for name, job in jobs.items()})
    return jobs


@contextmanager
def _importable() -> Iterator[None]:
    """Add this project to PYTHONPATH while the context lasts, so that jobs submitted within it can import it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
