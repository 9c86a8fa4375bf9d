"""A model's matrices in two optimizers, each under a schedule of its own; and two schedules that want one optimizer."""

import pytest
import torch
from by_hand import (
    BASE,
    HIGH,
    LOW,
    alpha_of,
    block_names,
    decay_on,
    linear,
    multipliers,
    own_groups,
    take_steps,
    write_decays,
)
from recipes import block_model

import alphadecay

NAMES = block_names(2)
SQUARE, WIDE = [name for name in NAMES if "proj" in name], [name for name in NAMES if "proj" not in name]


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")


def held(model, names, others=False):
    """The weights of these modules, or all other parameters of the model."""
    those = {id(model.get_submodule(name).weight) for name in names}
    return [p for p in model.parameters() if (id(p) in those) != others]


def muon_beside_adamw(model, names, lr=1e-2, **options):
    muon = torch.optim.Muon(held(model, names), lr=lr, weight_decay=BASE)
    adamw = torch.optim.AdamW(held(model, names, others=True), lr=lr, weight_decay=BASE)
    return muon, adamw, [alphadecay.AlphaDecay(model, each, 2, **options) for each in (muon, adamw)]


def decays(model, optimizer, names):
    return [decay_on(optimizer, model.get_submodule(name).weight) / BASE for name in names]


def train(model, optimizers, steps):
    for step in steps:
        take_steps(model, optimizers[0], [step])
        for optimizer in optimizers[1:]:
            optimizer.step()


@needs_muon
def test_muon_on_the_hidden_matrices_beside_adamw_on_the_rest_steps_as_by_hand():
    model, twin = block_model(2), block_model(2)
    muon = torch.optim.Muon(held(model, NAMES), lr=1e-2, weight_decay=BASE)
    adamw = torch.optim.AdamW(held(model, NAMES, others=True), lr=1e-2, weight_decay=BASE)
    decay = alphadecay.AlphaDecay(model, muon, 2)
    by_hand = torch.optim.Muon(own_groups(twin, NAMES)[: len(NAMES)], lr=1e-2, weight_decay=BASE)
    rest = torch.optim.AdamW(held(twin, NAMES, others=True), lr=1e-2, weight_decay=BASE)
    for step in range(5):
        if step % 2 == 0:
            expected = multipliers(twin, NAMES)
        train(model, (muon, adamw), [step])
        assert decays(model, muon, NAMES) == pytest.approx(list(expected.values()), rel=1e-4)
        write_decays(by_hand, {name: decay.multipliers[name] for name in NAMES})
        train(twin, (by_hand, rest), [step])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert decay.step == 5 and {group["weight_decay"] for group in adamw.param_groups} == {BASE}


@needs_muon
def test_muon_ranks_only_what_muon_holds_and_the_records_of_the_others_say_where_they_are_not():
    model = block_model(2)
    muon, _, (decay, _) = muon_beside_adamw(model, SQUARE)
    expected = multipliers(model, SQUARE)
    take_steps(model, muon, [0])
    assert decays(model, muon, SQUARE) == pytest.approx(list(expected.values()), rel=1e-4)
    notes = {record.name: record.note for record in decay.records}
    assert all("not in this optimizer" in notes[name] for name in WIDE)
    assert all(notes[name] == "" for name in SQUARE)


@needs_muon
def test_each_of_two_optimizers_ranks_its_own_half():
    model = block_model(2)
    muon, adamw, _ = muon_beside_adamw(model, SQUARE, lr=0.0)
    train(model, (muon, adamw), [0])
    for optimizer, names in ((muon, SQUARE), (adamw, WIDE)):
        found = decays(model, optimizer, names)
        assert found == pytest.approx(list(multipliers(model, names).values()), rel=1e-4)
        assert min(found) == pytest.approx(LOW) and max(found) == pytest.approx(HIGH)


@needs_muon
def test_ranked_over_the_model_both_get_what_one_optimizer_over_everything_gives():
    model, one = block_model(2), block_model(2)
    muon, adamw, pair = muon_beside_adamw(model, SQUARE, lr=0.0, ranking="model")
    whole = torch.optim.AdamW(one.parameters(), lr=0.0, weight_decay=BASE)
    alone = alphadecay.AlphaDecay(one, whole, 2)
    train(model, (muon, adamw), range(3))
    train(one, (whole,), range(3))
    assert decays(model, muon, SQUARE) == decays(one, whole, SQUARE)
    assert decays(model, adamw, WIDE) == decays(one, whole, WIDE)
    together = {name: m for each in pair for name, m in each.multipliers.items()}
    assert {name: together[name] for name in NAMES} == alone.multipliers
    expected = linear({name: alpha_of(one.get_submodule(name).weight) for name in NAMES})
    assert alone.multipliers == pytest.approx(expected, rel=1e-4)


def test_ranked_over_the_model_one_optimizer_over_everything_is_as_ever():
    found = []
    for options in ({}, {"ranking": "model"}):
        model = block_model(2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
        decay = alphadecay.AlphaDecay(model, optimizer, 2, **options)
        take_steps(model, optimizer, range(3))
        found.append((decay.multipliers, decay.records))
    assert found[0] == found[1]


# Two schedules on one optimizer would write over each other.

KINDS = {
    "AlphaDecay": alphadecay.AlphaDecay,
    "UniformDecay": alphadecay.UniformDecay,
    "AdaDecay": alphadecay.AdaDecay,
    "AWD": alphadecay.AWD,
}


@pytest.mark.parametrize("second", ["AlphaDecay", "UniformDecay"])
@pytest.mark.parametrize("first", KINDS)
def test_a_second_schedule_on_one_optimizer_is_refused_until_the_first_is_detached(first, second):
    model = block_model(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
    attached = KINDS[first](model, optimizer)
    take_steps(model, optimizer, [0])
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=rf"\b{first}\b") as refused:
        KINDS[second](model, optimizer)
    assert "detach" in str(refused.value)
    assert [dict(group) for group in optimizer.param_groups] == before  # nothing was changed
    attached.detach()
    again = KINDS[second](model, optimizer, interval=1)
    expected = multipliers(model, block_names(1)) if second == "AlphaDecay" else dict.fromkeys(block_names(1), 1.0)
    take_steps(model, optimizer, [1])
    assert again.multipliers == pytest.approx(expected, rel=1e-4)


def test_a_second_schedule_is_refused_on_the_optimizer_inside_a_wrapper_too():
    model = block_model(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=BASE)
    alphadecay.AlphaDecay(model, optimizer)

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    with pytest.raises(ValueError, match="AlphaDecay"):
        alphadecay.UniformDecay(model, Wrapper(optimizer))
