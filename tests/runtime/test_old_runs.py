"""Runs that commit 390ccd1 wrote go on, and their decay logs replay.

`old_runs/` holds each run's folder up to a checkpoint halfway, and the rows that it wrote behind it. The command is in
its config.json; torch 2.14.1, timm 1.0.31, one CPU thread.
"""

import json
import shutil
from pathlib import Path

import pytest
from tiny import run
from tiny_text import run_text

OLD = Path(__file__).parent / "old_runs"
MACHINE = ("--allow_changed", "libraries", "machine", "threads")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def old(tmp_path):
    """A copy of an old run by name."""
    return lambda name: Path(shutil.copytree(OLD / name, tmp_path / name))


def goes_on(folder: Path) -> list[str]:
    """Words that let it go on as it was begun."""
    return ["--config", str(folder / "config.json"), "--output_dir", str(folder), "--resume", "auto", *MACHINE]


def test_an_old_vision_run_goes_on_to_the_figures_it_had(old, monkeypatch):
    folder = old("vision")
    before, decays = rows(folder / "log.jsonl"), rows(folder / "decay.jsonl")
    assert run(*goes_on(folder), monkeypatch=monkeypatch) == 0
    after = rows(folder / "log.jsonl")
    assert [row["step"] for row in after] == [row["step"] for row in before] == [5, 10] and after[0] == before[0]
    for name in ("train_loss", "loss", "loss_ema", "weight_decay_mean", "weight_norm"):
        assert after[1][name] == pytest.approx(before[1][name], rel=1e-3)
    again = rows(folder / "decay.jsonl")
    assert [(row["step"], row["module"]) for row in again] == [(row["step"], row["module"]) for row in decays]
    assert [row["multiplier"] for row in again] == pytest.approx([row["multiplier"] for row in decays], rel=1e-2)


def test_an_old_vision_run_is_evaluated_to_the_figures_it_had(old, monkeypatch, tmp_path):
    folder, results = old("vision"), tmp_path / "evaluation.json"
    words = ["--config", folder / "config.json", "--output_dir", folder, "--results_file", results]
    assert run(*words, "--eval", "--resume", "auto", monkeypatch=monkeypatch) == 0
    figures, logged = json.loads(results.read_text())["figures"], rows(folder / "log.jsonl")[0]
    assert {name: logged[name] for name in figures} == pytest.approx(figures, rel=1e-4)


def test_an_old_language_run_goes_on(old):
    folder = old("language")
    before = rows(folder / "log.jsonl")
    assert run_text(*goes_on(folder), "data") == 0  # the text is the source of this Python's library
    after = rows(folder / "log.jsonl")
    assert [row["step"] for row in after] == [3, 6] and after[0] == before[0]
    assert after[1]["loss"] == pytest.approx(before[1]["loss"], rel=0.05)
    assert after[1]["tokens_seen"] == before[1]["tokens_seen"]


def test_an_old_decay_log_replays(old, monkeypatch, tmp_path):
    folder, out = old("vision"), tmp_path / "replayed"
    words = ["--config", folder / "config.json", "--output_dir", out, "--decay", "replay"]
    assert run(*words, "--decay_ledger", folder / "decay.jsonl", monkeypatch=monkeypatch) == 0

    def decays(path):
        return [(row["step"], row["module"], row["weight_decay"]) for row in rows(path / "decay.jsonl")]

    assert decays(out) == decays(folder)
