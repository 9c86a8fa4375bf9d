"""Without a terminal: plain lines, one at the start, one for each evaluation; an evaluation leaves a file."""

import json
import re

import pytest
from test_run_folder import everything
from tiny import TINY, run
from tiny_text import TINY_TEXT, run_text

from runtime.tables import PlainProgress


def test_plain_lines_say_what_is_trained_and_each_evaluation(tmp_path, monkeypatch, capsys):
    assert run(*TINY, "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    first = said.out.splitlines()[0]
    assert re.fullmatch(
        r"training vit_tiny_patch16_224 \([\d,]+ parameters\) on digits; cpu, float32; writes to .*", first
    )
    assert "\r" not in said.err and len(said.err.splitlines()) == 3
    evaluations = [
        line for line in said.err.splitlines() if re.search(r"img/s, \d:\d\d:\d\d left; step \d+, acc1 ", line)
    ]
    assert len(evaluations) == 2 and "1,200 of 2,400 img" in evaluations[0]


def test_text_runs_say_it_too(tmp_path, capsys):
    assert run_text(*TINY_TEXT, "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr()
    assert "parameters) on stdlib; cpu, float32; writes to" in said.out and "; step 3, perplexity " in said.err


def test_between_evaluations_there_is_a_line_a_minute(monkeypatch, capsys):
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr("runtime.tables.time.monotonic", lambda: float(next(now)))
    with PlainProgress(1000, 100, "img", "training") as bar:
        for _ in range(20):
            bar.set_postfix(loss="1.5")
            bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5 and lines[0].startswith("training: ") and "img/s" in lines[0] and "loss 1.5" in lines[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*TINY, "--output_dir", folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    return folder


def test_an_evaluation_writes_where_it_is_told_and_replaces_only_its_own(stopped, tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    words = ["--eval", "--resume", stopped, "--results_file", path]
    for _ in range(2):
        assert run(*words, monkeypatch=monkeypatch) == 0
    content = json.loads(path.read_text())
    assert content["step"] == 2 and {"acc1", "acc5", "loss", "acc1_ema"} <= set(content["figures"])
    assert content["options"]["model"] == "vit_tiny_patch16_224" and content["environment"]["command"][0] == "main.py"
    assert len(content["weights_sha256"]) == 2 and not (stopped / "evaluation.json").exists()
    for text in ("{}", "mine"):
        path.write_text(text)
        before = everything(tmp_path)
        assert run(*words, monkeypatch=monkeypatch) == 2 and everything(tmp_path) == before
    assert capsys.readouterr().err.count("error: ") == 2
    assert run("--eval", "--resume", stopped, "--results_file", tmp_path / "no" / "x", monkeypatch=monkeypatch) == 2
