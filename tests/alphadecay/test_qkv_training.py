"""Split models in the trainer, in several processes, sharded and compiled."""

import copy

import pytest
import torch
import torch.distributed as dist
from attention import images, made, same_state, step
from ranks import on_ranks
from safetensors.torch import load_file
from tiny import TINY, rows, run
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import alphadecay
from alphadecay.matrices import find_matrices
from runtime.self_test import differences


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.proof)])
def test_a_compiled_split_model_computes_the_same(backend):
    model = alphadecay.split_qkv(made())
    compiled = torch.compile(model, backend=backend)
    compiled(images()).square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(images()).square().mean().backward()
    torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_data_parallel_training_is_that_of_the_plain_model(process_group):
    model, fused = alphadecay.split_qkv(made()), made()
    parallel = DistributedDataParallel(model)
    ours = torch.optim.SGD(alphadecay.param_groups(parallel, 0.0), lr=0.1)
    theirs = torch.optim.SGD(fused.parameters(), lr=0.1)
    decay = alphadecay.AlphaDecay(parallel, ours, interval=1)
    for i in range(3):
        step(parallel, ours, i)
        step(fused, theirs, i)
    assert same_state(model, fused) and "blocks.0.attn.q" in decay.multipliers
    inner = made()
    kept = DistributedDataParallel(inner)
    with pytest.raises(ValueError, match="call split_qkv before building DistributedDataParallel: it holds"):
        alphadecay.split_qkv(inner)
    with pytest.raises(ValueError, match="call split_qkv before DistributedDataParallel: .* is wrapped"):
        alphadecay.split_qkv(kept)


def sharded(model):
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def check_sharded(ranks):
    """Training, saving and loading under FSDP2 against the plain model; the same on every rank."""
    model, plain = sharded(alphadecay.split_qkv(made())), alphadecay.split_qkv(made())
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, plain))
    assert [m.name for m in find_matrices(model)] == [m.name for m in find_matrices(plain)]
    for i in range(2):
        step(model, ours, i)
        step(plain, theirs, i)
    for whole in (True, False):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=whole))
        assert list(state) == list(plain.state_dict())
        weight = state["blocks.0.attn.qkv.weight"]
        if not whole:
            assert weight.to_local().shape == (192 // ranks, 64)
            weight = weight.full_tensor()
        torch.testing.assert_close(weight, plain.state_dict()["blocks.0.attn.qkv.weight"])
    set_model_state_dict(model, made().state_dict(), options=StateDictOptions(full_state_dict=True))
    loaded = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert all(torch.equal(value, loaded[name]) for name, value in made().state_dict().items())
    model.load_state_dict(state)
    again = get_model_state_dict(model)["blocks.0.attn.qkv.weight"].full_tensor()
    torch.testing.assert_close(again, weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="call split_qkv before FSDPModule"):
        alphadecay.split_qkv(model)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_sharded_training_is_that_of_the_plain_model(process_group):
    check_sharded(1)


@pytest.mark.slow
def test_sharded_training_of_two_processes_too(tmp_path):
    on_ranks("split_qkv", 2, tmp_path)


SPLIT = [*TINY, "--split_qkv", "--max_steps", "8"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*SPLIT, "--output_dir", folder, monkeypatch=monkeypatch) == 0
    return folder


@pytest.mark.slow
def test_a_split_run_resumes_to_the_same_bits(whole, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    for more in (["--max_steps", "3"], ["--resume", "auto"]):
        assert run(*SPLIT, "--output_dir", parts, *more, monkeypatch=monkeypatch) == 0
    assert differences(whole, parts) == {}
    assert {"blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.v"} <= {
        row["module"] for row in rows(parts / "decay.jsonl")
    }


def test_checkpoints_of_a_split_run_fit_a_plain_model_and_are_evaluated(whole, monkeypatch, capsys):
    changes = {"num_classes": 10, "img_size": 16}
    for name in ("model", "ema"):
        model = made(**changes)
        before = copy.deepcopy(model)
        model.load_state_dict(load_file(whole / "checkpoints" / "step_00000008" / f"{name}.safetensors"))
        assert not torch.equal(model.blocks[0].attn.qkv.weight, before.blocks[0].attn.qkv.weight)
    assert run("--eval", "--resume", whole, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    last = rows(whole / "log.jsonl")[-1]
    for label, key in (("raw weights", "acc1"), ("EMA weights", "acc1_ema")):
        line = next(line for line in shown.splitlines() if line.startswith(label))
        assert float(line.split()[2]) == pytest.approx(last[key], rel=1e-3)


def test_a_run_cannot_be_split_or_fused_in_between(whole, monkeypatch, capsys):
    assert run("--resume", whole, "--no-split_qkv", "--max_steps", "9", monkeypatch=monkeypatch) == 2
    assert "split_qkv" in capsys.readouterr().err


def test_the_dry_run_lists_q_k_and_v(monkeypatch, capsys, tmp_path):
    assert run(*SPLIT, "--dry_run", "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["blocks.0.attn.q.weight", "blocks.0.attn.q", "64x64"] in [line[:3] for line in lines]


def test_a_model_without_fused_qkv_ends_the_run_with_a_line(monkeypatch, capsys, tmp_path):
    words = ["--split_qkv", "--data_set", "digits", "--model", "resnet18", "--output_dir", tmp_path / "run"]
    assert run(*words, monkeypatch=monkeypatch) == 2
    assert "--split_qkv: ResNet has no fused qkv" in capsys.readouterr().err
