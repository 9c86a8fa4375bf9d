"""What a schedule says of itself: in a notebook, in the log that another run replays, and after a state was loaded."""

import json

import pytest
import torch
from recipes import block_model
from test_state import saved, setup, take_steps
from torch import nn

import alphadecay
from alphadecay.decay_log import refresh_rows


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_repr_says_strategy_step_next_refresh_range_and_mean_by_parameters():
    model, optimizer, decay = setup(low=0.5, high=2.0)
    assert repr(decay) == "AlphaDecay(AdamW, step 0, next refresh before step 0, 6 modules)"
    take_steps(model, optimizer, 0, 5)
    sizes = {name: model.get_parameter(f"{name}.weight").numel() for name in decay.multipliers}
    mean = sum(size * decay.multipliers[name] for name, size in sizes.items()) / sum(sizes.values())
    assert repr(decay) == (
        f"AlphaDecay(AdamW, step 5, next refresh before step 8, 6 modules x 0.5 to 2, mean by parameters {mean:.3g})"
    )


def test_the_next_refresh_is_the_one_that_comes():
    refreshed = []
    model, optimizer, decay = setup(on_refresh=lambda decay: refreshed.append(decay.step))
    for step in range(10):
        said = decay.next_refresh
        take_steps(model, optimizer, step, step + 1)
        assert (refreshed[-1] == step) == (said == step)
    assert setup(frozen=True)[2].next_refresh == 0
    model, optimizer, decay = setup(frozen=True)
    take_steps(model, optimizer, 0, 1)
    assert decay.next_refresh is None


def test_records_of_a_schedule_print_as_a_table():
    _, _, decay = setup()
    decay.refresh()
    head, _, *lines = str(decay.records).splitlines()
    assert head.split()[:4] == ["module", "role", "shape", "alpha"] and len(lines) == len(decay.records)


def test_the_log_has_the_rows_of_every_refresh_and_replay_takes_the_same_steps(tmp_path):
    expected = []
    whole, optimizer, decay = setup(on_refresh=lambda decay: expected.extend(refresh_rows(decay)))
    decay.log_to(tmp_path / "logs" / "decay.jsonl")
    take_steps(whole, optimizer, 0, 10)
    assert rows(tmp_path / "logs" / "decay.jsonl") == expected and {row["step"] for row in expected} == {0, 4, 8}

    again = block_model()
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2, weight_decay=0.1)
    replay = alphadecay.Replay(again, optimizer, tmp_path / "logs" / "decay.jsonl")
    take_steps(again, optimizer, 0, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert replay.multipliers == decay.multipliers and replay.next_refresh is None


def test_a_log_that_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "decay.jsonl"
    path.write_text("mine\n")
    _, _, decay = setup()
    with pytest.raises(ValueError, match=r"decay.jsonl exists already: take another name, or append=True"):
        decay.log_to(path)
    with pytest.raises(ValueError, match="below cannot be written: "):
        decay.log_to(path / "below")
    with pytest.raises(ValueError, match=r"decay.jsonl, line 1: not JSON"):
        decay.log_to(path, append=True)
    assert path.read_text() == "mine\n"


def test_a_resumed_log_is_that_of_a_run_that_was_not_stopped(tmp_path):
    model, optimizer, decay = setup()
    decay.log_to(tmp_path / "whole.jsonl")
    take_steps(model, optimizer, 0, 10)

    model, optimizer, decay = setup()
    decay.log_to(tmp_path / "parts.jsonl")
    take_steps(model, optimizer, 0, 3)
    state = saved(model, optimizer)
    take_steps(model, optimizer, 3, 6)  # logs step 4, and dies

    model, optimizer, decay = setup()
    decay.log_to(tmp_path / "parts.jsonl", append=True)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    take_steps(model, optimizer, 3, 10)
    assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.parametrize("lag", [0, 2])
def test_a_loaded_state_says_what_the_last_refresh_found(lag):
    model, optimizer, decay = setup(lag=lag)
    take_steps(model, optimizer, 0, 7)
    weights, state = saved(model, optimizer)
    other, other_optimizer, loaded = setup(lag=lag)
    other.load_state_dict(weights)
    other_optimizer.load_state_dict(state)
    assert loaded.records == decay.records and loaded.scores == decay.scores and loaded.scores
    assert loaded.measured_at == decay.measured_at == 4
    live = other_optimizer.param_groups + optimizer.param_groups
    assert not any("decay_measured" in group for group in live)  # measures change: compiled steps would notice


def test_the_schedule_that_acts_is_found_from_the_optimizer():
    _, optimizer, decay = setup()
    assert alphadecay.attached(optimizer) is decay
    decay.detach()
    assert alphadecay.attached(optimizer) is None


def test_groups_have_names_that_are_unique_for_loggers():
    model = block_model()
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "name": "all"}], weight_decay=0.1)
    alphadecay.AlphaDecay(model, optimizer)
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names) == 7 and names[0] == "all: blocks.0.proj"
    _, optimizer, _ = setup()
    assert [group["name"] for group in optimizer.param_groups][-1] == "(rest of group 0)"


def test_a_frozen_model_is_analysed_and_frozen_parts_on_request():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    expected = [record.alpha for record in alphadecay.analyze(model)]
    model[0].requires_grad_(False)
    half = alphadecay.analyze(model)
    assert (half[0].note, half[0].alpha, half[1].alpha) == ("frozen", None, expected[1])
    assert [record.alpha for record in alphadecay.analyze(model, include=["frozen"])] == expected
    assert [record.alpha for record in alphadecay.analyze(model.requires_grad_(False))] == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exclude": "0*"}, "exclude='0\\*': give a list of names, such as \\['0\\*'\\]"),
        ({"include": "stem"}, "include='stem': give a list of names"),
        ({"include": ["stems"]}, "include='stems' is unknown; choose from stem, head, frozen"),
        ({"min_eigenvalues": 0}, "min_eigenvalues must be a whole number of eigenvalues, at least 1; got 0"),
        ({"interval": 2.5}, "interval must be a whole number of optimizer steps, at least 1; got 2.5"),
        ({"interval": 0}, "interval must be a whole number of optimizer steps, at least 1; got 0"),
        ({"interval": True}, "interval must be a whole number"),
        ({"lag": 1.5}, "lag must be a whole number of steps, at least 0 and below the interval of 500; got 1.5"),
        ({"ranking": "all"}, "ranking='all' is unknown; choose from optimizer, model"),
    ],
    ids=str,
)
def test_impossible_arguments_are_one_line_that_names_them(options, sentence):
    model = block_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with pytest.raises(ValueError, match=sentence) as raised:
        alphadecay.AlphaDecay(model, optimizer, **options)
    assert "\n" not in str(raised.value) and len(optimizer.param_groups) == 1


def test_what_is_no_model_is_named():
    with pytest.raises(
        TypeError, match=r"model must be a torch.nn.Module, got OrderedDict; files of weights are analysed by"
    ):
        alphadecay.analyze(block_model().state_dict())


@pytest.mark.parametrize("control", [None, "invert"])
@pytest.mark.parametrize("rule", ["linear", "sqrt", "log2", "sigmoid"])
def test_scores_that_overflow_are_named_and_large_ones_give_finite_multipliers(rule, control):
    blocks = {"a": "", "b": ""}
    with pytest.raises(ValueError, match=r"the score of b is 1.7e\+308: beyond 1e\+150 squares and sums overflow"):
        alphadecay.assign({"a": 1.0, "b": 1.7e308}, rule, control=control, blocks=blocks)
    found = alphadecay.assign({"a": 1e149, "b": 1e150}, rule, control=control, blocks=blocks)
    assert all(0 <= each < float("inf") for each in found.values())
