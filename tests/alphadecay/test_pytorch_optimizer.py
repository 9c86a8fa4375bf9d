"""pytorch_optimizer's optimizers under AlphaDecay step as twins with groups and decays by hand; steps count once."""

import inspect
import math

import pytest
import pytorch_optimizer
import torch
from by_hand import BASE, backward, block_names, decay_on, multipliers, own_groups, write_decays
from recipes import block_model

import alphadecay

NAMES = block_names(1)
LR, INTERVAL, STEPS = 1e-3, 2, 4
CLASSES = {name: pytorch_optimizer.load_optimizer(name) for name in pytorch_optimizer.get_supported_optimizers()}
TAKES_DECAY = {name for name, cls in CLASSES.items() if "weight_decay" in inspect.signature(cls).parameters}
TAKES_DECAY |= {"muon", "muonclip", "adamuon", "normuon", "adago"} & set(CLASSES)
MUONS = ["muon", "muonclip", "adamuon", "normuon", "adago"]  # they are told which weights are theirs
LEFT_OUT = {
    "adabound": "keeps one rate for each group that it was built with",
    "adahessian": "needs gradients of gradients",
    "adalomo": "takes a model, not parameters",
    "adammini": "takes a model, not parameters",
    "bsam": "needs the number of samples",
    "demo": "needs the package einops",
    "distributedmuon": "needs several processes",
    "flashadamw": "notes an initial rate in its groups, as learning-rate schedulers do",
    "kron": "compiles, which takes seconds",
    "lorarite": "takes pairs of adapters",
    "ranger21": "needs the number of steps",
    "sophiah": "needs gradients of gradients",
    "spectralsphere": "takes matrices only",
}
PLAIN = sorted(TAKES_DECAY - set(LEFT_OUT) - set(MUONS))


def built(name, groups):
    rate = {"lr": LR} if "lr" in inspect.signature(CLASSES[name]).parameters else {}
    return CLASSES[name](groups, weight_decay=BASE, **rate)


def step_once(model, optimizer, step):
    backward(model, step)
    torch.manual_seed(step)  # some of them draw numbers
    optimizer.step()


def assert_like_a_twin_by_hand(model, optimizer, twin, by_hand):
    seen = []
    decay = alphadecay.AlphaDecay(model, optimizer, INTERVAL, on_refresh=lambda decay: seen.append(decay.step))
    for step in range(STEPS):
        if step % INTERVAL == 0:
            expected = multipliers(model, NAMES)
        step_once(model, optimizer, step)
        for name in NAMES:
            found = decay_on(optimizer, model.get_submodule(name).weight)
            assert found == pytest.approx(BASE * expected[name], rel=1e-4)
        write_decays(by_hand, {name: decay.multipliers[name] for name in NAMES})
        step_once(twin, by_hand, step)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)  # some add up over all weights
    assert decay.step == STEPS and seen == [0, 2]


@pytest.mark.parametrize("name", PLAIN)
def test_the_step_is_that_of_a_twin_with_groups_and_decays_by_hand(name):
    model, twin = block_model(1), block_model(1)
    assert_like_a_twin_by_hand(model, built(name, list(model.parameters())), twin, built(name, own_groups(twin, NAMES)))


@pytest.mark.parametrize("name", MUONS)
def test_muons_keep_to_the_weights_that_they_are_told(name):
    def both(model, alone):
        *matrices, rest = own_groups(model, NAMES)
        together = [{"params": [p for group in matrices for p in group["params"]]}]
        muon = [group | {"use_muon": True} for group in (matrices if alone else together)]
        return CLASSES[name]([group | {"weight_decay": BASE} for group in [*muon, rest | {"use_muon": False}]])

    model, twin = block_model(1), block_model(1)
    assert_like_a_twin_by_hand(model, both(model, alone=False), twin, both(twin, alone=True))


# Torch runs an optimizer's hooks in `step` of its class, and again in that of a class above that had an instance.


class Mine(torch.optim.AdamW):
    """A step of its own around that of its parent."""

    def step(self, closure=None):
        return super().step(closure)


class Twice(Mine):
    def step(self, closure=None):
        return super().step(closure=closure)


def overriding(name):
    """An optimizer whose step calls that of a class of which this process had one before; and its model."""
    model = block_model(1)
    if name == "MuonClip":
        groups = [{"params": [*model.blocks.parameters()], "use_muon": True}]
        groups += [{"params": [*model.head.parameters()], "use_muon": False}]
        pytorch_optimizer.Muon([dict(group) for group in groups], weight_decay=BASE)
        return model, pytorch_optimizer.MuonClip(groups, lr=LR, weight_decay=BASE)
    torch.optim.AdamW(model.parameters())
    Mine(model.parameters())
    return model, {"Mine": Mine, "Twice": Twice}[name](model.parameters(), lr=LR, weight_decay=BASE)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", ["Mine", "Twice", "MuonClip"])
def test_a_step_that_calls_its_parents_counts_once(name, closure):
    seen = []
    model, optimizer = overriding(name)
    decay = alphadecay.AlphaDecay(model, optimizer, 4, on_refresh=lambda decay: seen.append((decay.step, taken)))
    for taken in range(9):
        if closure:
            optimizer.step(lambda taken=taken: backward(model, taken))
        else:
            step_once(model, optimizer, taken)
        assert decay.step == taken + 1
    assert seen == [(0, 0), (4, 4), (8, 8)]


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", ["Mine", "Twice"])
def test_awd_averages_once_in_a_step_that_calls_its_parents(name, closure):
    model, optimizer = overriding(name)
    decay, average = alphadecay.AWD(model, optimizer, scale=50.0), 0.0
    for step in range(4):
        backward(model, step)
        gradient = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        weight = math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))
        average = 0.1 * average + 0.9 * 50 * gradient / weight
        if closure:
            optimizer.step(lambda step=step: backward(model, step))
        else:
            optimizer.step()
        (found,) = set(decay.multipliers.values())
        assert found == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize("cautious", [False, True])
def test_decay_is_taken_off_once_in_a_step_that_calls_its_parents(cautious):
    model, optimizer = overriding("Mine")
    alphadecay.AdaDecayPerEntry(model, optimizer, cautious=cautious)
    twin = block_model(1)
    plain = torch.optim.AdamW(twin.parameters(), lr=LR, weight_decay=BASE)
    alphadecay.AdaDecayPerEntry(twin, plain, cautious=cautious)
    for step in range(3):
        step_once(model, optimizer, step)
        step_once(twin, plain, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


class Failing(Mine):
    """A step that fails where it is told to, with those of its parents or before them."""

    fails = ""

    def step(self, closure=None):
        if self.fails == "before":
            raise ArithmeticError
        result = super().step(closure)
        if self.fails == "after":
            raise ArithmeticError
        return result


@pytest.mark.parametrize("fails", ["before", "after", "in the closure"])
def test_a_step_that_fails_does_not_silence_those_after_it(fails):
    model, _ = overriding("Mine")
    optimizer = Failing(model.parameters(), lr=LR, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, optimizer, 2)

    def closure(step, fail):
        if fail:
            raise ArithmeticError
        return backward(model, step)

    optimizer.step(lambda: closure(0, False))
    optimizer.fails = fails
    with pytest.raises(ArithmeticError):
        optimizer.step(lambda: closure(1, fails == "in the closure"))
    optimizer.fails, counted = "", decay.step
    for step in range(2, 5):
        optimizer.step(lambda step=step: closure(step, False))
    assert decay.step == counted + 3
