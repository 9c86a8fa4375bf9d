"""Optimizers around optimizers, and those that keep several weights: steps count once, decays are as by hand."""

import copy

import pytest
import pytorch_optimizer
import schedulefree
import torch
from by_hand import BASE, SAM, backward, block_names, decay_on, multipliers, own_groups, take_steps, write_decays
from recipes import block_model

import alphadecay

NAMES = block_names(1)
STEPS, INTERVAL, LR, RHO = 5, 2, 1e-2, 2.0


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def attached(model, optimizer, **options):
    """AlphaDecay, and the steps before which it refreshed."""
    seen = []
    return alphadecay.AlphaDecay(
        model, optimizer, INTERVAL, on_refresh=lambda decay: seen.append(decay.step), **options
    ), seen


def assert_decays(model, optimizer, expected):
    for name, multiplier in expected.items():
        found = decay_on(optimizer, model.get_submodule(name).weight)
        assert found == pytest.approx(BASE * multiplier, rel=1e-4), name
    assert decay_on(optimizer, model.head.weight) == pytest.approx(BASE)


# Sharpness-aware minimisation.


def sam_steps(model, sam, steps, way):
    for step in steps:
        backward(model, step)
        if way == "closure":
            sam.step(lambda step=step: backward(model, step))
        else:
            sam.first_step(zero_grad=True)
            backward(model, step)
            sam.second_step(zero_grad=True)


def sam_by_hand(steps):
    """The weights, and the multipliers of each step: of the weights from which the inner optimizer steps."""
    model, found = block_model(1), []
    inner = torch.optim.AdamW(own_groups(model, NAMES), lr=LR, weight_decay=BASE)
    for step in range(steps):
        backward(model, step)
        before = weights(model)
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad, alpha=RHO / float(norm))
        uphill = multipliers(model, NAMES)
        backward(model, step)
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)
        if step % INTERVAL == 0:
            current = multipliers(model, NAMES)
            assert any(abs(current[name] - uphill[name]) > 1e-3 for name in NAMES)  # else the place could not be told
            write_decays(inner, current)
        found.append(current)
        inner.step()
    return model, found


SAMS = {"the paper's": SAM, "pytorch_optimizer's": pytorch_optimizer.SAM}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["closure", "two calls"])
@pytest.mark.parametrize("name", SAMS)
def test_a_step_of_sam_counts_once_and_decays_by_the_weights_from_which_it_goes(name, way):
    model = block_model(1)
    sam = SAMS[name](model.parameters(), torch.optim.AdamW, rho=RHO, lr=LR, weight_decay=BASE)
    decay, seen = attached(model, sam)
    expected_model, expected = sam_by_hand(STEPS)
    for step in range(STEPS):
        sam_steps(model, sam, [step], way)
        assert decay.step == step + 1
        assert_decays(model, sam, expected[step])
        assert_decays(model, sam.base_optimizer, expected[step])
    assert seen == [0, 2, 4]
    for ours, theirs in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# The paper's program keeps the state of the inner optimizer in no state dict: SGD has none.
INNER = {"the paper's": torch.optim.SGD, "pytorch_optimizer's": torch.optim.AdamW}


@pytest.mark.parametrize("lag", [0, 1], ids=["at once", "with a lag"])
@pytest.mark.parametrize("way", ["closure", "two calls"])
@pytest.mark.parametrize("name", SAMS)
def test_the_state_dict_of_sam_resumes_its_decays(name, way, lag):
    def built():
        model = block_model(1)
        sam = SAMS[name](model.parameters(), INNER[name], rho=RHO, lr=LR, weight_decay=BASE)
        return model, sam, attached(model, sam, lag=lag)[0]

    model, sam, decay = built()
    sam_steps(model, sam, range(3), way)
    held, state = copy.deepcopy((model.state_dict(), sam.state_dict()))
    sam_steps(model, sam, range(3, 6), way)
    again, sam, resumed = built()
    again.load_state_dict(held)
    sam.load_state_dict(state)
    assert resumed.step == 3
    sam_steps(again, sam, range(3, 6), way)
    assert resumed.multipliers == decay.multipliers and len(set(decay.multipliers.values())) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", SAMS)
def test_a_state_of_sam_under_another_kind_of_decay_is_refused(name):
    states = []
    for kind in (alphadecay.AlphaDecay, alphadecay.UniformDecay):
        model = block_model(1)
        sam = SAMS[name](model.parameters(), INNER[name], rho=RHO, lr=LR, weight_decay=BASE)
        kind(model, sam)
        sam_steps(model, sam, [0], "two calls")
        states.append(sam.state_dict())
    with pytest.raises(ValueError, match="alphadecay"):
        sam.load_state_dict(states[0])


# Schedule-free training: weights change with train() and eval().


def schedule_free_steps(model, optimizer, steps):
    """Each step amid train(), and eval() after it, as the library asks for around evaluations."""
    for step in steps:
        optimizer.train()
        take_steps(model, optimizer, [step])
        optimizer.eval()


SCHEDULE_FREE = {
    "adamw": lambda groups: schedulefree.AdamWScheduleFree(groups, lr=LR, weight_decay=BASE),
    "adamw warming up": lambda groups: schedulefree.AdamWScheduleFree(groups, lr=LR, weight_decay=BASE, warmup_steps=4),
    "sgd": lambda groups: schedulefree.SGDScheduleFree(groups, lr=LR, weight_decay=BASE),
    "radam": lambda groups: schedulefree.RAdamScheduleFree(groups, lr=LR, weight_decay=BASE),
    "pytorch_optimizer's adamw": lambda groups: pytorch_optimizer.ScheduleFreeAdamW(groups, lr=LR, weight_decay=BASE),
}


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_optimizers_decay_by_the_weights_that_are_trained(name):
    model, twin = block_model(1), block_model(1)
    optimizer, by_hand = SCHEDULE_FREE[name](model.parameters()), SCHEDULE_FREE[name](own_groups(twin, NAMES))
    decay, seen = attached(model, optimizer)
    for step in range(7):
        by_hand.train()
        if step % INTERVAL == 0:
            expected = multipliers(twin, NAMES)
        schedule_free_steps(model, optimizer, [step])
        assert_decays(model, optimizer, expected)
        write_decays(by_hand, {name: decay.multipliers[name] for name in NAMES})
        schedule_free_steps(twin, by_hand, [step])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert seen == [0, 2, 4, 6] and decay.step == 7


def inner_adamw(groups):
    return torch.optim.AdamW(groups, lr=LR, weight_decay=BASE)


# schedulefree's wrapper keeps its own state among that of the inner optimizer, which Adam takes for begun.
WRAPPERS = {
    "schedulefree's wrapper": lambda groups: schedulefree.ScheduleFreeWrapper(
        torch.optim.SGD(groups, lr=LR, weight_decay=BASE)
    ),
    "pytorch_optimizer's wrapper": lambda groups: pytorch_optimizer.ScheduleFreeWrapper(inner_adamw(groups)),
}


def assert_steps_as_by_hand(optimizers, steps=take_steps, measured=lambda twin, _: twin, tolerance=0.0):
    """Two optimizers from one maker, the second under decays by hand: the same decays and, within tolerance, weights.

    `measured` says of which model the weights are that decide, from the second model and its optimizer.
    """
    model, twin = block_model(1), block_model(1)
    optimizer, by_hand = optimizers(model.parameters()), optimizers(own_groups(twin, NAMES))
    decay, seen = attached(model, optimizer)
    for step in range(STEPS):
        if step % INTERVAL == 0:
            expected = multipliers(measured(twin, by_hand), NAMES)
        steps(model, optimizer, [step])
        assert_decays(model, optimizer, expected)
        write_decays(by_hand, {name: decay.multipliers[name] for name in NAMES})
        steps(twin, by_hand, [step])
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert seen == [0, 2, 4] and decay.step == STEPS


def iterate_of(twin, optimizer):
    """The model at the iterate z of schedule-free, which the inner optimizer decays."""
    iterate = block_model(1)
    with torch.no_grad():
        for p, q in zip(iterate.parameters(), twin.parameters(), strict=True):
            p.copy_(optimizer.state[q].get("z", q))
    return iterate


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_schedule_free_wrapper_decays_by_the_iterate_that_it_decays(name):
    assert_steps_as_by_hand(WRAPPERS[name], schedule_free_steps, iterate_of)


OTHERS = {
    "Lookahead": lambda groups: pytorch_optimizer.Lookahead(inner_adamw(groups), k=2),
    "OrthoGrad": lambda groups: pytorch_optimizer.OrthoGrad(inner_adamw(groups)),
    "TRAC": lambda groups: pytorch_optimizer.TRAC(inner_adamw(groups)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pytorch_optimizers_wrappers_are_seen_through(name):
    assert_steps_as_by_hand(OTHERS[name], tolerance=1e-6)  # TRAC adds up over all groups
