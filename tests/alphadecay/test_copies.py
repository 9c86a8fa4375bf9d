"""Copies of an optimizer, a schedule or both with their model go on as the original would, each for itself."""

import copy
import pickle

import pytest
import torch
from by_hand import BASE, backward, block_names, multipliers
from recipes import block_model

import alphadecay

NAMES = block_names(1)
INTERVAL, STEPS = 4, 11
COPIED_AT = [0, 3, 5]  # before the first step, amid an interval, and with a lag while spectra are measured


def setup(lag=0, kind=alphadecay.AlphaDecay, optimizer=torch.optim.AdamW):
    model = block_model(1)
    optimizer = optimizer(model.parameters(), lr=1e-2, weight_decay=BASE)
    options = {"interval": INTERVAL} if kind is not alphadecay.AWD else {}
    return model, optimizer, kind(model, optimizer, **options, **({"lag": lag} if lag else {}))


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


WAYS = {"deepcopy": copy.deepcopy, "pickle": pickled}
# What is copied, and the model and optimizer with which the copy is trained on.
WHOLES = {
    "decay": lambda copied, *built: (lambda decay: (decay.model, decay.optimizer))(copied(built[2])),
    "all three": lambda copied, *built: copied(built)[:2],
    "decay first": lambda copied, *built: copied(built[::-1])[:0:-1],
}


def train(model, optimizer, steps):
    """The decays of each step, parameter by parameter."""
    found = []
    for step in steps:
        backward(model, step)
        optimizer.step()
        by_parameter = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        found.append([by_parameter[id(p)] for p in model.parameters()])
    return found


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("at", COPIED_AT)
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("whole", WHOLES)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_as_the_original_and_each_for_itself(way, whole, lag, at):
    model, optimizer, decay = setup(lag)
    train(model, optimizer, range(at))
    ours, our_optimizer = WHOLES[whole](WAYS[way], model, optimizer, decay)
    before = [p.detach().clone() for p in model.parameters()]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    copied = train(ours, our_optimizer, range(at, STEPS))
    assert same(before, model.parameters()) and decay.step == at
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays
    original = train(model, optimizer, range(at, STEPS))
    assert copied == original and same(ours.parameters(), model.parameters())
    assert len({tuple(step) for step in original}) >= 2  # it did refresh on the way


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_refreshes_from_its_own_weights(way):
    model, optimizer, decay = setup()
    train(model, optimizer, range(3))
    ours, our_optimizer, our_decay = WAYS[way]((model, optimizer, decay))
    assert our_decay.model is ours and our_decay.optimizer is our_optimizer
    train(ours, our_optimizer, [3, 100])  # other batches than the original's
    train(model, optimizer, [3])
    with torch.no_grad():
        for p in model.blocks.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    expected = multipliers(model, NAMES)
    train(model, optimizer, [4])
    assert decay.multipliers == pytest.approx(expected, rel=1e-4)
    assert our_decay.multipliers != decay.multipliers and our_decay.step == decay.step == 5


@pytest.mark.parametrize("at", COPIED_AT)
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_the_optimizer_alone_goes_on_as_the_original(way, lag, at):
    model, optimizer, decay = setup(lag)
    train(model, optimizer, range(at))
    ours = WAYS[way](optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    our_held = [p for group in ours.param_groups for p in group["params"]]
    assert same(held, our_held) and not any(a is b for a, b in zip(held, our_held, strict=True))
    found = []
    for step in range(at, STEPS):
        backward(model, step)
        for p, q in zip(held, our_held, strict=True):
            q.grad = p.grad.clone()
        for each in (ours, optimizer):
            each.step()
            found.append([group["weight_decay"] for group in each.param_groups])
        assert found[-2] == found[-1] and same(held, our_held)
    assert len({tuple(decays) for decays in found}) >= 2 and decay.step == STEPS


@pytest.mark.parametrize("kind", [alphadecay.UniformDecay, alphadecay.AWD, alphadecay.AdaDecay])
@pytest.mark.parametrize("way", WAYS)
def test_copies_of_the_other_kinds_go_on_too(way, kind):
    model, optimizer, decay = setup(kind=kind)
    train(model, optimizer, range(3))
    ours, our_optimizer, our_decay = WAYS[way]((model, optimizer, decay))
    assert train(ours, our_optimizer, range(3, 6)) == train(model, optimizer, range(3, 6))
    assert same(ours.parameters(), model.parameters()) and our_decay.step == decay.step == 6


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_can_be_detached_without_the_original(way):
    model, optimizer, decay = setup()
    train(model, optimizer, range(3))
    ours, our_optimizer, our_decay = WAYS[way]((model, optimizer, decay))
    our_decay.detach()
    last = train(ours, our_optimizer, range(3, 6))
    assert last[0] == last[-1] and our_decay.step == 3
    assert len({tuple(step) for step in train(model, optimizer, range(3, 6))}) == 2 and decay.step == 6
