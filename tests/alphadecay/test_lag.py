"""Spectra measured beside training: of which step's weights, and from when on they hold."""

import threading
from dataclasses import replace

import pytest
import torch
from ranks import on_ranks
from recipes import block_model
from test_state import setup, take_steps

import alphadecay
from alphadecay import analysis
from alphadecay.decay_log import refresh_rows
from alphadecay.spectra import NonFiniteWeight


def test_weights_of_the_step_at_which_a_refresh_is_due_are_measured_and_hold_from_lag_steps_later():
    model, optimizer, decay = setup(lag=3)
    take_steps(model, optimizer, 0, 4)
    first = decay.multipliers
    due = alphadecay.analyze(model)
    take_steps(model, optimizer, 4, 7)
    assert decay.multipliers == first
    take_steps(model, optimizer, 7, 8)
    spectra = [replace(record, grad_norm=None) for record in decay.records]
    assert spectra == [replace(record, grad_norm=None) for record in due] and decay.measured_at == 4
    assert decay.multipliers == alphadecay.assign(decay.scores) != first
    assert {row["measured_step"] for row in refresh_rows(decay)} == {4}


def test_when_they_hold_does_not_depend_on_how_long_they_take(monkeypatch):
    def multipliers(slow):
        gate = threading.Event()
        measure = analysis.measure

        def waiting(*given):
            if threading.current_thread() is not threading.main_thread():
                assert gate.wait(10)
            return measure(*given)

        monkeypatch.setattr(analysis, "measure", waiting if slow else measure)
        model, optimizer, decay = setup(lag=3)
        found = []
        for step in range(10):
            if step == 7:
                gate.set()  # only now may the thread begin: the step waits for it
            take_steps(model, optimizer, step, step + 1)
            found.append(decay.multipliers)
        monkeypatch.undo()
        return found

    assert multipliers(slow=True) == multipliers(slow=False)


def test_training_goes_on_while_they_are_measured(monkeypatch):
    gate, measure, threads = threading.Event(), analysis.measure, set()

    def waiting(*given):
        threads.add(threading.current_thread().name)
        assert threading.current_thread() is threading.main_thread() or gate.wait(10)
        return measure(*given)

    monkeypatch.setattr(analysis, "measure", waiting)
    model, optimizer, decay = setup(lag=3)
    take_steps(model, optimizer, 0, 7)  # three steps beyond the one at which the second refresh began
    gate.set()
    take_steps(model, optimizer, 7, 8)
    assert decay.measured_at == 4 and threads == {"MainThread", "alphadecay_0"}


@pytest.mark.slow
def test_every_rank_ends_with_the_decays_of_one_process(tmp_path):
    (alone,) = on_ranks("lagging_alone", 1, tmp_path)
    for kind in ("lagging", "lagging_shards"):
        found = on_ranks(kind, 2, tmp_path)
        assert found[0] == found[1]
        assert found[0]["multipliers"] == pytest.approx(alone["multipliers"], rel=1e-4)
        assert found[0]["scores"] == pytest.approx(alone["scores"], rel=1e-4)
        assert [r["name"] for r in found[0]["records"]] == [r["name"] for r in alone["records"]]


def test_a_weight_that_was_not_finite_is_named_when_its_decay_would_hold():
    model, optimizer, _ = setup(lag=2)
    take_steps(model, optimizer, 0, 4)
    with torch.no_grad():
        model.blocks[0].fc1.weight[0, 0] = torch.inf
    optimizer.step()
    with pytest.raises(NonFiniteWeight, match=r"blocks\.0\.fc1 \(256, 64\)"):
        optimizer.state_dict()


@pytest.mark.parametrize("lag", [-1, 4])
def test_a_lag_that_reaches_the_next_refresh_is_refused(lag):
    model = block_model()
    with pytest.raises(ValueError, match=f"below the interval of 4; got {lag}"):
        alphadecay.AlphaDecay(model, torch.optim.AdamW(model.parameters()), 4, lag=lag)
