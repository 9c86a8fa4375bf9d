"""`optimizer.state_dict()` alone resumes the decay to the last bit; a state that does not fit says what to do."""

import copy
import io

import pytest
import torch
from recipes import block_model
from timm.optim import create_optimizer_v2
from torch import nn

import alphadecay
from alphadecay.decay_log import refresh_rows
from optim_factory import build_decay
from runtime.decay_options import DecayOptions

OPTIMIZERS = {
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "timm lion": lambda p: create_optimizer_v2(p, opt="lion", lr=1e-3, weight_decay=0.1),
    "timm lamb": lambda p: create_optimizer_v2(p, opt="lamb", lr=1e-2, weight_decay=0.1),
    "timm muon": lambda p: create_optimizer_v2(p, opt="muon", lr=1e-2, weight_decay=0.1),
    "lookahead": lambda p: create_optimizer_v2(p, opt="lookahead_adamw", lr=1e-2, weight_decay=0.1),
}


def setup(optimizer="adamw foreach", kind=alphadecay.AlphaDecay, groups=False, interval=4, **options):
    model = block_model()
    optimizer = OPTIMIZERS[optimizer](alphadecay.param_groups(model, 0.1) if groups else model.parameters())
    return model, optimizer, kind(model, optimizer, interval, **options)


def take_steps(model, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        model(torch.randn(8, 60, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()


def saved(model, optimizer):
    """Weights and optimizer as a file gives them back to a loader that trusts nobody."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


KINDS = {
    "awd": (alphadecay.AWD, {"scale": 50.0}),
    "adadecay": (alphadecay.AdaDecay, {"interval": 4}),
    "adadecay per entry": (alphadecay.AdaDecayPerEntry, {}),
    "cautious": (alphadecay.AlphaDecay, {"interval": 4, "cautious": True}),
    "cautious uniform": (alphadecay.UniformDecay, {"cautious": True}),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_resumes_to_the_same_bits(name, fused):
    kind, options = KINDS[name]

    def run(*parts):
        state = None
        for first, last in zip((0, *parts), (*parts, 7), strict=True):
            model = block_model()
            optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1), lr=1e-2, fused=fused)
            decay = kind(model, optimizer, **options)
            if state:
                model.load_state_dict(state[0])
                optimizer.load_state_dict(state[1])
            take_steps(model, optimizer, first, last)
            state = saved(model, optimizer)
        return model, decay.multipliers

    whole, multipliers = run()
    again, again_multipliers = run(3)
    assert again_multipliers == multipliers
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("stop", range(3, 9))
def test_resuming_while_spectra_are_measured_beside_training_gives_the_same_bits_and_ledger(stop):
    def run(*parts):
        ledger, state = [], None
        for first, last in zip((0, *parts), (*parts, 11), strict=True):
            model, optimizer, decay = setup(lag=2, on_refresh=lambda schedule: ledger.extend(refresh_rows(schedule)))
            if state:
                model.load_state_dict(state[0])
                optimizer.load_state_dict(state[1])
            take_steps(model, optimizer, first, last)
            state = saved(model, optimizer)
        return model, decay.multipliers, ledger

    whole, multipliers, ledger = run()
    again, again_multipliers, again_ledger = run(stop)
    assert again_multipliers == multipliers and again_ledger == ledger
    assert [row["step"] for row in ledger[::6]] == [0, 6, 10]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_gives_the_same_bits(name, groups):
    for stop in (3, 4):  # before and at a refresh
        whole, optimizer, decay = setup(name, groups=groups)
        take_steps(whole, optimizer, 0, 8)
        first, first_optimizer, _ = setup(name, groups=groups)
        take_steps(first, first_optimizer, 0, stop)
        weights, state = saved(first, first_optimizer)
        last, last_optimizer, last_decay = setup(name, groups=groups)
        last.load_state_dict(weights)
        last_optimizer.load_state_dict(state)
        assert last_decay.step == stop
        take_steps(last, last_optimizer, stop, 8)
        assert last_decay.multipliers == decay.multipliers and len(set(decay.multipliers.values())) > 1
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), last.parameters(), strict=True))


def state_of(**options):
    model, optimizer, _ = setup(**options)
    take_steps(model, optimizer, 0, 2)
    return optimizer.state_dict()


def test_groups_that_were_split_differently_say_what_to_do():
    _, optimizer, _ = setup(groups=True)
    with pytest.raises(
        ValueError, match=r"has 7 groups, the optimizer 8; .* Build the optimizer and the decay schedule"
    ):
        optimizer.load_state_dict(state_of(groups=False))


def test_other_names_are_told_apart():
    model = block_model()
    model.add_module("layers", model.blocks)
    del model.blocks
    model.add_module("out", model.head)
    del model.head
    optimizer = OPTIMIZERS["adamw foreach"](model.parameters())
    alphadecay.AlphaDecay(model, optimizer)
    with pytest.raises(ValueError, match="'blocks.0.proj' was saved where 'layers.0.proj' is now.* same model"):
        optimizer.load_state_dict(state_of())


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        (alphadecay.UniformDecay, alphadecay.AlphaDecay, "saved with the strategy uniform, but alphadecay is attached"),
        (alphadecay.AlphaDecay, alphadecay.UniformDecay, "saved with the strategy alphadecay, but uniform is attached"),
    ],
)
def test_the_state_of_another_kind_of_decay_says_what_to_do(before, now, sentence):
    state = state_of(kind=before)
    _, optimizer, _ = setup(kind=now)
    untouched = optimizer.state_dict()
    with pytest.raises(ValueError, match=f"{sentence}.* Attach the strategy that saved it; or set `takes_over = True`"):
        optimizer.load_state_dict(state)
    assert optimizer.state_dict() == untouched


@pytest.mark.parametrize("frozen", [False, True])
def test_another_kind_takes_over_when_told_to_and_refreshes_at_once(frozen):
    state = state_of(kind=alphadecay.UniformDecay)
    refreshed = []
    model, optimizer, decay = setup(frozen=frozen, interval=4, on_refresh=lambda decay: refreshed.append(decay.step))
    decay.takes_over = True
    optimizer.load_state_dict(state)
    take_steps(model, optimizer, 2, 5)
    assert refreshed == [2, 4] and len(set(decay.multipliers.values())) > 1
    assert state["param_groups"][0]["decay_kind"] == "uniform"  # the caller's own is left as it was


def test_another_kind_takes_over_from_one_that_was_detached():
    model, optimizer, decay = setup()
    take_steps(model, optimizer, 0, 2)
    decay.detach()
    alphadecay.UniformDecay(model, optimizer)
    take_steps(model, optimizer, 2, 3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_the_trainer_leaves_it_to_its_own_check_whether_decay_may_change():
    model = block_model()
    optimizer = OPTIMIZERS["adamw fused"](alphadecay.param_groups(model, 0.1))
    build_decay(DecayOptions(decay="alphadecay"), model, optimizer, seed=0)
    optimizer.load_state_dict(state_of(kind=alphadecay.UniformDecay, groups=True))


def test_a_state_from_before_kinds_were_noted_resumes_as_it_did():
    state = state_of()
    for group in state["param_groups"]:
        del group["decay_kind"]
    refreshed = []
    model, optimizer, _ = setup(on_refresh=lambda decay: refreshed.append(decay.step))
    optimizer.load_state_dict(state)
    take_steps(model, optimizer, 2, 5)
    assert refreshed == [4]


def test_a_state_without_alphadecay_is_loaded_before_it_is_attached():
    model = block_model()
    optimizer = OPTIMIZERS["adamw foreach"](model.parameters())
    take_steps(model, optimizer, 0, 2)
    state = optimizer.state_dict()
    _, other, _ = setup()
    with pytest.raises(ValueError, match="saved without alphadecay. Load it into the optimizer before constructing"):
        other.load_state_dict(state)
    resumed = OPTIMIZERS["adamw foreach"](model.parameters())
    resumed.load_state_dict(state)
    assert alphadecay.AlphaDecay(model, resumed).step == 0
    take_steps(model, resumed, 2, 4)
    assert all(float(resumed.state[p]["step"]) == 4 for p in model.parameters())


@pytest.mark.parametrize("attached", [True, False])
def test_a_state_from_before_groups_said_what_they_hold_loads_and_says_it(attached):
    model, optimizer, _ = setup()
    state = optimizer.state_dict()
    held = [group.pop("decay_group") for group in state["param_groups"]]
    assert {"module", "rest"} <= set(held)
    again, optimizer, decay = setup()
    names = [group["decay_name"] for group in decay.own_groups]
    if not attached:
        decay.detach()
    optimizer.load_state_dict(state)
    if not attached:
        decay = alphadecay.AlphaDecay(again, optimizer)
    assert [group["decay_name"] for group in decay.own_groups] == names
    assert [group["decay_group"] for group in optimizer.state_dict()["param_groups"]] == held


def four_layers(frozen=False, held=4, kind=alphadecay.AlphaDecay, **options):
    """Four layers of which the optimizer holds the first, the third frozen or not."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(60, 60) for _ in range(4)))
    model[2].requires_grad_(not frozen)
    optimizer = torch.optim.AdamW(model[:held].parameters(), lr=1e-2, weight_decay=0.1)
    return model, optimizer, kind(model, optimizer, **{"interval": 100} | options)


def unfreeze(model, _):
    model[2].requires_grad_(True)


def add_the_last_layer(model, optimizer):
    optimizer.add_param_group({"params": [*model[3].parameters()]})


CHANGES = {
    "unfrozen, the model built so": (unfreeze, {"frozen": True}, {"frozen": False}, None),
    "unfrozen before loading": (unfreeze, {"frozen": True}, {"frozen": True}, unfreeze),
    "added before loading": (add_the_last_layer, {"held": 3}, {"held": 3}, add_the_last_layer),
}


@pytest.mark.parametrize("saved_after", [5, 6, 8], ids=["before the next step", "after it", "later"])
@pytest.mark.parametrize(("change", "built", "again", "before_loading"), CHANGES.values(), ids=CHANGES)
def test_a_run_whose_layers_changed_resumes_bitwise(change, built, again, before_loading, saved_after):
    model, optimizer, decay = four_layers(**built)
    take_steps(model, optimizer, 0, 5)
    change(model, optimizer)
    take_steps(model, optimizer, 5, saved_after)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    take_steps(model, optimizer, saved_after, 11)
    resumed, other_optimizer, resumed_decay = four_layers(**again)
    if before_loading is not None:
        before_loading(resumed, other_optimizer)
    resumed.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    take_steps(resumed, other_optimizer, saved_after, 11)
    assert resumed_decay.multipliers == decay.multipliers and resumed_decay.measured_at == decay.measured_at == 5
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_layer_that_is_unfrozen_after_loading_was_adapted_before():
    model, optimizer, decay = four_layers(frozen=True)
    take_steps(model, optimizer, 0, 5)
    unfreeze(model, optimizer)
    take_steps(model, optimizer, 5, 8)
    resumed, other_optimizer, resumed_decay = four_layers(frozen=True)
    resumed.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    unfreeze(resumed, other_optimizer)
    take_steps(model, optimizer, 8, 10)
    take_steps(resumed, other_optimizer, 8, 10)
    assert resumed_decay.multipliers == decay.multipliers and resumed_decay.measured_at == 5


@pytest.mark.parametrize("kind", [alphadecay.UniformDecay, alphadecay.AdaDecay])
def test_when_was_measured_is_saved_where_nothing_was(kind):
    options = {"interval": 3} if kind is alphadecay.UniformDecay else {}
    model, optimizer, decay = four_layers(kind=kind, **options)
    take_steps(model, optimizer, 0, 5)
    resumed, other_optimizer, resumed_decay = four_layers(kind=kind, **options)
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert resumed_decay.measured_at == decay.measured_at
