"""Averages and state dicts of split models are those of fused ones, and what comes in the wrong order is refused."""

import copy

import pytest
import torch
from attention import gpt2, images, made, same_state, step
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import alphadecay
from alphadecay.matrices import find_matrices


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
    with pytest.raises(RuntimeError, match="size|shape|same number"):
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
