"""The kinds of decay that the method is compared with, against slow twins written from their papers."""

import math
from collections import Counter

import pytest
import timm.optim.kron
import torch
from recipes import block_model
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import alphadecay
from alphadecay.adaptive import block_of
from alphadecay.decay_log import refresh_rows
from alphadecay.entries import adadecay_factors, agreeing
from alphadecay.optimizer_copies import own_randomness, twin_of, why_coupled
from alphadecay.spectra import NonFiniteWeight

LR, DECAY = 1e-2, 0.1


def setup(kind=alphadecay.UniformDecay, optimizer=torch.optim.AdamW, model=None, **options):
    model = block_model() if model is None else model
    optimizer = optimizer(alphadecay.param_groups(model, DECAY), lr=LR)
    return model, optimizer, kind(model, optimizer, **options)


def backward(model, step):
    model(torch.randn(16, 60, generator=torch.Generator().manual_seed(step))).square().mean().backward()


def take_steps(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def twin_steps(model, optimizer, steps, decayed):
    """Steps without decay; then `decayed(weight before, weight after, gradient)` is taken off, entry by entry."""
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        before = weights(model)
        optimizer.step()
        with torch.no_grad():
            for old, p in zip(before, model.parameters(), strict=True):
                if p.ndim > 1:
                    p -= decayed(old, p, p.grad)


def plain_twin(optimizer=torch.optim.AdamW):
    model = block_model()
    return model, optimizer(model.parameters(), lr=LR, weight_decay=0.0)


def entry_factors(gradient):
    magnitudes = gradient.abs().double()
    z = (magnitudes - magnitudes.mean()) / magnitudes.std(correction=0)
    return (2 / (1 + torch.exp(-4 * z))).float()


def not_away_from_zero(old, new):
    return (torch.sign(old - new) * torch.sign(old) >= 0).float()


FACTORS = {
    "cautious": (lambda old, new, gradient: not_away_from_zero(old, new), alphadecay.UniformDecay, True),
    "per entry": (lambda old, new, gradient: entry_factors(gradient), alphadecay.AdaDecayPerEntry, False),
    "cautious per entry": (
        lambda old, new, gradient: entry_factors(gradient) * not_away_from_zero(old, new),
        alphadecay.AdaDecayPerEntry,
        True,
    ),
}


@pytest.mark.parametrize("name", FACTORS)
def test_entries_are_decayed_as_a_slow_twin_decays_them(name):
    factors, kind, cautious = FACTORS[name]
    model, optimizer, _ = setup(kind, cautious=cautious)
    take_steps(model, optimizer, 5)
    twin, twin_optimizer = plain_twin()
    twin_steps(twin, twin_optimizer, 5, lambda old, new, g: LR * DECAY * factors(old, new, g) * old)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    undecayed, undecayed_optimizer = plain_twin()
    twin_steps(undecayed, undecayed_optimizer, 5, lambda *_: 0)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), undecayed.parameters())]  # noqa: B905
    assert max(moved) > 1e-4  # decay did something that the comparison above would see


@pytest.mark.parametrize("name", FACTORS)
def test_a_weight_without_a_gradient_is_not_decayed(name):
    _, kind, cautious = FACTORS[name]
    model, optimizer, _ = setup(kind, cautious=cautious)
    backward(model, 0)
    idle = model.blocks[0].fc1.weight
    idle.grad, before = None, idle.detach().clone()
    optimizer.step()
    assert torch.equal(idle, before)


def test_decay_with_all_entries_cautious_of_is_the_optimizers_own(monkeypatch):
    monkeypatch.setattr("alphadecay.entries.agreeing", lambda before, after: [torch.ones_like(b) for b in before])
    model, optimizer, _ = setup(cautious=True)
    take_steps(model, optimizer, 5)
    plain, plain_optimizer, _ = setup()
    take_steps(plain, plain_optimizer, 5)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", [alphadecay.AlphaDecay, alphadecay.AdaDecay, alphadecay.AWD])
def test_caution_composes_with_every_kind(kind):
    model, optimizer, decay = setup(kind, cautious=True)
    take_steps(model, optimizer, 3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    used = {row["module"]: row["weight_decay"] for row in refresh_rows(decay)}
    assert len(set(used.values())) == (1 if kind is alphadecay.AWD else len(used)) and min(used.values()) > 0
    decay.detach()
    assert max(group["weight_decay"] for group in optimizer.param_groups) == max(used.values())
    assert optimizer.param_groups[-1]["weight_decay"] == 0  # norms and biases


def test_signs_of_small_numbers_do_not_vanish():
    before, after = [torch.tensor([1e-30, -1e-30, 1e-30, 0.0])], [torch.tensor([2e-30, -2e-30, 5e-31, 1.0])]
    assert agreeing(before, after)[0].tolist() == [0, 0, 1, 1]


def test_equal_gradients_have_factor_one_and_larger_ones_more():
    flat, ramp = adadecay_factors([torch.full((4, 4), -0.3), torch.arange(1.0, 17).reshape(4, 4)])
    assert torch.equal(flat, torch.ones(4, 4))
    assert ramp.flatten().diff().min() > 0 and 0 < ramp.min() < 1 < ramp.max() < 2


COUPLED = ["adam", "sgd", "momentum", "nadam", "rmsprop", "adagrad", "lamb", "adamc", "adahessian"]
DECOUPLED = ["adamw", "nadamw", "lion", "muon", "sgdw", "adabelief", "adan"]


@pytest.mark.parametrize("name", [*COUPLED, *DECOUPLED])
def test_optimizers_that_decouple_decay_are_told_from_those_that_do_not_by_what_they_do(name):
    model = block_model()
    optimizer = create_optimizer_v2(model.parameters(), opt=name, lr=LR, weight_decay=DECAY)
    before, state = weights(model), str(optimizer.state)
    assert (not why_coupled(optimizer)) == (name in DECOUPLED)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert str(optimizer.state) == state
    if name in DECOUPLED:
        alphadecay.UniformDecay(model, optimizer, cautious=True)
        return
    for kind, options in ((alphadecay.UniformDecay, {"cautious": True}), (alphadecay.AdaDecayPerEntry, {})):
        groups = len(optimizer.param_groups)
        with pytest.raises(ValueError, match=r"decays weights by learning rate x decay x weight, such as AdamW"):
            kind(model, optimizer, **options)
        assert len(optimizer.param_groups) == groups  # nothing was changed


def test_a_group_that_couples_is_found_among_others():
    layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
    groups = [{"params": [*layers[0].parameters()]}, {"params": [*layers[1].parameters()], "momentum": 0.9}]
    assert not why_coupled(torch.optim.SGD(groups[:1], lr=LR))
    assert why_coupled(torch.optim.SGD(groups, lr=LR))


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lamb", "kron", "lookahead_adamw", "muon"])
def test_the_step_of_a_copied_optimizer_is_the_next_one_and_touches_nothing(name, monkeypatch):
    monkeypatch.setattr(timm.optim.kron, "has_dynamo", False)  # compiling takes minutes and changes no result
    model = block_model()
    options = {"memory_save_mode": "all_diag"} if name == "kron" else {}
    optimizer = create_optimizer_v2(model.parameters(), opt=name, lr=1e-3, weight_decay=DECAY, **options)
    inner = getattr(optimizer, "_base_optimizer", optimizer)
    take_steps(model, optimizer, 2)
    optimizer.zero_grad()
    backward(model, 2)
    twin = twin_of(inner)
    held = [p for group in inner.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in held]
    with own_randomness(inner):
        twin.step()
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    inner.step()
    copies = [p for group in twin.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, held, strict=True))


def test_awd_is_one_number_for_all_averaged_as_published():
    multipliers = []
    model, optimizer, decay = setup(alphadecay.AWD, scale=50.0, on_refresh=lambda d: multipliers.append(d.multipliers))
    expected, average = [], 0.0
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        weight = math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))
        average = 0.1 * average + 0.9 * (50 * DECAY) * gradient / weight
        expected.append(average)
        optimizer.step()
        decayed = {g["weight_decay"] for g in optimizer.param_groups if g["static_multiplier"]}
        assert len(decayed) == 1 and decayed.pop() == pytest.approx(average, rel=1e-5)
    assert [m["blocks.0.fc1"] * DECAY for m in multipliers] == pytest.approx(expected, rel=1e-5)
    (row,) = refresh_rows(decay)
    assert row["module"] == "(all)" and row["kind"] == "awd" and row["weight_decay"] == pytest.approx(average, rel=1e-5)
    assert row["multiplier"] == pytest.approx(average / DECAY, rel=1e-5)


def test_awd_without_any_gradient_keeps_what_it_has():
    _, optimizer, decay = setup(alphadecay.AWD)
    decay.refresh()
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_awd_does_not_let_a_gradient_that_is_not_finite_into_the_decays():
    model, optimizer, decay = setup(alphadecay.AWD)
    take_steps(model, optimizer, 1)
    model.head.bias.grad[0] = torch.inf
    with pytest.raises(NonFiniteWeight, match="the norm of the gradient is inf"):
        optimizer.step()
    assert all(math.isfinite(group["weight_decay"]) for group in optimizer.param_groups)


@pytest.mark.parametrize("scale", [0, -1, math.inf])
def test_an_impossible_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be a number above 0"):
        setup(alphadecay.AWD, scale=scale)


def test_adadecay_per_module_is_the_sigmoid_of_gradient_norms_within_blocks():
    model, optimizer, decay = setup(alphadecay.AdaDecay, interval=10)
    take_steps(model, optimizer, 1)
    for block in ("blocks.0", "blocks.1"):
        norms = {n: float(m.weight.grad.norm()) for n, m in model.named_modules() if n.startswith(f"{block}.") and "norm" not in n and isinstance(m, nn.Linear)}  # fmt: skip # noqa: E501
        mean = sum(norms.values()) / 3
        std = math.sqrt(sum((v - mean) ** 2 for v in norms.values()) / 3)
        for name, value in norms.items():
            expected = 2 / (1 + math.exp(-4 * (value - mean) / (std + 1e-8)))
            assert decay.multipliers[name] == pytest.approx(expected, rel=1e-4)


def test_a_block_is_what_stands_before_the_last_number_and_with_it():
    names = {"blocks.3.attn.qkv": "blocks.3", "layers.0.blocks.1.mlp.fc1": "layers.0.blocks.1", "head": ""}
    assert {name: block_of(name) for name in names} == names


def test_batch_norms_follow_the_convolution_of_like_name():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__()
            for i in (1, 2, 3):
                self.add_module(f"conv{i}", nn.Conv2d(64, 64, 1 if i < 3 else 3, padding=int(i == 3), bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(64))

    for batchnorm in (False, True):
        torch.manual_seed(0)
        model = Net()
        groups = alphadecay.param_groups(model, DECAY, norm_bias=True, batchnorm=batchnorm)
        optimizer = torch.optim.SGD(groups, lr=LR)
        decay = alphadecay.AlphaDecay(model, optimizer)
        decay.refresh()
        by_parameter = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert len(by_parameter) == 9 and len(decay.multipliers) == 3
        for i in (1, 2, 3):
            expected = DECAY * (decay.multipliers[f"conv{i}"] if batchnorm else 1.0)
            for p in getattr(model, f"bn{i}").parameters():
                assert by_parameter[id(p)] == expected


@pytest.mark.parametrize("kind", [alphadecay.UniformDecay, alphadecay.AdaDecayPerEntry])
@pytest.mark.parametrize("skipped", [False, True])
def test_a_step_that_is_skipped_on_the_device_decays_nothing(kind, skipped):
    def fused(groups, lr):
        return torch.optim.AdamW(groups, lr=lr, fused=True)

    model, optimizer, _ = setup(kind, fused, cautious=True)
    take_steps(model, optimizer, 1)
    backward(model, 1)
    model.head.bias.grad[0] = torch.nan  # what a gate has found, after the schedule's own look at the flag
    optimizer.register_step_pre_hook(lambda *_: setattr(optimizer, "found_inf", torch.tensor(float(skipped))))
    before = weights(model)
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert all(same) if skipped else not any(same)


class Counting(TorchDispatchMode):
    """Counts kernels; views are none."""

    def __init__(self):
        super().__init__()
        self.kernels = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in ("detach", "alias", "view", "unsqueeze", "select", "reshape"):
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


def kernels_of_a_step(depth, monkeypatch, kind=alphadecay.UniformDecay, **options):
    """How many kernels a step without a refresh takes, and how often the host asks for values."""
    model, optimizer, decay = setup(
        kind,
        optimizer=lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
        model=block_model(depth),
        **options,
    )
    take_steps(model, optimizer, 1)
    backward(model, 1)
    asked = Counter()
    for name in ("tolist", "item"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, real=real: asked.update(["host"]) or real(self))
    with Counting() as counting:
        optimizer.step()
    monkeypatch.undo()
    return counting.kernels.total(), asked["host"], len(optimizer.param_groups)


@pytest.mark.parametrize(
    ("kind", "options", "kernels", "questions"),
    [
        (alphadecay.AlphaDecay, {}, 0, 0),
        (alphadecay.UniformDecay, {"cautious": True}, 10, 0),
        (alphadecay.AdaDecayPerEntry, {}, 20, 1),
        (alphadecay.AdaDecayPerEntry, {"cautious": True}, 27, 1),
        (alphadecay.AWD, {}, 12, 1),
    ],
)
def test_a_step_costs_a_fixed_number_of_kernels_and_at_most_one_synchronisation(
    kind, options, kernels, questions, monkeypatch
):
    for depth in (1, 5):
        plain, plain_asked, groups = kernels_of_a_step(depth, monkeypatch)
        found, asked, same_groups = kernels_of_a_step(depth, monkeypatch, kind, **options)
        assert groups == same_groups == 3 * depth + 2
        assert found - plain <= kernels and asked - plain_asked == questions
