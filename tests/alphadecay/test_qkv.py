"""Split q, k and v: the same function and names; three spectra, decays and optimizer states."""

import copy

import pytest
import timm
import torch
from attention import FAMILIES, gpt2, images, made, same_state, step
from recipes import block_model
from torch import nn

import alphadecay
from alphadecay.decay_log import refresh_rows
from alphadecay.matrices import find_matrices
from runtime.finite import traced


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
    assert {row["module"]: row["role"] for row in refresh_rows(decay)}[parts[0]] == "attn.q"
    from_plain_groups = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert set(parts) <= set(alphadecay.AlphaDecay(model, from_plain_groups).multipliers)


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
