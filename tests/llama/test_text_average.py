"""The moving average of a language model's weights follows the steps that were taken, and is evaluated beside them."""

import json

import pytest
import torch
from test_text_finite import poison
from texts import ALONE, write_c4
from tiny import rows
from tiny_text import TINY_TEXT, changed_config, printed, run_text, task_of

from llama.engine import RAW_METRICS, evaluate
from runtime.checkpoints import Checkpoint, find_checkpoint
from runtime.self_test import differences

DECAY = 0.5
AVERAGE = ["--model_ema", "--model_ema_decay", str(DECAY)]
EACH_STEP = ["--checkpoint_every", "1", "--save_ckpt_num", "9", "--total_batch_size", "8", "--model_ema_eval"]


def initial_weights(*words):
    task, _ = task_of(*words, alone=ALONE)
    task.stream.close()
    return {name: value.double() for name, value in task.learner.plain.state_dict().items()}


def checkpoints(folder):
    paths = (path for path in folder.glob("checkpoints/step_*"))
    return sorted((Checkpoint(path, int(path.name[5:])) for path in paths), key=lambda each: each.step)


def check_followed(folder, words, still=()):
    """The EMA weights of all checkpoints are the slow twin's, which leaves out the steps `still`."""
    twin, steps = initial_weights(*words), []
    for checkpoint in checkpoints(folder):
        steps.append(checkpoint.step)
        if checkpoint.step not in still:
            twin = {k: DECAY * twin[k] + (1 - DECAY) * v.double() for k, v in checkpoint.model_weights().items()}
        found = checkpoint.ema_weights()
        assert found.keys() == twin.keys()
        for name, value in found.items():
            torch.testing.assert_close(value.double(), twin[name], rtol=1e-5, atol=1e-7)
    assert steps == list(range(1, len(steps) + 1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average") / "run"
    assert run_text(*TINY_TEXT, *AVERAGE, *EACH_STEP, "--output_dir", folder) == 0
    return folder


def test_the_average_of_each_step_is_the_slow_twins_from_the_initial_weights(finished):
    assert len(checkpoints(finished)) == 6
    check_followed(finished, TINY_TEXT)


def test_raw_and_averaged_figures_stand_side_by_side(finished):
    task, _ = task_of(*TINY_TEXT, *AVERAGE, alone=ALONE)
    log = rows(finished / "log.jsonl")
    for row in log:
        checkpoint = find_checkpoint(finished / "checkpoints" / f"step_{row['step']:08d}")[0]
        task.learner.averaged.load_state_dict(checkpoint.ema_weights())
        expected = evaluate(task.learner.averaged, task.validation, ALONE, task.loss)
        for metric in RAW_METRICS:
            assert row[f"{metric.name}_ema"] == expected[metric.name] != row[metric.name]
    task.stream.close()
    summary = json.loads((finished / "summary.json").read_text())
    best = min(log, key=lambda row: row["loss_ema"])
    assert summary["best_loss_ema"] == best["loss_ema"] and summary["best_loss_ema_step"] == best["step"]
    assert find_checkpoint(finished / "checkpoints" / "best_ema")[0].step == best["step"]
    assert all(summary[name] == log[-1][name] for name in ("loss", "loss_ema", "perplexity", "perplexity_ema"))


def test_evaluating_a_run_gives_both(finished, capsys):
    assert run_text("--eval", "--resume", finished) == 0
    said, last = capsys.readouterr().out, rows(finished / "log.jsonl")[-1]
    for label, suffix in (("raw", ""), ("EMA", "_ema")):
        assert printed(said, label)[0] == pytest.approx(last[f"perplexity{suffix}"], rel=1e-3)
    figures = json.loads((finished / "evaluation.json").read_text())["figures"]
    assert figures["loss_ema"] == pytest.approx(last["loss_ema"], rel=1e-6)


def test_keeping_an_average_changes_nothing_else(finished, tmp_path):
    words = [word for word in EACH_STEP if word != "--model_ema_eval"]
    assert run_text(*TINY_TEXT, *words, "--output_dir", tmp_path / "run") == 0
    different = differences(tmp_path / "run", finished)
    assert set(different) == {"EMA weights", "counts and best metrics", "log.jsonl"}
    ours, theirs = (rows(folder / "log.jsonl")[-1] for folder in (finished, tmp_path / "run"))
    assert all(ours[name] == theirs[name] for name in ("loss", "train_loss", "perplexity", "tokens_seen"))


def test_a_step_that_is_skipped_does_not_move_it(tmp_path, monkeypatch):
    poison(monkeypatch)
    text = ["--dataset", "c4", "--tokenizer", "bytes", "--data_path", write_c4(tmp_path / "c4"), "--no-pack"]
    words = [*TINY_TEXT, *text, *AVERAGE, *EACH_STEP, "--on_nonfinite", "skip", "--output_dir", tmp_path / "run"]
    assert run_text(*words) == 0
    assert rows(tmp_path / "run" / "log.jsonl")[-1]["bad_steps"] == 1
    check_followed(tmp_path / "run", [*TINY_TEXT, *text], still={4})


GPT2 = {
    "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "hidden_size": ...,
    "num_hidden_layers": ..., "num_attention_heads": ..., "pad_token_id": ...,
}  # fmt: skip
KINDS = {
    "tied": ({"tie_word_embeddings": True}, []),
    "split projections": (GPT2, ["--split_qkv"]),
    "bfloat16 weights": ({}, ["--pure_bf16"]),
    "chunked": ({}, ["--chunked_loss", "--activation_checkpointing", "--total_batch_size", "8"]),
}


@pytest.mark.parametrize(("config", "words"), KINDS.values(), ids=KINDS)
def test_any_model_has_an_average(tmp_path, config, words):
    words = [*TINY_TEXT, "--model_config", changed_config(tmp_path / "config", **config), *words]
    assert run_text(*words, *AVERAGE, *EACH_STEP, "--max_steps", "3", "--output_dir", tmp_path / "run") == 0
    check_followed(tmp_path / "run", words)
    row = rows(tmp_path / "run" / "log.jsonl")[-1]
    assert row["loss_ema"] != row["loss"]  # a copy that calls the trained model's weights has the same


def test_an_average_begins_with_the_weights_of_the_checkpoint_that_has_none(tmp_path):
    words = [*TINY_TEXT, "--checkpoint_every", "1", "--output_dir", tmp_path / "run"]
    assert run_text(*words, "--max_steps", "3") == 0
    more = [*AVERAGE, "--resume", "auto", "--allow_changed", "ema", "--max_steps", "4"]
    assert run_text(*words, *more) == 0
    before, after = (each.model_weights() for each in checkpoints(tmp_path / "run")[-2:])
    for name, value in checkpoints(tmp_path / "run")[-1].ema_weights().items():
        torch.testing.assert_close(value, DECAY * before[name] + (1 - DECAY) * after[name], rtol=1e-5, atol=1e-7)


def test_an_average_that_does_not_exist_cannot_be_evaluated(tmp_path, capsys):
    assert run_text(*TINY_TEXT, "--model_ema_eval", "--output_dir", tmp_path / "run") == 2
    assert "--model_ema_eval true: there is no average to evaluate without --model_ema" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
