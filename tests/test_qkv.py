"""Split q, k and v: the same function, names and average; three spectra, decays and optimizer states."""

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from recipes import block_model
from safetensors.torch import load_file
from timm.utils import ModelEmaV2, ModelEmaV3
from tiny import TINY, rows, run
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import alphadecay
from alphadecay.ledger import ledger_rows
from alphadecay.matrices import find_matrices
from runtime.finite import traced
from runtime.selftest import differences

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 64, "depths": (2,), "num_heads": (2,), "window_size": 4}
FAMILIES = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "xcit_nano_12_p8_224": {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 2},
}


def made(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **FAMILIES[name] | changes)


def images(seed=0, count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(model, optimizer, seed):
    optimizer.zero_grad()
    model(images(seed)).square().mean().backward()
    optimizer.step()


def gpt2():
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=100)).eval()


def same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_split_model_computes_the_same_to_the_last_bit(name):
    model = made(name)
    split = alphadecay.split_qkv(copy.deepcopy(model))
    for gradients_off in (torch.no_grad, torch.inference_mode):
        with gradients_off():
            assert torch.equal(model.eval()(images()), split.eval()(images()))
    for mode in (True, False):
        outputs, gradients = [], []
        for each in (model.train(mode), split.train(mode)):
            torch.manual_seed(0)
            each.zero_grad()
            outputs.append(each(images()))
            outputs[-1].square().mean().backward()
            gradients.append({id(p): p.grad for p in each.parameters()})
        assert torch.equal(*outputs)
    for fused, parts in projections(model, split):
        assert torch.equal(fused.weight.grad, torch.cat([part.grad for part in parts]))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_windows_of_windows_are_multiplied_the_same_way(mode):
    torch.manual_seed(0)
    model = nn.ModuleDict({"qkv": nn.Linear(256, 768)})
    inputs = torch.randn(1, 2, 7, 2, 7, 256).transpose(2, 3)  # as in Twins: matmul folds it or not
    split = alphadecay.split_qkv(copy.deepcopy(model))
    with mode():
        assert torch.equal(model["qkv"](inputs), split["qkv"](inputs))


def projections(model, split):
    """(fused module, its three parts) of each projection."""
    by_name = {m.name: m.weight for m in find_matrices(split)}
    for name, module in model.named_modules():
        if name.endswith(".qkv"):
            yield module, [by_name[f"{name[:-3]}{part}"] for part in "qkv"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_third_is_v(name):
    model = alphadecay.split_qkv(made(name)).eval()
    seen = []
    for m in find_matrices(model):
        if m.name.endswith("attn.v"):
            nn.init.zeros_(m.weight)
    for owner in model.modules():
        if getattr(owner, "v_bias", None) is not None:
            nn.init.zeros_(owner.v_bias)
        if hasattr(owner, "qkv"):
            if owner.qkv.bias is not None:
                nn.init.zeros_(owner.qkv.bias)
            owner.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images())
    assert seen and all((values == 0).all() for values in seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_dict_has_timms_names_and_order_both_ways(name):
    model, split = made(name), alphadecay.split_qkv(made(name))
    assert same_state(model, split)
    torch.manual_seed(1)
    other = timm.create_model(name, **FAMILIES[name])
    split.load_state_dict(other.state_dict())
    assert same_state(other, split)
    model.load_state_dict(split.state_dict())
    assert same_state(other, model)
    copied = copy.deepcopy(split)
    copied.load_state_dict(made(name).state_dict(), assign=True)
    assert same_state(made(name), copied) and same_state(other, split)


def test_missing_and_misfitting_weights_are_named_as_in_timm():
    model = alphadecay.split_qkv(made())
    state = model.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    del state["blocks.0.attn.qkv.weight"]
    assert model.load_state_dict(state, strict=False).missing_keys == ["blocks.0.attn.qkv.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "blocks.0.attn.qkv.weight"'):
        model.load_state_dict(state)
    state["blocks.0.attn.qkv.weight"] = torch.zeros(64, 64)
    with pytest.raises(RuntimeError, match=r"size mismatch for blocks.0.attn.qkv.weight: .*\(64, 64\).*\(192, 64\)"):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_q_k_and_v_are_three_matrices_with_roles_of_their_own():
    model = alphadecay.split_qkv(made())
    found = [(m.name, m.role, tuple(m.weight.shape)) for m in find_matrices(model) if not m.reason][:4]
    assert found == [
        ("blocks.0.attn.q", "attn.q", (64, 64)),
        ("blocks.0.attn.k", "attn.k", (64, 64)),
        ("blocks.0.attn.v", "attn.v", (64, 64)),
        ("blocks.0.attn.proj", "attn.proj", (64, 64)),
    ]
    model.blocks[1] = torch.compile(model.blocks[1])
    names = [m.name for m in find_matrices(nn.DataParallel(model)) if not m.reason]
    assert names[6:9] == ["blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.v"]
    assert len(find_matrices(model, exclude=["*.attn.v"])) == len(find_matrices(model))


def test_each_gets_its_own_decay_group_state_and_ledger_row():
    model = alphadecay.split_qkv(made())
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-3)
    decay = alphadecay.AlphaDecay(model, optimizer)
    step(model, optimizer, 0)
    parts = [f"blocks.{block}.attn.{part}" for block in (0, 1) for part in "qkv"]
    assert set(parts) <= set(decay.multipliers) and len({decay.multipliers[part] for part in parts}) == 6
    groups = {g["decay_name"]: g for g in optimizer.param_groups}
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == sum(p.numel() for p in model.parameters())
    for part in parts:
        (weight,) = groups[part]["params"]
        assert optimizer.state[weight]["exp_avg"].shape == (64, 64)
        assert groups[part]["weight_decay"] == pytest.approx(0.1 * decay.multipliers[part])
    assert {row["module"]: row["role"] for row in ledger_rows(decay)}[parts[0]] == "attn.q"
    from_plain_groups = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert set(parts) <= set(alphadecay.AlphaDecay(model, from_plain_groups).multipliers)


def trained(model, steps=5, **ema):
    """(model, average) after a few steps of SGD without decay."""
    average = ModelEmaV3(model, decay=0.9, **ema)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(steps):
        step(model, optimizer, i)
        average.update(model, step=i + 1)
    return model, average.module


@pytest.mark.parametrize("ema", [{}, {"foreach": False, "device": "cpu"}, {"exclude_buffers": True}], ids=str)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_average_of_a_split_model_is_that_of_the_fused_one_to_the_last_bit(name, ema):
    model, average = trained(made(name), **ema)
    split, split_average = trained(alphadecay.split_qkv(made(name)), **ema)
    assert same_state(model, split) and same_state(average, split_average)
    assert not same_state(split, split_average)
    assert torch.equal(average(images()), split_average(images()))


def test_other_averages_follow_too():
    model = alphadecay.split_qkv(made())
    second, averaged = ModelEmaV2(model, decay=0.5), AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(2):
        step(model, optimizer, i)
        second.update(model)
        averaged.update_parameters(model)
    fused = made()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    fused_second, fused_averaged = ModelEmaV2(fused, decay=0.5), AveragedModel(fused)
    for i in range(2):
        step(fused, optimizer, i)
        fused_second.update(fused)
        fused_averaged.update_parameters(fused)
    assert same_state(second.module, fused_second.module) and same_state(averaged.module, fused_averaged.module)


def test_an_average_made_before_the_split_stays_right_or_raises():
    fused, average = trained(made())
    model = made()
    late = ModelEmaV3(model, decay=0.9)
    by_parameters = ModelEmaV3(model, decay=0.9, exclude_buffers=True)
    alphadecay.split_qkv(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(5):
        step(model, optimizer, i)
        late.update(model, step=i + 1)
    assert same_state(model, fused) and same_state(late.module, average)
    with pytest.raises(RuntimeError, match="size|shape"):
        by_parameters.update(model)


def test_writing_to_a_state_dict_writes_to_the_model_whatever_happened_to_its_memory():
    split = alphadecay.split_qkv(made())
    moved = copy.deepcopy(split).double().float()
    loaded = copy.deepcopy(split)
    loaded.load_state_dict({name: value.clone() for name, value in split.state_dict().items()}, assign=True)
    for model in (split, copy.deepcopy(split), moved, loaded):
        model.state_dict()["blocks.0.attn.qkv.weight"].fill_(7)
        q, k, v = (m.weight for m in find_matrices(model) if m.name in {f"blocks.0.attn.{part}" for part in "qkv"})
        assert (q == 7).all() and (k == 7).all() and (v == 7).all()
    with torch.inference_mode():
        moved.state_dict()
    moved(images()).sum().backward()  # what it joins is no inference tensor


def test_where_a_write_would_be_lost_it_raises():
    model = alphadecay.split_qkv(gpt2())
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        model.state_dict()["h.0.attn.c_attn.weight"].fill_(7)
    shared = alphadecay.split_qkv(made())
    flat = torch.zeros(100_000)
    q = next(m.weight for m in find_matrices(shared) if m.name == "blocks.0.attn.q")
    q.data = flat[: q.numel()].view_as(q)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        shared.state_dict()["blocks.0.attn.qkv.weight"].fill_(7)
    assert q.data_ptr() == flat.data_ptr()  # whose buffer it is has not changed


def test_the_c_attn_of_gpt2_is_split_along_its_columns(tmp_path):
    model, words = gpt2(), torch.arange(20)[None]
    split = alphadecay.split_qkv(copy.deepcopy(model))
    assert torch.equal(model(words).last_hidden_state, split(words).last_hidden_state)
    assert same_state(model, split)
    found = {m.name: m for m in find_matrices(split)}
    weight = model.h[0].attn.c_attn.weight
    for i, part in enumerate("qkv"):
        matrix = found[f"h.0.attn.{part}"]
        assert (matrix.role, matrix.kind, matrix.reason) == (f"attn.{part}", "linear", "")
        assert torch.equal(matrix.weight, weight[:, 64 * i : 64 * (i + 1)])
    split.save_pretrained(tmp_path)
    assert same_state(type(model).from_pretrained(tmp_path), model)
    assert same_state(alphadecay.merge_qkv(split), model)
    with torch.no_grad():
        split.state_dict()["h.0.attn.c_attn.weight"].fill_(1)


@pytest.mark.parametrize("name", [*FAMILIES, "gpt2"])
def test_merging_undoes_the_split(name):
    model = gpt2() if name == "gpt2" else made(name)
    split = alphadecay.split_qkv(copy.deepcopy(model))
    copied = copy.deepcopy(split)
    merged = alphadecay.merge_qkv(split)
    assert merged is split and same_state(model, merged)
    assert [type(m) for m in model.modules()] == [type(m) for m in merged.modules()]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in merged.named_parameters()]
    assert same_state(model, copied) and any(m.name.endswith("attn.q") for m in find_matrices(copied))
    assert same_state(model, copy.deepcopy(copied)) and alphadecay.merge_qkv(copied) is copied
    assert same_state(model, alphadecay.merge_qkv(alphadecay.split_qkv(merged)))


def test_frozen_projections_stay_frozen_and_out():
    model = made()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    reasons = {m.name: m.reason for m in find_matrices(alphadecay.split_qkv(model))}
    assert reasons["blocks.0.attn.k"] == "frozen" and reasons["blocks.1.attn.k"] == ""
    alphadecay.merge_qkv(model)
    assert [block.attn.qkv.weight.requires_grad for block in model.blocks] == [False, True]


@pytest.mark.parametrize(
    "name", ["tiny_vit_5m_224", "maxvit_nano_rw_256", "efficientformer_l1", "levit_128s", "resnet18"]
)
def test_projections_that_hold_q_k_and_v_otherwise_are_left_alone(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no fused qkv to split"):
        alphadecay.split_qkv(model)


def test_what_is_tied_or_of_another_width_is_left_alone_and_splitting_twice_changes_nothing():
    model = made()
    model.blocks[0].attn.qkv.weight = model.blocks[1].attn.qkv.weight
    with pytest.raises(ValueError, match="VisionTransformer has no fused qkv"):
        alphadecay.split_qkv(model)
    model = made()
    model.blocks[0].attn.qkv = nn.Linear(64, 96)  # two key heads of a grouped query, say
    alphadecay.split_qkv(alphadecay.split_qkv(model))
    names = [m.name for m in find_matrices(model) if "attn.q" in m.name]
    assert names == ["blocks.0.attn.qkv", "blocks.1.attn.q"]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_after_the_optimizer_is_too_late(optimizer):
    model = made()
    kept = optimizer(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"split_qkv before building {optimizer.__name__}: .* of blocks.0.attn.qkv"):
        alphadecay.split_qkv(model)
    assert len(kept.param_groups) == 1 and type(model.blocks[0].attn.qkv) is nn.Linear
    del kept
    alphadecay.split_qkv(model)


@pytest.mark.parametrize("kind", [alphadecay.AlphaDecay, alphadecay.UniformDecay])
def test_an_optimizer_of_what_the_model_was_before_is_refused(kind):
    model = made()
    before = list(model.parameters())
    alphadecay.split_qkv(model)
    optimizer = torch.optim.AdamW(before)
    with pytest.raises(ValueError, match=r"lacks blocks.0.attn.q and holds .* call split_qkv \(or merge_qkv\) before"):
        kind(model, optimizer)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(
        ValueError, match=r"lacks blocks.0.attn.qkv and holds .* call split_qkv \(or merge_qkv\) before"
    ):
        kind(alphadecay.merge_qkv(model), optimizer)


def test_an_optimizer_of_a_part_of_the_model_is_none_of_that():
    model = alphadecay.split_qkv(made())
    optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if "mlp" in name])
    alphadecay.AlphaDecay(model, optimizer)


@pytest.mark.parametrize(
    ("wrap", "wrapper"),
    [(nn.DataParallel, "DataParallel"), (torch.compile, "OptimizedModule"), (ModelEmaV3, "ModelEmaV3")],
)
def test_wrapped_models_are_refused(wrap, wrapper):
    with pytest.raises(ValueError, match=f"call split_qkv before {wrapper}"):
        alphadecay.split_qkv(wrap(made()))
    with pytest.raises(ValueError, match=f"call merge_qkv on the plain model, not on or inside {wrapper}"):
        alphadecay.merge_qkv(wrap(alphadecay.split_qkv(made())))
    compiled = made()
    compiled.compile()
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        alphadecay.split_qkv(compiled)


def test_bad_values_are_traced_to_the_projection():
    model = alphadecay.split_qkv(made())
    q = next(m.weight for m in find_matrices(model) if m.name == "blocks.1.attn.q")
    q.register_hook(lambda gradient: gradient * float("nan"))
    with traced(model, 0, 2) as finding:
        model(images()).sum().backward()
    assert (finding.module, finding.where) == ("blocks.1.attn.qkv", "gradient")
    with torch.no_grad():
        q.fill_(float("nan"))
    with traced(model, 0, 2) as finding:
        model(images())
    assert (finding.module, finding.where) == ("blocks.1.attn.qkv", "output")


def test_a_model_without_attention_is_named():
    with pytest.raises(
        ValueError, match="Sequential has no fused qkv to split: no Linear or Conv1D named c_attn or qkv"
    ):
        alphadecay.split_qkv(block_model())


@pytest.mark.slow
def test_a_compiled_split_model_computes_the_same():
    model = alphadecay.split_qkv(made())
    compiled = torch.compile(model)
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


def sharded_rank(rank, ranks, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    check_sharded(ranks)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_training_of_two_processes_too(tmp_path):
    torch.multiprocessing.spawn(sharded_rank, (2, tmp_path / "store"), 2)


SPLIT = [*TINY, "--split_qkv", "--max_steps", "8"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        assert run(*SPLIT, "--output_dir", folder, monkeypatch=monkeypatch) == 0
    return folder


def test_a_split_run_resumes_to_the_same_bits(whole, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
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
