"""The decays of another run again, from its ledger: the same bits, or their means; no other model's."""

import json
from fractions import Fraction

import pytest
import torch
from recipes import block_model
from test_baselines import setup, take_steps, weights
from tiny import TINY, rows, run

import alphadecay
from alphadecay.decay_log import refresh_rows
from alphadecay.replay import means_over_time, read_decay_log
from runtime.checkpoints import find_checkpoint

STEPS = 9


def written(path, kind=alphadecay.AlphaDecay, depth=2, **options):
    """A run's ledger on the disk, and its last weights."""
    lines = []
    model, optimizer, _ = setup(
        kind, model=block_model(depth), on_refresh=lambda schedule: lines.extend(refresh_rows(schedule)), **options
    )
    take_steps(model, optimizer, STEPS)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return weights(model)


KINDS = {
    "alphadecay": (alphadecay.AlphaDecay, {"interval": 2}),
    "beside training": (alphadecay.AlphaDecay, {"interval": 3, "lag": 2}),
    "adadecay": (alphadecay.AdaDecay, {"interval": 2}),
    "awd": (alphadecay.AWD, {"scale": 50.0}),
    "uniform": (alphadecay.UniformDecay, {"interval": 4}),
}


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_replayed_run_has_the_same_bits(name, cautious, tmp_path):
    kind, options = KINDS[name]
    path = tmp_path / "decay.jsonl"
    expected = written(path, kind, cautious=cautious, **options)
    model, optimizer, decay = setup(alphadecay.Replay, ledger=path, cautious=cautious)
    take_steps(model, optimizer, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(model), strict=True))
    last = rows(path)[-1]
    assert decay.scores.get(last["module"]) == last["score"]


def test_a_replay_with_means_gives_each_module_its_mean_from_the_first_step_on(tmp_path):
    path = tmp_path / "decay.jsonl"
    written(path, interval=3)
    multipliers = {}
    for row in rows(path):
        multipliers.setdefault(row["module"], []).append(row["multiplier"])
    seen = []
    model, optimizer, _ = setup(
        alphadecay.Replay, ledger=path, mean=True, on_refresh=lambda decay: seen.append((decay.step, decay.multipliers))
    )
    take_steps(model, optimizer, STEPS)
    assert seen == [(0, {name: pytest.approx(sum(each) / 3) for name, each in multipliers.items()})]


def test_means_are_over_time_not_over_lines():
    ledger = {0: {"a": {"multiplier": 1.0}}, 10: {"a": {"multiplier": 2.0}}, 40: {"a": {"multiplier": 3.0}}}
    assert means_over_time(ledger)["a"] == pytest.approx(float(Fraction(1 * 10 + 2 * 30 + 3 * 30, 70)))
    assert means_over_time({0: {"a": {"multiplier": 1.5}}}) == {"a": 1.5}


def test_beyond_its_end_a_ledger_holds(tmp_path):
    path = tmp_path / "decay.jsonl"
    written(path, interval=2)
    last = {row["module"]: row["multiplier"] for row in rows(path)[-6:]}
    model, optimizer, decay = setup(alphadecay.Replay, ledger=path)
    take_steps(model, optimizer, STEPS + 5)
    assert decay.multipliers == last


GOOD = {"step": 0, "module": "blocks.0.proj", "multiplier": 1.0}
BROKEN = {
    "empty": ("", "is empty"),
    "not JSON": ("{]\n", "line 1: not JSON"),
    "a list": ("[1]\n", "line 1: not a row of a decay log: it has no step"),
    "no multiplier": (
        json.dumps(GOOD | {"multiplier": None}) + "\n",
        "line 1: not a row of a decay log: it has no multiplier",
    ),
    "below 0": (json.dumps(GOOD | {"multiplier": -1}) + "\n", "line 1: multiplier -1 at step 0 is impossible"),
    "nan": (json.dumps(GOOD | {"multiplier": float("nan")}) + "\n", "line 1: multiplier nan at step 0 is impossible"),
    "late": (json.dumps(GOOD | {"step": 5}) + "\n", "begins at step 5, not at 0"),
    "other kind": (json.dumps(GOOD | {"kind": "adadecay per entry"}) + "\n", "which a decay log cannot hold"),
    "too few modules": (json.dumps(GOOD) + "\n", "another model or selection: it has no row for blocks.0.fc1"),
    "binary": (b"\xff\xfe\x00", "can't decode"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_ledger_that_cannot_be_replayed_is_one_line_and_leaves_the_optimizer_alone(name, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / "decay.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    model = block_model()
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1))
    with pytest.raises(ValueError) as raised:
        alphadecay.Replay(model, optimizer, path)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)
    before = [group["weight_decay"] for group in optimizer.param_groups]
    take_steps(model, optimizer, 1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == before  # no hook is left


def test_modules_of_another_model_are_named(tmp_path):
    path = tmp_path / "decay.jsonl"
    written(path, depth=3)
    with pytest.raises(ValueError, match=r"it has rows for blocks\.2\.fc1, which is not adapted here"):
        setup(alphadecay.Replay, ledger=path)
    assert list(read_decay_log(path)) == [0]


@pytest.mark.slow
def test_the_trainer_replays_a_run_to_the_same_bits(tmp_path, monkeypatch):
    first, again = tmp_path / "first", tmp_path / "again"
    assert run(*TINY, "--output_dir", first, monkeypatch=monkeypatch) == 0
    words = [*TINY, "--decay", "replay", "--decay_ledger", first / "decay.jsonl", "--output_dir", again]
    assert run(*words, monkeypatch=monkeypatch) == 0
    checkpoints = [find_checkpoint(folder)[0] for folder in (first, again)]
    for of in ("model_weights", "ema_weights"):
        ours, theirs = (getattr(checkpoint, of)() for checkpoint in checkpoints)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
    assert [r["weight_decay"] for r in rows(first / "decay.jsonl")] == [
        r["weight_decay"] for r in rows(again / "decay.jsonl")
    ]
    assert {r["kind"] for r in rows(again / "decay.jsonl")} == {"replay"}
