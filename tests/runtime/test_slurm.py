"""scripts/slurm.sh with stand-ins for Slurm's commands: what it does with signals and the REQUEUE mark."""

import os
import signal
import subprocess
import time

import pytest
from tiny import ROOT

STAND_INS = {
    "scontrol": 'echo "$@" >> "$CALLS"; [ "$1" = requeue ] || echo node1',
    "scancel": 'echo "scancel $*" >> "$CALLS"; kill -TERM "$(cat "$CALLS.training")"',
    # Training for 5 s, which on TERM leaves the mark as main.py does; torchrun turns its status into 1.
    "srun": 'echo $$ > "$CALLS.training"; trap \'[ -z "$MARK" ] || echo told > "$MARK"; exit 1\' TERM\n'
    'echo "srun $*" >> "$CALLS"; [ -z "$FAILS" ] || exit 1; for i in $(seq 50); do sleep 0.1; done',
}

SLOWNESS = 0.05  # seconds of the test for a second of the cluster
LONG_SAVE = {
    "srun": 'echo $$ > "$CALLS.training"; echo srun >> "$CALLS"; while [ "$1" != torchrun ]; do shift; done; exec "$@"',
    # Passes TERM on, and kills what has not ended after its patience: 30 s unless the environment says otherwise.
    "torchrun": 'patience=$(awk "BEGIN {print ${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-30} * $SLOWNESS}")\n'
    "trap 'kill -TERM $child; (sleep $patience; kill -KILL $child) & killer=$!' TERM\n"
    "training & child=$!\n"
    "while kill -0 $child 2>/dev/null; do wait $child && status=0 || status=1; done\n"
    '[ -z "$killer" ] || kill $killer; exit $status',
    # On TERM it saves for 60 s.
    "training": 'if [ -e "$CALLS.saved" ]; then echo resumed >> "$CALLS"; exit 0; fi\n'
    'trap \'sleep "$(awk "BEGIN {print 60 * $SLOWNESS}")"; touch "$CALLS.saved"; echo told > "$MARK"; exit 75\' TERM\n'
    'echo training >> "$CALLS"; for i in $(seq 200); do sleep 0.05; done',
}


@pytest.fixture
def job(tmp_path, request):
    for name, body in (STAND_INS | getattr(request, "param", {})).items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    run_folder = tmp_path / "run"
    run_folder.mkdir()

    def start(*words, **environment):
        return subprocess.Popen(
            ["bash", "scripts/slurm.sh", "--output_dir", str(run_folder), *words],
            cwd=ROOT,
            env=os.environ
            | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "MARK": "", "FAILS": ""}
            | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7"}
            | {"SLURM_JOB_NUM_NODES": "1"}
            | environment,
        )

    return start, run_folder, tmp_path / "calls"


def told_to_end(process, calls, once="srun"):
    while not calls.exists() or once not in calls.read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    return process.wait(timeout=30)


def test_a_run_that_saved_when_told_to_end_is_requeued(job):
    start, folder, calls = job
    assert told_to_end(start(MARK=str(folder / "REQUEUE")), calls) == 1
    said = calls.read_text()
    assert "scancel --signal=TERM 7" in said and "requeue 7" in said
    assert "main.py --resume auto --output_dir" in said


def test_a_run_that_could_not_save_is_not(job):
    start, _, calls = job
    assert told_to_end(start(), calls) == 1
    assert "requeue" not in calls.read_text()


def test_a_mark_of_an_earlier_turn_does_not_requeue_a_run_that_fails(job):
    start, folder, calls = job
    (folder / "REQUEUE").write_text("SIGTERM at optimizer step 3")
    assert start(FAILS="yes").wait(timeout=30) == 1
    assert "requeue" not in calls.read_text()


@pytest.mark.parametrize("job", [LONG_SAVE], indirect=True, ids=["long save"])
def test_a_run_that_saves_for_a_minute_is_requeued_once_and_resumes(job):
    start, folder, calls = job
    environment = {"MARK": str(folder / "REQUEUE"), "SLOWNESS": str(SLOWNESS)}
    assert told_to_end(start(**environment), calls, "training") == 1
    first = ["show hostnames node1", "srun", "training", "scancel --signal=TERM 7", "requeue 7"]
    assert calls.read_text().splitlines() == first
    assert start(**environment).wait(timeout=30) == 0  # as the queue would start it
    assert calls.read_text().splitlines() == [*first, "show hostnames node1", "srun", "resumed"]
