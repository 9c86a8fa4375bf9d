"""A loss of text that is not finite is traced to a module and to documents."""

import math

import pytest
import torch
from texts import write_c4
from tiny import rows
from tiny_text import TINY_TEXT, run_text

import llama.engine
from llama.stream import TextStream
from runtime.self_test import differences

BAD_ROW = 2


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A run whose token 7 of one document breaks the second micro-batch of optimizer step 3."""
    data = write_c4(tmp_path / "c4")
    poison(monkeypatch)
    text = ["--dataset", "c4", "--tokenizer", "bytes", "--data_path", data, "--no-pack", "--total_batch_size", "8"]
    return [*TINY_TEXT, *text, "--log_interval", "1"]


def poison(monkeypatch):
    """A token that no text has stands in the batch, and the embedding makes no number of it."""
    real, lookup = TextStream._batch, torch.nn.functional.embedding

    def batch(self, sequences):
        made = real(self, sequences)
        if sequences is self._last[-1] and self.batches == 3 * 2 + 2 or getattr(self, "poisoned", None) is sequences:
            self.poisoned = sequences
            made["input_ids"][BAD_ROW, 7] = 259
        return made

    def embedding(ids, weight, *rest, **named):
        found = lookup(ids, weight, *rest, **named)
        return torch.where((ids == 259)[..., None], math.nan, found)

    monkeypatch.setattr(TextStream, "_batch", batch)
    monkeypatch.setattr("torch.nn.functional.embedding", embedding)


def test_stopping_names_module_and_document(words, tmp_path, capsys):
    assert run_text(*words, "--output_dir", tmp_path / "run") == 3
    ((found,),) = [row["ranks"] for row in rows(tmp_path / "run" / "bad_steps.jsonl")]
    assert found["module"] == "model.embed_tokens" and found["suspects"] == [found["samples"][1][BAD_ROW]]
    assert len(found["samples"]) == 2 and len(found["samples"][0]) == 4
    (suspect,) = found["suspects"]
    assert suspect.startswith("c4-train.0000")
    said = f"at optimizer step 3: first in the output of model.embed_tokens, sample {suspect}"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_going_on_is_counted_and_resumes_exactly(words, tmp_path, capsys, policy):
    words += ["--on_nonfinite", policy, "--output_dir"]
    assert run_text(*words, tmp_path / "whole") == 0
    assert "warning: loss or gradient not finite at optimizer step 3" in capsys.readouterr().out
    assert [row["bad_steps"] for row in rows(tmp_path / "whole" / "log.jsonl")] == [0, 1]
    for more in (["--max_steps", "2"], ["--resume", "auto", "--max_steps", "4"], ["--resume", "auto"]):
        assert run_text(*words, tmp_path / "parts", *more) == 0
    assert policy == "rollback" or differences(tmp_path / "whole", tmp_path / "parts") == {}


def test_a_validation_loss_that_is_not_finite_is_not_logged(tmp_path, monkeypatch, capsys):
    real = llama.engine.loss_sum
    broken = lambda *words: real(*words) * (1 if torch.is_grad_enabled() else math.nan)  # noqa: E731
    monkeypatch.setattr("llama.engine.loss_sum", broken)
    assert run_text(*TINY_TEXT, "--eval_every", "1", "--output_dir", tmp_path / "run") == 3
    assert (
        "stopped: the validation loss is nan" in capsys.readouterr().err
        and not (tmp_path / "run" / "log.jsonl").exists()
    )
