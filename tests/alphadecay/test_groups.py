"""Every trainable parameter is in exactly one group, and splitting groups changes nothing else."""

import pytest
import timm
import torch
from recipes import block_model
from timm.optim import Lookahead
from timm.scheduler import StepLRScheduler
from torch import nn

import alphadecay
from alphadecay.matrices import find_matrices
from alphadecay.splitting import split_groups

TIMM_MODELS = [
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18", "efficientnet_b0", "mixer_s32_224",
    "mobilenetv3_small_050", "regnety_002", "vgg11_bn", "levit_128s", "densenet121",
]  # fmt: skip


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_every_trainable_parameter_is_in_exactly_one_group(name):
    model = timm.create_model(name)
    next(model.parameters()).requires_grad_(False)
    groups = alphadecay.param_groups(model, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trainable)
    names = [group["decay_name"] for group in groups]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", TIMM_MODELS[:6])
def test_norms_biases_positions_and_tokens_are_not_decayed(name):
    model = timm.create_model(name)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in alphadecay.param_groups(model, 0.1):
        for parameter in group["params"]:
            spared = parameter.ndim < 2 or any(part in names[id(parameter)] for part in ("pos", "token", "rel"))
            assert group["weight_decay"] == (0 if spared else 0.1), names[id(parameter)]
    assert all(group["weight_decay"] == 0.1 for group in alphadecay.param_groups(model, 0.1, norm_bias=True))


class Declares(nn.Module):
    """Names a parameter that is not to be decayed, in timm's way."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.zeros(4, 4)), nn.Linear(64, 64)

    def no_weight_decay(self):
        return {"table"}


def test_what_the_model_declares_is_not_decayed():
    model = Declares()
    decays = {id(p): group["weight_decay"] for group in alphadecay.param_groups(model, 0.1) for p in group["params"]}
    assert decays[id(model.table)] == 0 and decays[id(model.layer.weight)] == 0.1


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf")])
def test_an_impossible_decay_is_named(weight_decay):
    with pytest.raises(ValueError, match=str(weight_decay)):
        alphadecay.param_groups(block_model(), weight_decay)


def train(optimizer, model, steps=3):
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 60)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_splitting_changes_no_bit_and_keeps_group_options():
    def built(split):
        model = block_model()
        named = list(model.named_parameters())
        slow = [p for n, p in named if "fc2" in n]
        rest = [p for n, p in named if "fc2" not in n]
        optimizer = torch.optim.AdamW([{"params": slow, "lr": 1e-4}, {"params": rest, "weight_decay": 0.3}], lr=1e-3)
        if split:
            split_groups(optimizer, find_matrices(model))
        return model, optimizer

    model, optimizer = built(split=True)
    by_name = {group["decay_name"]: group for group in optimizer.param_groups}
    assert by_name["blocks.0.fc2"]["lr"] == 1e-4 and by_name["blocks.0.proj"]["weight_decay"] == 0.3
    assert len(by_name) == 6 + 2
    for ours, theirs in zip(train(optimizer, model), train(*reversed(built(split=False))), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Lookahead], ids=["bare", "lookahead"])
@pytest.mark.parametrize("scheduler", [torch.optim.lr_scheduler.ConstantLR, lambda o: StepLRScheduler(o, 1)])
def test_splitting_under_a_scheduler_is_refused(scheduler, wrap):
    model = block_model()
    optimizer = wrap(torch.optim.AdamW(model.parameters(), lr=1e-3))
    scheduler(optimizer)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="build AlphaDecay before the scheduler"):
        alphadecay.AlphaDecay(model, optimizer)
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0].keys() == before[0].keys()


def test_groups_that_need_no_splitting_may_have_a_scheduler():
    model = block_model()
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-3)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    alphadecay.AlphaDecay(model, optimizer)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="holds none of the model's weight matrices"):
        alphadecay.AlphaDecay(block_model(), torch.optim.SGD(nn.Linear(3, 3).parameters(), lr=0.1))


def test_an_optimizer_without_decay_is_refused():
    model = block_model()
    with pytest.raises(ValueError, match="LBFGS has no weight_decay"):
        alphadecay.AlphaDecay(model, torch.optim.LBFGS(model.parameters()))
