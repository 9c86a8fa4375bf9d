"""The training loss at an evaluation: over the first tokens of the training text, the same ones in every run."""

import json

import pytest
import torch
from forked import forked
from texts import ALONE, END, read_texts, write_c4
from tiny import rows
from tiny_text import TINY_TEXT, printed, run_text, task_of
from torch import nn

from runtime.checkpoints import find_checkpoint
from runtime.self_test import differences

TOKENS = 300
AVERAGE = ["--model_ema", "--model_ema_decay", "0.5", "--model_ema_eval"]
LENGTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_c4(tmp_path_factory.mktemp("train eval") / "c4", shards=2)


@pytest.fixture(scope="module")
def words(folder):
    return [*TINY_TEXT, "--dataset", "c4", "--tokenizer", "bytes", "--data_path", folder]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    run = tmp_path_factory.mktemp("train eval") / "run"
    assert run_text(*words, *AVERAGE, "--train_eval_tokens", TOKENS, "--output_dir", run) == 0
    return run


def slow_loss(words, folder, weights, most=TOKENS):
    """The mean loss of the first tokens in the order of the files, one sequence after the other."""
    task, _ = task_of(*words, alone=ALONE)
    task.stream.close()
    model, losses = task.learner.plain.eval(), []
    model.load_state_dict(weights)
    tokens = torch.tensor([token for text in read_texts(folder, "train").values() for token in [*text.encode(), END]])
    for ids in tokens[:most].split(LENGTH):
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].double()
        losses += nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()
    return sum(losses) / len(losses)


def test_it_is_the_mean_loss_of_the_first_tokens_of_the_training_text(words, folder, finished):
    for row in rows(finished / "log.jsonl"):
        checkpoint = find_checkpoint(finished / "checkpoints" / f"step_{row['step']:08d}")[0]
        for weights, name in (
            (checkpoint.model_weights(), "train_eval_loss"), (checkpoint.ema_weights(), "train_eval_loss_ema"),
        ):  # fmt: skip
            assert row[name] == pytest.approx(slow_loss(words, folder, weights), rel=1e-6)
        assert row["train_eval_loss"] not in (row["loss"], row["train_loss"])
    summary = json.loads((finished / "summary.json").read_text())
    assert all(summary[name] == row[name] for name in ("train_eval_loss", "train_eval_loss_ema"))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_evaluation_of_the_run_gives_the_same_whatever_the_batch_size(finished, batch_size, capsys):
    assert run_text("--eval", "--resume", finished, "--batch_size", batch_size) == 0
    figures, last = json.loads((finished / "evaluation.json").read_text())["figures"], rows(finished / "log.jsonl")[-1]
    said = capsys.readouterr().out
    for weights, name in (("raw", "train_eval_loss"), ("EMA", "train_eval_loss_ema")):
        assert figures[name] == pytest.approx(last[name], rel=1e-6)
        assert printed(said, weights)[-2] == pytest.approx(last[name], rel=1e-3)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_also_where_they_have_different_numbers_of_sequences(finished):
    last = rows(finished / "log.jsonl")[-1]
    done = forked(3, "--eval", "--resume", finished, program="main_llama.py", timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((finished / "evaluation.json").read_text())["figures"]
    assert figures["train_eval_loss"] == pytest.approx(last["train_eval_loss"], rel=1e-6)


def test_looking_at_it_changes_neither_weights_nor_what_is_trained_on(words, finished, tmp_path):
    assert run_text(*words, *AVERAGE, "--output_dir", tmp_path / "run") == 0
    assert set(differences(tmp_path / "run", finished)) == {"log.jsonl"}
    for ours, theirs in zip(rows(tmp_path / "run" / "log.jsonl"), rows(finished / "log.jsonl"), strict=True):
        assert {name for name in theirs if name not in ours} == {"train_eval_loss", "train_eval_loss_ema"}
        assert ours["train_loss"] == theirs["train_loss"] and ours["loss"] == theirs["loss"]


def test_of_a_shorter_text_all_tokens_count(words, folder, tmp_path):
    run = tmp_path / "run"
    assert run_text(*words, "--train_eval_tokens", 10**6, "--max_steps", 1, "--output_dir", run) == 0
    weights = find_checkpoint(run)[0].model_weights()
    expected = slow_loss(words, folder, weights, most=10**6)
    assert rows(run / "log.jsonl")[-1]["train_eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_resumed_run_keeps_its_tokens(finished, capsys):
    assert run_text("--resume", finished, "--train_eval_tokens", 7) == 2
    assert "1 difference from the checkpoint: train_eval_tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "said"), [
    (1, "--train_eval_tokens 1: none is predicted, as the first of a sequence never is"),
    (-3, "--train_eval_tokens -3: must be at least 0"),
])  # fmt: skip
def test_numbers_that_leave_nothing_to_predict_are_one_line(words, tmp_path, capsys, tokens, said):
    assert run_text(*words, "--train_eval_tokens", tokens, "--output_dir", tmp_path / "run") == 2
    assert capsys.readouterr().err == f"error: {said}\n" and not (tmp_path / "run").exists()
