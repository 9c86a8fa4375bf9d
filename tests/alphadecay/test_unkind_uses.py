"""Uses that a stranger thought of: what holds stays true when a run is changed, stopped or wired in other ways."""

import json

import pytest
import torch
import torch.nn.utils.prune
from unkind import adamw, decays, net, take_steps

import alphadecay


def test_a_schedule_that_is_attached_again_refreshes_first_and_takes_what_was_written_as_base():
    model = net()
    optimizer = adamw(model)
    first = alphadecay.AlphaDecay(model, optimizer)
    take_steps(model, optimizer, 0, 1)
    first.detach()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.01
    refreshed = []
    alphadecay.AlphaDecay(
        model, optimizer, low=1.0, high=1.5, exclude=["3"], on_refresh=lambda decay: refreshed.append(decay.step)
    )
    take_steps(model, optimizer, 1, 2)
    found = decays(optimizer)
    assert refreshed == [1] and found["3"] == pytest.approx(0.01)
    assert sorted(found[name] for name in "012")[::2] == pytest.approx([0.01, 0.015])


def test_attached_again_untouched_the_base_is_what_it_was():
    model = net()
    optimizer = adamw(model)
    alphadecay.AlphaDecay(model, optimizer).detach()
    alphadecay.UniformDecay(model, optimizer)
    take_steps(model, optimizer, 0, 1)
    assert set(decays(optimizer).values()) == {0.1}


@pytest.mark.parametrize("ranking", ["optimizer", "model"])
def test_an_added_group_is_ranked_at_the_next_step_whatever_the_ranking(ranking):
    model = net()
    optimizer = torch.optim.AdamW(model[:2].parameters(), lr=1e-2, weight_decay=0.1)
    decay = alphadecay.AlphaDecay(model, optimizer, ranking=ranking)
    take_steps(model, optimizer, 0, 1)
    optimizer.add_param_group({"params": model[2:].parameters()})
    assert set(decay.multipliers) == set("0123") and "4 modules" in repr(decay)  # looked at before the next step
    assert optimizer.state_dict()["param_groups"][-1]["decay_name"]
    take_steps(model, optimizer, 1, 2)
    assert max(decay.multipliers.values()) == pytest.approx(3) and decay.multipliers["3"] != 1


def grown_run(model, schedule, steps=6, added=3, scheduler=True):
    """A run to which a group of two matrices is added, under a learning-rate scheduler."""
    optimizer = torch.optim.AdamW(model[:2].parameters(), lr=1e-2, weight_decay=0.1)
    decay = schedule(model, optimizer)
    rates = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0) if scheduler else None
    for step in range(steps):
        if step == added:
            optimizer.add_param_group({"params": model[2:].parameters()})
        take_steps(model, optimizer, step, step + 1)
        if rates:
            rates.step()
    return decay


@pytest.mark.parametrize("scheduler", [False, True])
def test_a_run_to_which_a_group_was_added_is_replayed_to_the_same_bits(scheduler, tmp_path):
    def logged(model, optimizer):
        decay = alphadecay.AlphaDecay(model, optimizer, 2)
        decay.log_to(tmp_path / "decay.jsonl")
        return decay

    whole, again, mean = net(), net(), net()
    grown_run(whole, logged, scheduler=scheduler)
    grown_run(again, lambda *on: alphadecay.Replay(*on, tmp_path / "decay.jsonl"), scheduler=scheduler)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))

    rows = [json.loads(line) for line in (tmp_path / "decay.jsonl").read_text().splitlines()]
    held = {row["step"]: row["multiplier"] for row in rows if row["module"] == "3"}
    assert set(held) == {3, 4}
    replay = grown_run(
        mean, lambda *on: alphadecay.Replay(*on, tmp_path / "decay.jsonl", mean=True), scheduler=scheduler
    )
    assert replay.multipliers["3"] == pytest.approx((held[3] + held[4]) / 2)


def test_means_over_time_of_a_module_that_vanishes_are_over_the_steps_it_was_there():
    from alphadecay.replay import means_over_time

    rows = {0: {"a": {"multiplier": 1.0}, "b": {"multiplier": 3.0}}, 2: {"a": {"multiplier": 2.0}}}
    assert means_over_time(rows) == {"a": 1.5, "b": 3.0}


def test_what_a_state_would_have_taken_next_is_dropped_without_lag_and_by_a_refresh_by_hand():
    model = net()
    optimizer = adamw(model)
    alphadecay.AlphaDecay(model, optimizer, 10, lag=5)
    take_steps(model, optimizer, 0, 12)
    state = optimizer.state_dict()
    assert "decay_next" in state["param_groups"][0]
    plain = net()
    without = adamw(plain)
    alphadecay.AlphaDecay(plain, without, 10)
    without.load_state_dict(state)
    assert not any("decay_next" in group for group in without.state_dict()["param_groups"])

    refreshed = []
    again = net()
    lagged = adamw(again)
    decay = alphadecay.AlphaDecay(again, lagged, 10, lag=5, on_refresh=lambda decay: refreshed.append(decay.step))
    take_steps(again, lagged, 0, 13)
    decay.refresh()
    by_hand = decay.multipliers
    take_steps(again, lagged, 13, 17)
    assert decay.multipliers == by_hand and refreshed == [0, 13] and decay.measured_at == 13


def test_the_step_that_torchs_distributed_checkpoints_take_to_make_a_state_is_none(tmp_path):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = net()
    optimizer = adamw(model)
    refreshed = []
    decay = alphadecay.AlphaDecay(model, optimizer, 3, on_refresh=lambda decay: refreshed.append(decay.step))
    get_optimizer_state_dict(model, optimizer)
    assert decay.step == 0 and refreshed == []
    take_steps(model, optimizer, 0, 4)
    assert refreshed == [0, 3]
