"""The moving average of weights: the recurrence itself, timm's to the last bit, ties, precisions and buffers."""

import math

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.fsdp import fully_shard

from runtime.moving_average import build_ema
from runtime.run_options import EmaOptions


def options(decay=0.75, warmup=False):
    return EmaOptions(model_ema=True, model_ema_decay=decay, model_ema_warmup=warmup)


class Tied(nn.Module):
    """An embedding that is also the output layer, with buffers of every kind."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.full((2,), -math.inf), persistent=False)

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


def made():
    torch.manual_seed(0)
    return Tied()


def moved(model, step):
    """Other weights and running statistics after each step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean):
            tensor.add_(torch.randn(tensor.shape, generator=generator))
        model.norm.num_batches_tracked.add_(1)


def slow_twin(decays):
    """The average by its sentence, in plain Python floats: decay x old + (1 - decay) x new, from the first weights."""
    model = made()
    average = {name: value.double().tolist() for name, value in model.state_dict().items()}
    for step, decay in enumerate(decays, start=1):
        moved(model, step)
        for name, value in model.state_dict().items():
            average[name] = mixed(average[name], value.double().tolist(), decay)
    return average


def mixed(old, new, decay):
    if isinstance(old, list):
        return [mixed(a, b, decay) for a, b in zip(old, new, strict=True)]
    return decay * old + (1 - decay) * new


def averaged(steps, **how):
    model = made()
    average = build_ema(options(**how), model)
    for step in range(1, steps + 1):
        moved(model, step)
        average.update(model, step)
    return average.module


@pytest.mark.parametrize(
    ("how", "decays"),
    [({}, [0.75] * 6), ({"warmup": True}, [0, *(min(0.75, 1 - n ** (-2 / 3)) for n in range(2, 7))])],
    ids=["steady", "warm-up"],
)
def test_the_average_is_that_of_its_sentence_and_a_tied_weight_counts_once(how, decays):
    found, expected = averaged(6, **how), slow_twin(decays)
    for name, value in found.state_dict().items():
        if "num_batches" in name:
            assert int(value) == 6  # a count is copied
            continue
        torch.testing.assert_close(value, torch.tensor(expected[name]), rtol=1e-6, atol=1e-6)
    assert found.head.weight is found.embedding.weight and not found.training
    assert found.mask.tolist() == [-math.inf] * 2  # what no checkpoint holds is a constant


@pytest.mark.parametrize("warmup", [False, True])
def test_as_timm_it_is_timms_to_the_last_bit(warmup):
    models = [nn.Sequential(nn.Linear(9, 33), nn.BatchNorm1d(33)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    theirs = ModelEmaV3(models[1], decay=0.75, use_warmup=warmup)
    ours = build_ema(options(warmup=warmup), models[0], as_timm=True)
    for step in range(1, 6):
        for model in models:
            torch.manual_seed(step)
            model(torch.randn(4, 9))
            for p in model.parameters():
                p.data.add_(torch.randn_like(p))
        ours.update(models[0], step)
        theirs.update(models[1], step=step)
        for mine, other in zip(ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True):
            assert torch.equal(mine, other)


def test_the_average_of_bfloat16_weights_moves_by_less_than_their_precision():
    model = nn.Linear(3, 3).bfloat16()
    nn.init.ones_(model.weight)
    average = build_ema(options(decay=0.999), model)
    model.weight.data.mul_(1.5)
    for step in range(1, 101):
        average.update(model, step)
    assert average.module.weight.dtype == torch.float32 and model.weight.dtype == torch.bfloat16
    assert average.module.weight.flatten().tolist() == pytest.approx([1.5 - 0.5 * 0.999**100] * 9, rel=1e-5)
    assert not build_ema(EmaOptions(), model)


def test_an_evaluation_that_leaves_weights_whole_does_not_lose_what_shards_learn(tmp_path):
    """FSDP2 keeps the outermost weights whole after a forward pass, and computes with them again at the next."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
        twin.load_state_dict(model.state_dict())
        averages = [build_ema(options(), model, fully_shard), build_ema(options(), twin)]
        models, data = [fully_shard(model), twin], torch.ones(2, 4)
        for step in (1, 2, 3):
            for each, average in zip(models, averages, strict=True):
                with torch.no_grad():
                    for p in each.parameters():
                        p.add_(step)
                    average.update(each, step)
                    average.module(data)
        found, expected = (average.module.state_dict() for average in averages)
        for name, value in expected.items():
            assert torch.equal(found[name].full_tensor(), value)
    finally:
        dist.destroy_process_group()
