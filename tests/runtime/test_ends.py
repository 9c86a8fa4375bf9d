"""Whatever happens on whichever rank, its line is printed by the rank that had it, before anything that can block."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from forked import free_port
from tiny import ROOT

from runtime import processes
from runtime.errors import UserError

# Ranks do what their words say; leaving the group would block, as NCCL's does while peers are gone.
PROGRAM = """
import datetime, sys, time
import torch.distributed as dist
from runtime import processes
from runtime.errors import NonFiniteError, UserError, exit_status
from runtime.processes import process_group
from runtime.writer import BackgroundWriter

if sys.argv[1] != sys.argv[2]:
    processes.SAME_ERROR = datetime.timedelta(seconds=0.1)  # else what is written has time enough

def main():
    with process_group("cpu", timeout=1) as ranks:
        dist.destroy_process_group = lambda *_: time.sleep(1000)
        what = sys.argv[1 + ranks.rank]
        writer = BackgroundWriter()
        writer.submit(lambda: (time.sleep(2), open(f"{sys.argv[3]}/{ranks.rank}", "w").close()))
        if what == "user":
            raise UserError("--data_path /none: is not there")
        if what == "mistake":
            raise ZeroDivisionError("of ours")
        if what == "full":
            raise OSError(28, "No space left on device", "log.jsonl")
        if what == "agreed":
            raise NonFiniteError("loss not finite")
        if what == "main":
            ranks.from_main(lambda: (_ for _ in ()).throw(UserError("--output_dir x: is taken")))
        ranks.wait()

sys.exit(exit_status(main))
"""


def ends(tmp_path, *words):
    """Exit statuses and messages of two ranks that do what their words say."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    port, began = free_port(), time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, program, *words, tmp_path], stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                 "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=60)[1] for each in ranks]
    assert time.monotonic() - began < 50
    return [each.returncode for each in ranks], said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("wait", "user"), 2, "error: rank 1 on {host}: --data_path /none: is not there"),
        (("wait", "mistake"), 1, "failed: rank 1 on {host}: ZeroDivisionError: of ours"),
        (("wait", "full"), 2, "error: rank 1 on {host}: log.jsonl cannot be written: No space left on device"),
    ],
)
def test_an_error_of_one_rank_is_said_by_it_and_ends_all(tmp_path, words, status, line):
    statuses, said = ends(tmp_path, *words)
    assert statuses == [1, status]
    assert line.format(host=processes.socket.gethostname()) in said[1].splitlines()
    assert said[0].startswith("stopped: rank 0: another process of this run has ended")
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists(), "what was being written was not finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("user", 2, "error: --data_path /none: is not there"),
        ("agreed", 3, "stopped: loss not finite"),
        ("main", 2, "error: --output_dir x: is taken"),
    ],
)
def test_an_error_that_all_have_is_said_once(tmp_path, word, status, line):
    statuses, said = ends(tmp_path, word, word)
    assert statuses == [status, status]
    assert said[0] == line + "\n" and said[1] == ""


@pytest.mark.slow
def test_a_mistake_that_all_make_has_one_traceback(tmp_path):
    statuses, said = ends(tmp_path, "mistake", "mistake")
    assert statuses == [1, 1] and said[0].count("Traceback") == 1 and said[1] == ""
    assert said[0].splitlines()[-1] == "failed: ZeroDivisionError: of ours"


def entered(**environment):
    """What entering the process group says in an environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(UserError) as refused, processes.process_group("auto"):
            pass
    return refused.value


def test_srun_without_torchrun_is_refused():
    refused = entered(SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="3")
    assert str(refused).startswith("srun started 8 processes that do not know of each other: start one torchrun")
    assert not refused.here_only and entered(SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="0").here_only


@pytest.fixture
def gpus(monkeypatch):
    """A machine whose torch sees so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_more_processes_than_gpus_are_refused_by_the_one_without(gpus):
    gpus(4)
    refused = entered(LOCAL_RANK="4", RANK="4", WORLD_SIZE="5", MASTER_ADDR="localhost", MASTER_PORT="1")
    assert str(refused).startswith("LOCAL_RANK=4: torch sees 4 GPU(s) on ") and refused.here_only


def test_a_process_that_a_scheduler_gave_one_gpu_takes_it(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert processes._device("auto", 3) == torch.device("cuda:0")


def test_ranks_that_share_a_gpu_or_differ_in_kind_are_refused():
    assert processes._reason_to_refuse(["a cuda 1", "a cuda 2", "b cuda 1"]) == ""
    assert processes._reason_to_refuse(["a cpu", "a cpu"]) == ""
    assert "ranks 0 and 2 on a share one GPU" in processes._reason_to_refuse(["a cuda 1", "b cuda 1", "a cuda 1"])
    assert "rank 0 on a has cuda, rank 1 on b has cpu" in processes._reason_to_refuse(["a cuda 1", "b cpu"])


def test_a_refusal_of_the_main_process_reaches_every_rank(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="one"))
    store.set("place 1", f"{processes.socket.gethostname()} cuda one")
    for rank in (0, 1):
        with pytest.raises(UserError, match="ranks 0 and 1 on .* share one GPU") as refused:
            processes._check_places(store, rank, 2, torch.device("cuda:0"))
        assert refused.value.agreed
