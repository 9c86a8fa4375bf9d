"""What a training step may not do: wait for the device, or join gradients it need not join."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import ROOT, TINY, rows, run
from torch import nn

from llama.engine import train_steps
from runtime.finite import FiniteGate
from runtime.learner import Learner
from runtime.processes import Ranks
from runtime.schedules import Schedules
from runtime.steps import StepRules

PARTS_OF_A_STEP = (
    "engine.py",
    "steps.py",
    "schedule.py",
    "adaptive.py",
    "entries.py",
    "finite.py",
    "preemption.py",
)
WAITING = ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy")


def own_frames():
    """Files of this project that are on the stack, innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / ".venv") and "tests" not in path.parts:
            yield f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["uniform", "alphadecay", "alphadecay --decay_cautious"])
def test_no_step_waits_for_the_device_but_at_log_intervals_and_refreshes(tmp_path, monkeypatch, decay):
    waits = Counter()

    def watched(name):
        real = getattr(torch.Tensor, name)

        def watching(self, *words, **named):
            innermost = next(own_frames(), None)
            caller = sys._getframe(1).f_code.co_filename
            if innermost is not None and Path(caller).is_relative_to(ROOT) and ".venv" not in caller:
                waits[innermost] += 1
            return real(self, *words, **named)

        return watching

    monkeypatch.setattr("runtime.finite.host_runs_ahead", lambda device: True)  # as on a GPU
    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    words = [
        "--decay",
        *decay.split(),
        "--log_interval",
        "4",
        "--decay_interval",
        "4",
        "--batch_size",
        "60",
        "--epochs",
        "1",
    ]
    assert run(*TINY, *words, "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 0
    steps = 23
    # The gate's flag at steps 4, 8, ..., 20, before the evaluation and before saving.
    assert waits["finite.py:first_bad_step"] == 5 + 2
    assert waits["trainer.py:after_step"] == 5  # the loss, after steps 4, 8, ..., 20
    in_training = {place: n for place, n in waits.items() if place.split(":")[0] in PARTS_OF_A_STEP}
    assert {place for place, n in in_training.items() if n >= steps} == set()
    assert not any(place.startswith("schedule.py") for place in waits)


def test_only_the_last_micro_step_joins_gradients(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
        joined, begun = [], []
        model.register_comm_hook(None, lambda _, bucket: joined.append(begun[-1]) or done(bucket))
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
        learner, ranks = Learner(model, model.module, None, optimizer, scaler), Ranks(0, 1, torch.device("cpu"))

        def backward(learner, batch, step, micro_step):
            begun.append((step, micro_step))
            loss = learner.model(batch).sum()
            loss.backward()
            return loss.detach()

        steady = Schedules(2, 0, lr=0.1, min_lr=0.1, weight_decay=0, weight_decay_end=0)
        rules = StepRules(schedules=steady, accumulate=3, clip_grad=None)
        gate = FiniteGate(learner, ranks, "stop", 1)
        train_steps(learner, [torch.randn(2, 4)] * 6, backward, rules, 0, gate, lambda *_: None, lambda _: None)
        assert joined == [(0, 2), (1, 2)] and len(begun) == 6
    finally:
        dist.destroy_process_group()


def done(bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.slow
def test_wandb_gets_the_curves_and_figures_and_its_run_is_continued(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = [*TINY, "--output_dir", tmp_path / "run", "--enable_wandb", "--wandb_name", "mine"]
    assert run(*words, "--max_steps", "5", monkeypatch=monkeypatch) == 0
    assert run(*words, "--resume", "auto", monkeypatch=monkeypatch, draw=True) == 0
    ids = {path.name.rsplit("-", 1)[-1] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")}
    assert len(ids) == 1 and len(rows(tmp_path / "run" / "log.jsonl")) == 2
    images = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/*.png")
    drawn = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn <= {path.name.rsplit("_", 2)[0] for path in images}


REFRESH_MEMORY = """
import sys, torch
from torch import nn
import alphadecay

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

dtype = getattr(torch, sys.argv[1])
model = nn.Sequential(*[nn.Linear(4096, 1024, bias=False, dtype=dtype) for _ in range(4)])
alphadecay.analyze(nn.Sequential(nn.Linear(128, 128)))  # what the libraries take once
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = memory("VmRSS")
alphadecay.analyze(model)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_refresh_takes_the_memory_of_one_gram_matrix_what_the_solver_takes_and_work_space(dtype):
    command = [sys.executable, "-c", REFRESH_MEMORY, dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    gram, solver = (
        8 * 1024 * 1024,
        (4 + 4) * 1024 * 1024,
    )  # and no copy of the weight, which has 4 times as many entries
    assert int(done.stdout) < gram + solver + 17e6  # work space; another copy of the matrix would not fit
