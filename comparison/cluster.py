"""The same runs as jobs of a cluster, through submitit: its queue is the scheduler, this only submits and watches."""

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
REFUSALS = (RuntimeError, TypeError, ValueError, NameError, AssertionError)  # what submitit raises for what it refuses
LOOK_EVERY = {"slurm": 15.0, "local": 0.5}  # seconds


class ClusterRun:
    """A run as submitit calls it in a job. Before the job's time is up its process saves, and the job comes again."""

    def __init__(self, run: Run, environment: Mapping[str, str]) -> None:
        self.run, self.environment = run, environment
        self._stopping: Stopping | None = None

    def __call__(self) -> str:
        """Train to the end; returns the run's state."""
        self._stopping = Stopping()
        try:
            run_one(self.run, self.environment, self._stopping)
        except BaseException:  # a cancelled job takes its process along
            self._end()
            raise
        return Run(self.run.cell, self.run.folder).state

    def checkpoint(self) -> Any:
        """What submitit calls when the job is to be requeued."""
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
    """Submit the runs that no job is queued or going on for, and watch all until they have ended.

    The kind local is jobs on this machine, all at once; the parameters are submitit's own, for slurm. Jobs' nodes see
    the comparison's folder too. UserError if submitit refuses.
    """
    jobs = _submitted(kind, runs, root, parameters, environment)
    begun: set[str] = set()
    left = list(runs)
    while left:
        for run in list(left):
            name, job = run.cell.name, jobs[run.cell.name]
            done = job.done()
            if name not in begun and (done or job.state == "RUNNING"):
                begun.add(name)
                board.begins(run)
            ended = run.state in (FINISHED, BROKEN)
            if done or (ended and kind == "slurm"):  # its accounting lags behind
                if not ended and not (run.folder / runfolder.REQUEUE).exists():  # else it was told to end
                    note_failure(run, EXIT_FAILED, job.stderr() or f"job {job.job_id} ended as {job.state}")
                left.remove(run)
                board.ends(run)
        time.sleep(LOOK_EVERY[kind])


def executor_for(kind: str, root: Path, parameters: Mapping[str, Any]) -> Any:
    """What submits jobs, nothing written; UserError for no such cluster, or a parameter that is not submitit's."""
    import submitit

    try:
        executor = submitit.AutoExecutor(root / FOLDER, cluster=kind)
        executor.update_parameters(name="alphadecay", **(parameters if kind == "slurm" else {}))
    except REFUSALS as error:
        raise UserError(f"--submit {kind}: {error}") from error
    return executor


def checked_jobs(path: Path) -> dict[str, str]:
    """Job numbers by the run's name, as an earlier call noted them; UserError if the file is something else."""
    noted = read_object(path)
    for name, number in noted.items():
        if not isinstance(number, str) or not JOB.fullmatch(number):
            raise UserError(f"{path}: is damaged: {shown(name)}: {shown(number)} is no number of a job")
    return noted


def _submitted(
    kind: str, runs: Sequence[Run], root: Path, parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    """A job for each run: the one that an earlier call submitted, if it is not done, or a new one."""
    import submitit

    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    noted = checked_jobs(folder / JOBS) if (folder / JOBS).exists() else {}
    jobs: dict[str, Any] = {}
    if kind == "slurm":  # local jobs end with the call that submitted them
        names = [run.cell.name for run in runs if run.cell.name in noted]
        jobs = {name: submitit.SlurmJob(folder, noted[name]) for name in names}
        jobs = {name: job for name, job in jobs.items() if not job.done()}
    new = [run for run in runs if run.cell.name not in jobs]
    if not new:
        return jobs
    executor = executor_for(kind, root, parameters)
    try:
        with _importable(), executor.batch():
            submitted = [executor.submit(ClusterRun(run, environment)) for run in new]
    except (*REFUSALS, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"--submit {kind}: {error}") from error
    jobs |= {run.cell.name: job for run, job in zip(new, submitted, strict=True)}
    runfolder.write_json(folder / JOBS, noted | {name: job.job_id for name, job in jobs.items()})
    return jobs


@contextmanager
def _importable() -> Iterator[None]:
    """Jobs that are submitted within find this project, wherever the command is given."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
