"""Models that change under AlphaDecay: what comes, goes, thaws or is pruned is seen at the next step."""

import copy

import pytest
import torch
from by_hand import BASE, HIGH, LOW, backward, block_names, decay_on, multipliers, take_steps
from recipes import block_model
from torch import nn
from torch.nn.utils import prune

import alphadecay
from alphadecay import membership
from alphadecay.matrices import find_matrices

FIRST, BOTH = block_names(1), block_names(2)
SECOND = BOTH[len(FIRST) :]
INTERVAL = 10  # far beyond the steps taken here: what refreshes did so because the model changed


def optimizer_of(*modules, kind=torch.optim.AdamW):
    return kind([p for module in modules for p in module.parameters()], lr=1e-2, weight_decay=BASE)


def attached(model, optimizer, **options):
    """AlphaDecay, and the steps before which it refreshed."""
    seen = []
    options = {"interval": INTERVAL} | options
    return alphadecay.AlphaDecay(model, optimizer, on_refresh=lambda decay: seen.append(decay.step), **options), seen


def assert_decays(model, optimizer, expected):
    for name, multiplier in expected.items():
        found = decay_on(optimizer, model.get_submodule(name).weight)
        assert found == pytest.approx(BASE * multiplier, rel=1e-3), name


def note_of(decay, start):
    """The note on the weight of a module, under whatever name it is listed."""
    return next(record.note for record in decay.records if record.name.startswith(start))


def with_a_late_block(late_base=BASE):
    """A model of two blocks, an optimizer of all but the second, which `add` brings."""
    model = block_model(2)
    optimizer = optimizer_of(model.patch_embed, model.blocks[0], model.head)

    def add():
        optimizer.add_param_group({"params": [*model.blocks[1].parameters()], "weight_decay": late_base})

    return model, optimizer, add


@pytest.mark.parametrize("late_base", [BASE, 0.03])
def test_matrices_of_an_added_group_get_groups_of_their_own_and_a_refresh_at_the_next_step(late_base):
    model, optimizer, add = with_a_late_block(late_base)
    decay, seen = attached(model, optimizer)
    expected = multipliers(model, FIRST)
    take_steps(model, optimizer, range(3))
    assert_decays(model, optimizer, expected)
    add()
    expected = multipliers(model, BOTH)
    take_steps(model, optimizer, [3])
    assert seen == [0, 3] and decay.step == 4
    assert_decays(model, optimizer, {name: expected[name] for name in FIRST})
    assert_decays(model, optimizer, {name: expected[name] * late_base / BASE for name in SECOND})
    assert decay.multipliers == pytest.approx(expected, rel=1e-3)
    for name in SECOND:
        weight = model.get_submodule(name).weight
        (group,) = [g for g in optimizer.param_groups if any(p is weight for p in g["params"])]
        assert len(group["params"]) == 1
    assert decay_on(optimizer, model.blocks[1].fc1.bias) == late_base
    take_steps(model, optimizer, range(4, 12))
    assert seen[:2] == [0, 3] and decay.step == 12


SCHEDULERS = {
    "steps": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_under_a_scheduler_an_added_group_is_not_split_and_gets_the_mean_multiplier_of_its_matrices(name):
    model, optimizer, add = with_a_late_block()
    decay, seen = attached(model, optimizer)
    scheduler = SCHEDULERS[name](optimizer)
    take_steps(model, optimizer, range(2))
    scheduler.step()
    add()
    groups, expected = len(optimizer.param_groups), multipliers(model, BOTH)
    take_steps(model, optimizer, [2])
    assert seen == [0, 2] and len(optimizer.param_groups) == groups
    sizes = {name: model.get_submodule(name).weight.numel() for name in SECOND}
    mean = sum(sizes[name] * expected[name] for name in SECOND) / sum(sizes.values())
    assert_decays(model, optimizer, {name: expected[name] for name in FIRST} | dict.fromkeys(SECOND, mean))
    assert all(note_of(decay, name) for name in SECOND) and not any(note_of(decay, name) for name in FIRST)
    for step in range(3, 12):
        scheduler.step()
        take_steps(model, optimizer, [step])
    assert decay.step == 12 and len(optimizer.param_groups) == groups


@pytest.mark.parametrize("kind", [alphadecay.UniformDecay, alphadecay.AWD, alphadecay.AdaDecay])
@pytest.mark.parametrize("scheduled", [False, True])
def test_other_kinds_take_added_groups_too(kind, scheduled):
    model, optimizer, add = with_a_late_block()
    decay = kind(model, optimizer)
    if scheduled:
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    take_steps(model, optimizer, range(2))
    add()
    take_steps(model, optimizer, range(2, 4))
    assert decay.step == 4
    if kind is not alphadecay.AdaDecay:
        assert len({decay_on(optimizer, model.get_submodule(name).weight) for name in BOTH}) == 1


def test_a_layer_that_is_thawed_gets_a_group_of_its_own_and_a_refresh_at_the_next_step():
    model = block_model(2)
    frozen = [model.get_submodule(name).weight for name in SECOND]
    for p in frozen:
        p.requires_grad_(False)
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    assert all(note_of(decay, name) == "frozen" for name in SECOND)
    for p in frozen:
        p.requires_grad_(True)
    expected = multipliers(model, BOTH)
    take_steps(model, optimizer, [2])
    assert seen == [0, 2] and decay.multipliers == pytest.approx(expected, rel=1e-3)
    assert_decays(model, optimizer, expected)
    assert decay_on(optimizer, model.blocks[1].fc1.bias) == BASE


def test_a_layer_that_is_frozen_later_stays_out_of_the_others_ranking():
    model = block_model(2)
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    for name in SECOND:
        model.get_submodule(name).weight.requires_grad_(False)
    expected = multipliers(model, FIRST)
    take_steps(model, optimizer, [2])
    assert seen == [0, 2]
    assert_decays(model, optimizer, expected)
    assert all(note_of(decay, name) == "frozen" for name in SECOND)


# Lazy modules are said to be under development.
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer_takes_part_from_the_step_after_it_was_made():
    model = block_model(1)
    model.blocks[0].fc2 = nn.LazyLinear(64)
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    backward(model, 0)  # makes it
    expected = multipliers(model, FIRST)
    take_steps(model, optimizer, [0])
    assert seen == [0] and decay.multipliers == pytest.approx(expected, rel=1e-3)
    assert_decays(model, optimizer, expected)


class Later(nn.Module):
    """Does nothing until it is switched on; only then its layer is made."""

    def __init__(self):
        super().__init__()
        self.layer, self.on = nn.LazyLinear(64), False

    def forward(self, x):
        return self.layer(x) if self.on else x


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_layer_that_is_made_after_the_first_step_takes_part_from_the_next():
    model = block_model(1)
    model.blocks[0].add_module("later", Later())
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    model.blocks[0].later.on = True
    backward(model, 2)
    expected = multipliers(model, [*FIRST, "blocks.0.later.layer"])
    take_steps(model, optimizer, [2])
    assert seen == [0, 2] and decay.multipliers == pytest.approx(expected, rel=1e-3)
    assert_decays(model, optimizer, expected)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_pruned_weight_keeps_its_base_decay_and_the_others_are_ranked_anew(scheduled):
    model = block_model(2)
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    if scheduled:
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    take_steps(model, optimizer, range(2))
    last = max(decay.multipliers, key=decay.multipliers.__getitem__)
    assert decay.multipliers[last] == pytest.approx(HIGH)
    module = model.get_submodule(last)
    prune.l1_unstructured(module, "weight", 0.3)
    rest = [name for name in BOTH if name != last]
    expected = multipliers(model, rest)
    take_steps(model, optimizer, [2])
    assert seen == [0, 2] and "pruned" in note_of(decay, last)
    assert decay_on(optimizer, module.weight_orig) == pytest.approx(BASE)
    assert decay.multipliers.get(last, 1.0) == 1.0
    assert_decays(model, optimizer, expected)
    take_steps(model, optimizer, range(3, 12))
    prune.remove(module, "weight")
    take_steps(model, optimizer, [12])  # what it was before
    assert decay.step == 13


@pytest.mark.parametrize("removed", [["blocks.1"], ["blocks.0.proj"]])
def test_a_module_that_is_removed_leaves_the_others_ranked_among_themselves(removed):
    model = block_model(2)
    optimizer = optimizer_of(model)
    decay, seen = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    for name in removed:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
    rest = [name for name in BOTH if not name.startswith(tuple(removed))]
    expected = multipliers(model, rest)
    take_steps(model, optimizer, [2])
    assert seen == [0, 2]
    assert_decays(model, optimizer, expected)
    assert not any(record.name.startswith(tuple(removed)) for record in decay.records)


def test_a_layer_that_is_put_in_anothers_place_is_ranked_once_the_optimizer_holds_it():
    model = block_model(2)
    optimizer = optimizer_of(model)
    decay, _ = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    new = copy.deepcopy(model.blocks[1].fc1)
    with torch.no_grad():
        new.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.blocks[1].fc1 = new
    expected = multipliers(model, [name for name in BOTH if name != "blocks.1.fc1"])
    take_steps(model, optimizer, [2])
    assert_decays(model, optimizer, expected)
    assert "not in this optimizer" in note_of(decay, "blocks.1.fc1")
    optimizer.add_param_group({"params": [*new.parameters()]})
    expected = multipliers(model, BOTH)
    take_steps(model, optimizer, [3])
    assert_decays(model, optimizer, expected)


@pytest.mark.parametrize("lag", [1, 2])
def test_with_a_lag_a_change_while_spectra_are_measured_is_seen_too(lag):
    model, optimizer, add = with_a_late_block()
    decay, _ = attached(model, optimizer, interval=4, lag=lag)
    take_steps(model, optimizer, range(5))  # the second refresh is under way
    add()
    take_steps(model, optimizer, range(5, 12))
    assert decay.step == 12 and set(decay.multipliers) == set(BOTH)
    assert min(decay.multipliers.values()) == pytest.approx(LOW)
    assert max(decay.multipliers.values()) == pytest.approx(HIGH)


def test_matrices_are_searched_for_at_construction_and_at_each_refresh_only(monkeypatch):
    searches, real = [], membership.find_matrices
    monkeypatch.setattr(membership, "find_matrices", lambda *given, **how: searches.append(1) or real(*given, **how))
    model = block_model(2)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer, interval=2, ranking="model")

    def steps():
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        return len(decay.records)

    before = steps()
    assert len(searches) == 1 + 2 and len(decay.matrices) == before
    model.add_module("more", nn.Linear(64, 64))  # of another optimizer; no group, no slot that was known changes
    assert steps() == before + 1 and len(searches) == 1 + 4


def share_a_module(model):
    model.blocks[1].extra = model.blocks[0].fc1


def tie_a_weight(model):
    model.extra = nn.Linear(16, 32, bias=False)
    model.extra.weight = model.blocks[0].fc1.weight


def reshape_in_place(model):
    weight = model.blocks[1].fc1.weight
    weight.data = weight.data.reshape(8, -1).clone()  # too few eigenvalues to be adapted


@pytest.mark.parametrize("change", [share_a_module, tie_a_weight, reshape_in_place])
def test_a_refresh_looks_at_the_model_as_it_is(change):
    model = block_model(2)
    optimizer = optimizer_of(model)
    decay, _ = attached(model, optimizer)
    take_steps(model, optimizer, range(2))
    change(model)
    decay.refresh()
    assert [(m.name, m.reason) for m in decay.matrices] == [(m.name, m.reason) for m in find_matrices(model)]
    afresh = {record.name: record.alpha for record in alphadecay.analyze(model)}
    assert {record.name: record.alpha for record in decay.records} == afresh
