"""What runs do on GPUs, as far as a CPU can show it: stand-ins for torch.cuda, fake shards, and a ban on host syncs."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import image_steps
import numpy as np
import pytest
import torch
from recipes import block_model
from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor import Shard as Shard0
from torch.utils._python_dispatch import TorchDispatchMode

import alphadecay
from alphadecay import analysis, spectra
from alphadecay.matrices import find_matrices
from alphadecay.sharing import joined
from llama.engine import LossRules, weighted_batches
from llama.engine import backward as text_backward
from llama.sharding import mesh_of
from optim_factory import build_optimizer
from runtime import precision, seeding, self_test, sharded
from runtime.checkpoints import _copy_staged, copied
from runtime.decay_options import DecayOptions
from runtime.errors import SelfTestFailed, UserError
from runtime.finite import FiniteGate
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.steps import take_step
from vision.loaders import usable_workers
from vision.options import VisionOptimizerOptions

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def eight_gpus(monkeypatch):
    """torch.cuda of a process on the sixth of eight GPUs: the generator's state of each, as a list."""
    states = [torch.full((4,), index, dtype=torch.uint8) for index in range(8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[5].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: states.__setitem__(5, state))
    return states


def test_a_random_state_is_of_the_own_gpu_and_goes_to_whichever_that_is(eight_gpus):
    state = seeding.random_state()
    assert [each.tolist() for each in state["cuda"]] == [[5] * 4]
    eight_gpus[5] = torch.zeros(4, dtype=torch.uint8)
    seeding.restore_random_state(state)
    assert eight_gpus[5].tolist() == [5] * 4


def test_random_states_of_older_checkpoints_are_of_all_gpus(eight_gpus):
    state = seeding.random_state() | {"cuda": [torch.full((4,), 10 + i, dtype=torch.uint8) for i in range(8)]}
    seeding.restore_random_state(state)
    assert eight_gpus[5].tolist() == [15] * 4


def test_a_run_on_the_cpu_does_not_start_cuda(monkeypatch):
    def started(*_):
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "get_rng_state", started)
    monkeypatch.setattr(torch.cuda, "set_rng_state", started)
    state = seeding.random_state()
    seeding.restore_random_state(state | {"cuda": [torch.zeros(4, dtype=torch.uint8)]})
    assert state["cuda"] == []


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_sgd_whose_first_step_overflows_in_fp16_stays_finite(kept_settings, name):
    torch.use_deterministic_algorithms(True)  # which fills uninitialised memory with nan
    model, scaler = nn.Linear(4, 3), torch.amp.GradScaler("cpu", init_scale=2.0)
    options, decay = VisionOptimizerOptions(optimizer=name, lr=0.1), DecayOptions(decay="uniform")
    optimizer = build_optimizer(options, decay, model, scaled=True)
    for size in (float("inf"), 1.0, 1.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, size)
        scaler.scale(torch.ones(()))  # which makes its state
        scaler.step(optimizer)
        scaler.update()
    assert all(p.isfinite().all() for p in model.parameters())


class Shard:
    """A stand-in for a DTensor, that knows how many of its kind are whole at a time."""

    alive: "weakref.WeakSet[torch.Tensor]" = weakref.WeakSet()

    def full_tensor(self):
        assert len(self.alive) == 0, "two tensors are whole at a time"
        tensor = torch.ones(3).to("meta")
        tensor.cpu = lambda: torch.ones(3)
        self.alive.add(tensor)
        return tensor


@pytest.mark.parametrize("is_main", [True, False])
def test_shards_become_whole_one_at_a_time_and_stay_so_on_the_main_process_alone(is_main):
    state = {"state": {0: {"exp_avg": Shard(), "step": 3}, 1: {"exp_avg": Shard()}}, "groups": [Shard(), 0.1]}
    gathered = sharded.whole_on_main(state, is_main)
    gc.collect()
    assert len(Shard.alive) == 0 and gathered["state"][0]["step"] == 3 and gathered["groups"][1] == 0.1
    whole = [gathered["state"][0]["exp_avg"], gathered["state"][1]["exp_avg"], gathered["groups"][0]]
    assert [None if each is None else each.tolist() for each in whole] == [[1.0] * 3 if is_main else None] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("size", [1, 24, 25, 1000])
def test_a_copy_through_a_stage_is_the_tensor(dtype, size):
    source = torch.randn(7, 13).to(dtype)
    target, stage = torch.empty_like(source), torch.empty(8 * size, dtype=torch.uint8)
    _copy_staged(source.view(-1).view(torch.uint8), target.view(-1).view(torch.uint8), stage)
    assert torch.equal(source, target)
    assert torch.equal(copied({"a": [source.T]}, stage)["a"][0], source.T)


def test_loader_processes_are_shared_out_over_the_processes_of_a_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_workers(10) == 10
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert usable_workers(10) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert usable_workers(10) == 1 and usable_workers(0) == 0


LOADER = """
import os, signal, sys, time
from runtime.preemption import outlive_signals
outlive_signals(0, trainer=int(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_loader_that_a_fork_server_started_ends_with_its_trainers_signal():
    """Its parent is the server: the trainer's process number is handed to it."""
    middle = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # other threads would take the signal
    words = [sys.executable, "-c", middle, "import os; print(os.getpid(), flush=True)\n" + LOADER, str(os.getpid())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=alone) as server:
        assert server.stdout is not None
        loader = int(server.stdout.readline())
        assert server.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.kill(loader, signal.SIGTERM)
        assert server.wait(timeout=20) == 0


def failing_first(real, calls):
    def eigvalsh(grams):
        calls.append(grams.dtype)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")
        return real(grams)

    return eigvalsh


def test_a_solver_that_fails_is_followed_by_the_cpus_in_float64(monkeypatch):
    weight, calls = torch.randn(40, 60), []
    expected = spectra.quick_eigenvalues(weight)
    monkeypatch.setattr(torch.linalg, "eigvalsh", failing_first(torch.linalg.eigvalsh, calls))
    np.testing.assert_allclose(spectra.quick_eigenvalues(weight), expected, rtol=1e-4)
    assert calls == [torch.float32, torch.float64]


def test_any_error_of_one_rank_is_handed_to_all(monkeypatch):
    def out_of_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(analysis, "measure", out_of_memory)
    measurement = analysis.Measurement(find_matrices(block_model()), analysis.Measuring())
    error = measurement._measured(None)
    assert type(error) is RuntimeError and "its spectrum failed: OutOfMemoryError: CUDA out of memory" in str(error)
    with pytest.raises(RuntimeError, match="its spectrum failed"):
        measurement.run()


def test_buffers_are_those_of_the_main_process(monkeypatch):
    model = nn.BatchNorm1d(3)
    monkeypatch.setattr("torch.distributed.broadcast", lambda buffer, source: buffer.fill_(7 + source))
    sharded.agree_on_buffers([model, None], replace(ALONE, count=2))
    assert [buffer.flatten()[0].item() for buffer in model.buffers()] == [7, 7, 7]


@pytest.fixture
def kept_settings():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_on_only_if_it_is_asked_for(kept_settings, tf32):
    precision.set_precision(RunOptions(tf32=tf32), torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cudnn.allow_tf32 is tf32


def test_deterministic_is_set_before_cuda_starts_and_what_cannot_be_is_said(kept_settings, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    options = RunOptions(deterministic=True)
    precision.prepare_environment(options)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    precision.set_precision(options, torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UserError, match="--deterministic: put_ does not have a deterministic implementation$"):
        with precision.nondeterminism_as_user_error(options):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


@pytest.mark.parametrize(
    ("repeated", "said"),
    [({}, "resuming changed weights"), ({"weights": "a differs"}, "not reproducible on this device: the same steps")],
)
def test_the_self_test_tells_resuming_from_a_device_that_repeats_nothing(tmp_path, monkeypatch, repeated, said):
    compared = iter([{"weights": "a differs"}, repeated])
    monkeypatch.setattr(self_test, "differences", lambda *_: next(compared))
    monkeypatch.setattr(self_test, "paired_values", lambda *_: {"weights": []})
    ran = []
    monkeypatch.setattr(self_test, "_run", lambda command, words, ranks, label: ran.append(label))
    with pytest.raises(SelfTestFailed, match=said):
        self_test.self_test(["main.py"], RunOptions(output_dir=str(tmp_path / "run"), max_steps=4), ALONE)
    assert ran == ["4 steps in one run", "1 steps", "steps 2 to 4", "4 steps again"]


def test_a_mesh_needs_processes_that_its_size_divides():
    with pytest.raises(UserError, match="--fsdp true: needs several processes"):
        mesh_of(ALONE, None)
    with pytest.raises(UserError, match="--fsdp_size 4: 6 processes are no multiple"):
        mesh_of(replace(ALONE, count=6), 4)


class NoSync(TorchDispatchMode):
    """Raises where the host would wait for a device: for a value, or for a copy to the CPU."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function._overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero), function
        return function(*arguments, **(keywords or {}))


class NoCopyFromHost(TorchDispatchMode):
    """Raises where a tensor is made of Python's values: on a GPU the host would wait for the copy."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function._overloadpacket is not torch.ops.aten.lift_fresh, function
        return function(*arguments, **(keywords or {}))


class Part:
    """A stand-in for a DTensor on a mesh of (2 copies, 2 shards)."""

    full_tensor = None
    placements = (Replicate(), Shard0(0))

    class device_mesh:
        get_group = staticmethod(lambda dimension: f"dimension {dimension}")


@pytest.mark.parametrize("layout", ["", "sss", "w", "sws", "wsw"])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_sums_over_shards_need_no_copy_from_the_host(monkeypatch, layout, shape):
    groups = []

    def all_reduce(values, group):
        groups.append(group)
        values.mul_(2)  # as if the other process had the same

    monkeypatch.setattr("alphadecay.sharing.dist.all_reduce", all_reduce)
    sums, tensors = torch.rand(*shape, len(layout)), [Part() if each == "s" else torch.ones(3) for each in layout]
    before = sums.clone()
    with NoCopyFromHost():
        total = joined(sums, tensors)
    factors = torch.tensor([2.0 if each == "s" else 1.0 for each in layout])
    assert torch.equal(total, before * factors) and torch.equal(sums, before)
    assert groups == ["dimension 1"] * ("s" in layout)


def ahead(learner):
    """A gate as on a GPU: the host looks at every tenth step only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.finite.host_runs_ahead", lambda _: True)
        gate = FiniteGate(learner, ALONE, "stop", every=10)
    assert gate.deferred
    return gate


def fused(learner):
    """The same with AdamW in one kernel, as on a GPU, and AlphaDecay."""
    model = learner.model.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    decay = alphadecay.AlphaDecay(model, optimizer, interval=500, min_eigenvalues=2, include=["stem", "head"])
    return replace(learner, optimizer=optimizer), decay


def test_a_step_on_images_asks_the_device_for_nothing():
    learner, _ = fused(image_steps.learner())
    gate, rules = ahead(learner), image_steps.rules(clip_grad=1.0)
    import engine

    add = engine.backward(rules, ALONE)
    batches = [(images.float(), labels) for images, labels in image_steps.batches(4, 8)]

    def bad(step):
        raise AssertionError(step)

    take_step(learner, batches[:1], add, rules, 0, gate, bad)  # measures spectra
    with NoSync():
        for step, batch in enumerate(batches[1:], 1):
            take_step(learner, [batch], add, rules, step, gate, bad)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSync():
        take_step(learner, batches[:1], add, rules, 9, gate, bad)  # the tenth: the host looks


class Words(nn.Module):
    """Logits of a table, under the names that transformers uses."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(16, 60), nn.Linear(60, 16)

    def forward(self, input_ids):
        return type("Output", (), {"logits": self.head(self.embedding(input_ids))})


def test_a_step_on_text_asks_the_device_for_nothing():
    torch.manual_seed(0)
    learner, _ = fused(replace(image_steps.learner(), model=(model := Words()), plain=model))
    gate, rules = ahead(learner), image_steps.rules(clip_grad=1.0)
    add = text_backward(LossRules(None, False), torch.device("cpu"))
    ids = torch.randint(0, 16, (2, 8))
    batches = list(weighted_batches([[{"input_ids": ids, "labels": ids}]] * 4, ALONE))
    take_step(learner, batches[:1], add, rules, 0, gate, lambda step: None)
    with NoSync():
        for step in range(1, 4):
            take_step(learner, batches[step : step + 1], add, rules, step, gate, lambda step: None)
