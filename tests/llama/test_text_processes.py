"""Language runs in several processes, started by torchrun: the published command, shards, uneven text."""

import json
import shlex

import pytest
import torch
from forked import forked
from test_text_run import PUBLISHED
from texts import paragraphs, save_tokenizer, write_c4, write_shard
from tiny import rows
from tiny_text import TINY_TEXT, changed_config, printed, run_text

from runtime.checkpoints import find_checkpoint


def launched(*words, timeout=200):
    return forked(2, *words, program="main_llama.py", timeout=timeout)


@pytest.mark.slow
def test_the_published_command_trains_in_two_processes_as_printed(tmp_path):
    output, config = tmp_path / "run", changed_config(tmp_path / "model", vocab_size=400)
    # A small model and batches; all else is as printed.
    small = ["--model_config", config, "--batch_size", "4", "--total_batch_size", "16", "--max_length", "64"]
    small += ["--data_path", write_c4(tmp_path / "c4"), "--tokenizer", save_tokenizer(tmp_path / "tokenizer")]
    done = launched(*shlex.split(PUBLISHED), *small, "--max_steps", "3", "--output_dir", output)
    assert done.returncode == 0, done.stderr[-3000:]
    ledger = rows(output / "decay.jsonl")
    assert {row["step"] for row in ledger} == {0} and len(ledger) == 14
    decays = [row["weight_decay"] / 1e-5 for row in ledger]
    assert min(decays) == pytest.approx(0.6666) and max(decays) == pytest.approx(3)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["step"] == 3 and summary["tokens_seen"] == 3 * 16 * 64 and "perplexity_published" in summary


SHARDED = {"DDP": "", "FSDP": "--fsdp", "FSDP in chunks": "--fsdp --chunked_loss", "DDP in chunks": "--chunked_loss"}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Text whose validation sequences do not divide evenly: one rank has one more batch than the other."""
    folder = tmp_path_factory.mktemp("uneven")
    data = write_c4(folder / "c4", shards=2)
    write_shard(data, "validation", 0, 1, [text[:40] for text in paragraphs()[-9:]])
    words = [*TINY_TEXT, "--dataset", "c4", "--tokenizer", "bytes", "--data_path", data, "--no-pack"]
    words += "--model_ema --model_ema_decay 0.5 --model_ema_eval --train_eval_tokens 200".split()
    return folder, [*words, "--max_length", "48", "--total_batch_size", "8", "--clip_grad", "1", "--batch_size"]


@pytest.fixture(scope="module")
def plain(uneven):
    folder, words = uneven
    assert launched(*words, "2", "--output_dir", folder / "plain").returncode == 0
    return folder / "plain"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SHARDED if kind != "DDP"])
def test_shards_and_chunks_train_as_whole_copies_and_uneven_text_ends(uneven, plain, tmp_path, kind):
    _, words = uneven
    done = launched(*words, "2", *SHARDED[kind].split(), "--output_dir", tmp_path / "run", timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(rows(tmp_path / "run" / "log.jsonl"), rows(plain / "log.jsonl"), strict=True):
        assert ours["eval_tokens"] == theirs["eval_tokens"] and ours["tokens_seen"] == theirs["tokens_seen"]
        for name in ("train_loss", "loss", "perplexity_published", "loss_ema", "bits_per_byte", "train_eval_loss_ema"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    ours, theirs = (find_checkpoint(folder)[0] for folder in (tmp_path / "run", plain))
    for found, expected in (
        (ours.model_weights(), theirs.model_weights()),
        (ours.ema_weights(), theirs.ema_weights()),
    ):
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_copies_of_shards_train_as_whole_copies(uneven, tmp_path):
    _, words = uneven
    logs = []
    for name, more in {"whole": [], "shards": ["--fsdp", "--fsdp_size", "2"]}.items():
        folder = tmp_path / name
        done = forked(4, *words, "1", *more, "--output_dir", folder, "--max_steps", "2", program="main_llama.py")
        assert done.returncode == 0, done.stderr[-3000:]
        logs.append((rows(folder / "log.jsonl"), rows(folder / "decay.jsonl")))
    (ours, decays), (theirs, expected) = logs
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-4)
    assert [row["score"] for row in decays] == pytest.approx([row["score"] for row in expected], rel=1e-4)


@pytest.mark.slow
def test_shards_are_exported_and_evaluated_whole(uneven, tmp_path, capsys):
    _, words = uneven
    more = ["--fsdp", "--max_steps", "1", "--export_hf", tmp_path / "exported", "--output_dir", tmp_path / "run"]
    assert launched(*words, "2", *more).returncode == 0
    assert run_text("--eval", "--resume", tmp_path / "run") == 0
    first = printed(capsys.readouterr().out)
    assert run_text("--eval", *words, "2", "--init_from", tmp_path / "exported") == 0
    assert printed(capsys.readouterr().out) == first


@pytest.mark.slow
def test_fewer_documents_than_processes_are_said_once(tmp_path):
    write_shard(tmp_path / "c4", "train", 0, 1, paragraphs()[:1])
    write_shard(tmp_path / "c4", "validation", 0, 1, paragraphs()[1:3])
    words = [*TINY_TEXT, "--dataset", "c4", "--tokenizer", "bytes", "--data_path", tmp_path / "c4"]
    done = launched(*words, "--output_dir", tmp_path / "run", timeout=120)
    assert done.returncode == 1 and done.stderr.count("no training document for process 1 of 2") == 1
    assert not (tmp_path / "run").exists()
