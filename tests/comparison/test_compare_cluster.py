"""The runs of a comparison as submitit's jobs: on this machine for real, and with stand-ins for Slurm's commands."""

import os
import threading
import time

import pytest
from stub_runs import lines, stub_run
from test_compare_running import until
from tiny import ROOT

from comparison import cluster
from comparison.board import Board
from comparison.cluster import ClusterRun, run_on_cluster
from comparison.results import BROKEN, FINISHED
from runtime.errors import UserError


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Jobs must find the stubs too; the project they find by themselves, wherever they are submitted."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "helpers"))
    monkeypatch.chdir("/")
    monkeypatch.setitem(cluster.LOOK_EVERY, "slurm", 0.2)


def submit(kind, runs, root, **parameters):
    run_on_cluster(kind, runs, root, parameters, {"OMP_NUM_THREADS": "1"}, Board(runs, len(runs)))


@pytest.mark.slow
def test_jobs_take_runs_to_their_end_and_failures_are_noted(tmp_path):
    runs = [stub_run(tmp_path, 0), stub_run(tmp_path, 1, fails_at=1, status=3)]
    submit("local", runs, tmp_path)
    assert [run.state for run in runs] == [FINISHED, BROKEN] and runs[1].diverged
    assert lines(runs[0].folder / "starts")[0].endswith(" 1")


def test_a_job_that_is_to_be_requeued_saves_and_goes_on_where_it_was(tmp_path):
    run = stub_run(tmp_path, steps=40)
    job = ClusterRun(run, {})
    work = threading.Thread(target=job)
    work.start()
    until(lambda: len(lines(run.folder / "steps")) > 2)
    again = job.checkpoint()
    work.join(20)
    assert (run.folder / "checkpoints").exists() and run.state not in (FINISHED, BROKEN)
    assert again.function() == FINISHED
    assert [int(line) for line in lines(run.folder / "steps")] == list(range(1, 41))


SBATCH = """#!/usr/bin/env bash
cp "${@: -1}" "$STANDIN/batch.sh"
echo "Submitted batch job 41"
"""
SACCT = """#!/usr/bin/env bash
echo "JobID|State|NodeList"
for i in 0 1; do echo "41_$i|RUNNING|here"; done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for sbatch and sacct; the folder they note things in."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("sacct", SACCT), ("srun", "#!/bin/sh\n")):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN", str(folder))
    return folder


def finish(runs):
    """What the jobs would do."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "summary.json").write_text('{"acc1": 1.0}')


def test_slurm_gets_one_array_with_submitits_parameters_and_is_not_asked_twice(tmp_path, slurm):
    runs = [stub_run(tmp_path, seed) for seed in (0, 1)]
    work = threading.Thread(target=submit, args=("slurm", runs, tmp_path), kwargs={"slurm_partition": "gpu7"})
    work.start()
    until(lambda: (slurm / "batch.sh").exists())
    time.sleep(0.5)
    finish(runs[:1])
    time.sleep(0.5)
    assert work.is_alive()  # the other one is not done
    finish(runs)
    work.join(20)
    script = (slurm / "batch.sh").read_text()
    assert not work.is_alive() and "--partition=gpu7" in script and "--array=0-1%" in script
    (slurm / "batch.sh").unlink()
    for run in runs:
        (run.folder / "summary.json").unlink()
    again = threading.Thread(target=submit, args=("slurm", runs, tmp_path))
    again.start()
    time.sleep(1)
    finish(runs)
    again.join(20)
    assert not again.is_alive() and not (slurm / "batch.sh").exists()


def test_without_slurm_or_with_a_parameter_that_submitit_does_not_know_it_is_one_line(tmp_path, slurm, monkeypatch):
    with pytest.raises(UserError, match="^--submit slurm: .*slurm_partytion"):
        submit("slurm", [stub_run(tmp_path)], tmp_path, slurm_partytion="x")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match="^--submit slurm: Could not detect .srun."):
        submit("slurm", [stub_run(tmp_path)], tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', '{"a": "../../x"}', '{"a": "$(true)"}', "[" * 100_000])
def test_jobs_that_nobody_noted_are_refused(tmp_path, content):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(UserError, match="jobs.json: is damaged: "):
        cluster.checked_jobs(tmp_path / "jobs.json")
