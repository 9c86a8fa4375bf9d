"""Optimizers by name: timm's, torch's own, their arguments, and torch's Muon together with AdamW."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import alphadecay
from alphadecay.optimizer_copies import why_coupled
from optim_factory import build_decay, build_optimizer
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.optimizers import MuonWithAdamW
from vision.options import VisionOptimizerOptions

MUON = {"optimizer": "torch:Muon", "lr": 0.02, "adamw_lr": 1e-3, "opt_betas": (0.9, 0.95), "opt_eps": 1e-6}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64), nn.Linear(64, 4))


def built(model, decay=None, **values):
    return build_optimizer(VisionOptimizerOptions(**values), decay or DecayOptions(weight_decay=0.1), model)


def trained(model, optimizer, steps=4, seed=0):
    """Train on random data; the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 64, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def refused(**values):
    with pytest.raises(UserError) as error:
        built(net(), **values)
    return str(error.value)


def test_plain_sgd_has_no_momentum_and_timms_sgd_has_nesterovs():
    plain, nesterov = built(net(), optimizer="sgd", momentum=0.0), built(net(), optimizer="sgd", momentum=0.9)
    assert type(plain) is torch.optim.SGD
    assert [plain.param_groups[0][key] for key in ("momentum", "nesterov")] == [0, False]
    assert [nesterov.param_groups[0][key] for key in ("momentum", "nesterov")] == [0.9, True]


@pytest.mark.parametrize("name", ["adamw", "torch:AdamW", "torch:adamw"])
def test_betas_eps_and_further_arguments_reach_the_optimizer(name):
    group = built(net(), optimizer=name, opt_betas=(0.8, 0.9), opt_eps=1e-3, opt_kwargs=("amsgrad=True",)).param_groups
    assert all((g["betas"], g["eps"], g["amsgrad"], g["fused"]) == ((0.8, 0.9), 1e-3, True, True) for g in group)


def test_an_argument_that_chooses_a_kernel_replaces_the_fused_one():
    group = built(net(), optimizer="torch:AdamW", opt_kwargs=("foreach=True",)).param_groups[0]
    assert (group["foreach"], group["fused"]) == (True, None)


def test_torchs_own_optimizers_keep_torchs_defaults():
    group = built(net(), optimizer="torch:RMSprop").param_groups[0]
    assert (group["momentum"], group["alpha"], group["eps"]) == (0, 0.99, 1e-8)
    assert built(net(), optimizer="torch:SGD", opt_kwargs=("momentum=0.7",)).param_groups[0]["momentum"] == 0.7


def test_without_these_options_optimizers_are_timms_as_before():
    for name in ("adam", "adamw", "sgd", "lamb", "lion"):
        ours, theirs = net(), net()
        optimizer = built(ours, DecayOptions(weight_decay=0.0), optimizer=name, lr=1e-2)
        other = create_optimizer_v2(theirs.parameters(), opt=name, lr=1e-2, weight_decay=0.0, momentum=0.9)
        for first, second in zip(trained(ours, optimizer), trained(theirs, other), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opt_kwargs": ("momentun=1",), "optimizer": "torch:SGD"}, "has no such argument (did you mean momentum?"),
        ({"opt_kwargs": ("foo=1",)}, "--opt_kwargs foo=1: adam has no such argument; it has amsgrad, "),
        ({"opt_kwargs": ("amsgrad",)}, "--opt_kwargs amsgrad: expected KEY=VALUE"),
        ({"opt_kwargs": ("amsgrad=maybe",)}, "--opt_kwargs amsgrad=maybe: must be True or False"),
        ({"opt_kwargs": ("lr=1",)}, "--opt_kwargs lr=1: give it as --lr"),
        ({"opt_kwargs": ("betas=(0.9,0.9)",)}, "give it as --opt_betas"),
        ({"opt_kwargs": ("momentum=0.5",), "optimizer": "sgd"}, "--opt_kwargs momentum=0.5: give it as --momentum"),
        ({"opt_betas": (0.9,)}, "--opt_betas 0.9: adam takes 2 numbers"),
        ({"opt_betas": (0.9, 1.5)}, "--optimizer adam --opt_betas 0.9 1.5: Invalid beta parameter at index 1: 1.5"),
        ({"opt_betas": (0.9, 0.9), "optimizer": "sgd"}, "--opt_betas 0.9 0.9: sgd has no betas; its arguments are "),
        ({"opt_eps": 0.1, "optimizer": "torch:Adafactor"}, "--opt_eps 0.1: torch:Adafactor has no eps"),
        ({"optimizer": "torch:Adamm"}, "--optimizer torch:Adamm: torch has no such optimizer for training; it has"),
        ({"optimizer": "torch:LBFGS"}, "--optimizer torch:LBFGS: torch has no such optimizer for training; it has"),
        ({"optimizer": "torch:Rprop"}, "--optimizer torch:Rprop: has no weight decay"),
        ({"optimizer": "torch:Muon", "opt_kwargs": ("ns_steps=100",)}, "--opt_kwargs ns_steps=100: "),
    ],
)
def test_what_an_optimizer_does_not_take_is_named(values, message):
    assert message in refused(**values)


@pytest.mark.parametrize("shape", ["corrected", "independent"])
def test_schedules_for_decoupled_decay_refuse_optimizers_that_couple_it(shape):
    for name in ("adam", "sgd", "torch:RMSprop"):
        with pytest.raises(UserError, match=f"--weight_decay_sched {shape}: needs decay by learning rate x decay"):
            built(net(), DecayOptions(weight_decay=0.1, weight_decay_sched=shape), optimizer=name)
    for name in ("adamw", "lion", "torch:Muon"):
        built(net(), DecayOptions(weight_decay=0.1, weight_decay_sched=shape), optimizer=name)
    with pytest.raises(UserError, match="--decay_timescale 3.0: needs"):
        built(net(), DecayOptions(decay_timescale=3.0), optimizer="adam")


def test_muon_trains_matrices_and_adamw_the_rest_each_at_its_rate():
    """A slow twin: two optimizers of torch, one for the matrices of the modules, one for everything else."""
    ours, twin = net(), net()
    optimizer = built(ours, **MUON)
    matrices = [twin[0].weight, twin[2].weight]
    rest = [p for p in twin.parameters() if all(p is not other for other in matrices)]
    decayed, plain = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    for group in optimizer.param_groups:  # the schedule writes them
        group["lr"] = 0.02 * group.get("lr_scale", 1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        muon.zero_grad(), adamw.zero_grad()
        twin(torch.randn(8, 64, generator=generator)).square().mean().backward()
        muon.step(), adamw.step()
    for first, second in zip(trained(ours, optimizer), twin.parameters(), strict=True):
        assert torch.equal(first, second)


def test_muon_resumes_from_one_state_and_copies_hold_it_once():
    ours = net()
    optimizer = built(ours, **MUON)
    trained(ours, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(ours.state_dict())
    straight = trained(ours, optimizer, seed=1)
    other = net(seed=5)
    resumed = built(other, **MUON)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(straight, trained(other, resumed, seed=1), strict=True))
    assert sum(len(part.state) for part in optimizer._parts.values()) == 0
    assert len(saved["state"]) == len(list(ours.parameters()))


def test_muon_adapts_decay_and_decays_by_rate_x_decay_x_weight():
    model, options = net(), DecayOptions(decay="alphadecay", weight_decay=0.1)
    optimizer = built(model, options, **MUON)
    assert isinstance(optimizer, MuonWithAdamW) and why_coupled(optimizer) == ""
    decay = build_decay(options, model, optimizer, seed=0)
    trained(model, optimizer)
    assert len(set(decay.multipliers.values())) == 2
    assert alphadecay.attached(optimizer) is decay


def test_muon_needs_a_matrix():
    with pytest.raises(UserError, match="--optimizer torch:Muon: the model has no matrix for Muon"):
        built(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 4)), **MUON)
