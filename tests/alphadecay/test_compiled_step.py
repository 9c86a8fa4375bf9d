"""A compiled optimizer step under AlphaDecay compiles hardly more than without, and steps the same."""

import pytest
import torch
import torch._dynamo
from by_hand import BASE, backward, block_names, multipliers, own_groups
from recipes import block_model
from torch._dynamo.utils import counters

import alphadecay

NAMES = block_names(1)
STEPS, INTERVAL = 8, 3


class Run:
    """Some compiled steps: how much was compiled after each, under which decays, and to what end.

    Without `decays` and `attach` the decays stay as they are; with `decays` they are written by hand before each step.
    """

    def __init__(self, attach=False, decays=None):
        torch._dynamo.reset()
        counters.clear()
        self.model, self.decays, self.frames, self.graphs, self.expected = block_model(1), [], [], [], {}
        optimizer = torch.optim.AdamW(own_groups(self.model, NAMES), lr=1e-2, weight_decay=BASE)
        self.decay = alphadecay.AlphaDecay(self.model, optimizer, INTERVAL) if attach else None
        compiled = torch.compile(optimizer.step, backend="eager")
        for step in range(STEPS):
            if step % INTERVAL == 0:
                self.expected[step] = multipliers(self.model, NAMES)
            for group, decay in zip(optimizer.param_groups, decays[step] if decays else [], strict=False):
                group["weight_decay"] = decay
            backward(self.model, step)
            compiled()
            self.decays.append([group["weight_decay"] for group in optimizer.param_groups])
            self.frames.append(counters["frames"]["total"])
            self.graphs.append(counters["stats"]["unique_graphs"])
        torch._dynamo.reset()
        counters.clear()


@pytest.fixture(scope="module")
def runs():
    attached = Run(attach=True)
    return Run(), attached, Run(decays=attached.decays)


@pytest.mark.slow
def test_a_compiled_step_decays_as_by_hand(runs):
    _, attached, by_hand = runs
    for step, expected in attached.expected.items():
        found = [decay / BASE for decay in attached.decays[step]]
        assert found == pytest.approx([*expected.values(), 1.0], rel=1e-4)
    assert attached.decay.step == STEPS and attached.decays == by_hand.decays
    for ours, theirs in zip(attached.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_at_most_three_more_frames_are_compiled_than_without(runs):
    without, attached, by_hand = runs
    assert attached.frames[0] <= without.frames[0] + 3 and attached.graphs[0] <= without.graphs[0] + 3
    assert attached.frames[-1] <= by_hand.frames[-1] + 3 and attached.graphs[-1] <= by_hand.graphs[-1] + 3


@pytest.mark.slow
def test_a_refresh_compiles_nothing_that_changed_values_would_not(runs):
    _, attached, by_hand = runs
    for step in range(INTERVAL, STEPS, INTERVAL):
        for ours, theirs in ((attached.frames, by_hand.frames), (attached.graphs, by_hand.graphs)):
            assert ours[step] - ours[step - 1] <= theirs[step] - theirs[step - 1]
