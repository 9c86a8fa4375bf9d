"""Checkpoints of which each process writes its part: exact to resume, readable by any number, and they run no code."""

import io
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from forked import forked
from texts import write_c4
from tiny import rows
from tiny_text import TINY_TEXT, printed, run_text
from torch.distributed.fsdp import fully_shard

import alphadecay
from alphadecay.command.sources import BadInput, read_source
from runtime.checkpoints import find_checkpoint, recover, remove_old
from runtime.errors import UserError
from runtime.processes import Ranks
from runtime.self_test import differences
from runtime.sharded_checkpoints import MODEL_PREFIX, ShardWriter, _Metadata, read_shards, read_whole, weights_of

RUN = "--max_length 48 --total_batch_size 8 --batch_size 2 --clip_grad 1 --max_steps 4 --eval_every 2 --log_interval 1"
RUN += " --model_ema --model_ema_decay 0.7 --model_ema_eval"
SHARDS = [*RUN.split(), "--fsdp", "--sharded_checkpoints"]


def launched(*words, ranks=2):
    done = forked(ranks, *words, program="main_llama.py", timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    data = write_c4(tmp_path_factory.mktemp("text") / "c4", shards=2)
    return [*TINY_TEXT, "--dataset", "c4", "--tokenizer", "bytes", "--data_path", data]


@pytest.fixture(scope="module")
def in_shards(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "run"
    launched(*words, *SHARDS, "--output_dir", folder)
    return folder


@pytest.mark.slow
def test_the_parts_are_the_whole(words, in_shards, tmp_path):
    launched(*words, *[each for each in SHARDS if each != "--sharded_checkpoints"], "--output_dir", tmp_path / "whole")
    checkpoint, _ = find_checkpoint(in_shards)
    assert sorted(path.name for path in checkpoint.path.iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "training_state.pt",
    ]  # fmt: skip
    assert differences(tmp_path / "whole", in_shards) == {}


@pytest.mark.slow
def test_a_run_resumes_bitwise_from_its_parts(words, in_shards, tmp_path):
    folder = tmp_path / "run"
    launched(*words, *SHARDS, "--max_steps", "3", "--output_dir", folder)
    launched(*words, *SHARDS, "--resume", "auto", "--output_dir", folder)
    assert differences(in_shards, folder) == {}


@pytest.mark.slow
def test_any_number_of_processes_evaluates_the_parts(in_shards, capsys):
    assert run_text("--eval", "--resume", in_shards) == 0
    alone, together = capsys.readouterr().out, launched("--eval", "--resume", in_shards, ranks=3).stdout
    for weights, name in (("raw", "loss"), ("EMA", "loss_ema")):
        ours, theirs = printed(alone, weights), printed(together, weights)
        assert ours[0] == theirs[0] and ours[2:] == theirs[2:]  # the published perplexity differs
        assert float(f"{rows(in_shards / 'log.jsonl')[-1][name]:.4g}") == ours[2]


@pytest.mark.slow
def test_any_number_of_processes_reads_the_parts_of_four(words, tmp_path, capsys):
    folder, exported = tmp_path / "run", tmp_path / "exported"
    launched(*words, *SHARDS, "--max_steps", "1", "--output_dir", folder, ranks=4)
    assert len(list(find_checkpoint(folder)[0].path.glob("__*.distcp"))) == 4
    assert run_text("--eval", "--resume", folder, "--export_hf", exported) == 0
    alone, *together = (printed(said, "raw") for said in (
        capsys.readouterr().out,
        launched(*words, *RUN.split(), "--eval", "--init_from", exported, ranks=2).stdout,
        launched("--eval", "--resume", folder, ranks=3).stdout,
    ))  # fmt: skip
    for each in together:
        assert alone[0] == each[0] and alone[2:4] == each[2:4]  # the published perplexity differs
    assert float(f"{rows(folder / 'log.jsonl')[-1]['loss']:.4g}") == alone[2]


@pytest.mark.slow
def test_a_part_that_is_broken_is_named(in_shards, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(in_shards, folder, symlinks=True)
    newest = find_checkpoint(folder)[0].path
    (newest / "__1_0.distcp").write_bytes(b"no shard")
    assert run_text("--eval", "--resume", newest) == 2
    assert "__1_0.distcp is broken: its SHA-256 differs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_analysis_command_says_how_to_read_the_parts(in_shards, capsys):
    with pytest.raises(BadInput, match="each process wrote its part of this checkpoint; analyze what .* --export_hf"):
        read_source(str(in_shards), pretrained=False, ema=False, seed=0)


class Code:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("held", [Code(), [Code()], torch.nn.Linear, io.StringIO])
def test_metadata_runs_no_code(tmp_path, capsys, held):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(held))
    with pytest.raises(UserError, match=r"\.metadata cannot be read: it holds .*; refused"):
        read_whole(tmp_path, "")
    assert "code ran" not in capsys.readouterr().out


def test_a_dotted_name_reaches_no_module():
    """Protocol 4 looks up a name with full stops piece by piece, and torch's module of descriptions imports os."""
    module = b"torch.distributed.checkpoint.metadata"
    hostile = b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x09os.system\x93."
    with pytest.raises(pickle.UnpicklingError, match="it holds .*os.system"):
        _Metadata(io.BytesIO(hostile)).load()


@pytest.mark.slow
@pytest.mark.parametrize("hits", [3, pytest.param(20, marks=pytest.mark.proof)])
def test_killed_at_any_moment_of_writing_its_parts_it_ends_with_the_same_bits(hits):
    options = ["--program", "main_llama.py", "--sharded", "--phases", "writing", "--processes", "2", "--hits", hits]
    done = forked(1, *options, program="tests/faults.py", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{hits} x SIGKILL" in done.stdout and "the same bits as the run that was left alone" in done.stdout


PARTS = ["manifest.json", "training_state.pt", "__0_0.distcp", "__1_0.distcp", ".metadata"]


@pytest.mark.parametrize("removed", range(len(PARTS)))
def test_a_checkpoint_in_parts_whose_removal_was_interrupted_is_removed_the_next_time(tmp_path, monkeypatch, removed):
    folder = tmp_path / "step_00000002"
    folder.mkdir()
    for name in PARTS:
        (folder / name).write_text("part")
    with monkeypatch.context() as inner:
        unlink, done = Path.unlink, []

        def killed(self, missing_ok=False):
            if len(done) == removed:
                raise KeyboardInterrupt
            if self.exists():
                done.append(self.name)
            unlink(self, missing_ok)

        inner.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_old(tmp_path, keep=0)
    assert sorted(PARTS) == sorted([*os.listdir(folder), *done]) and len(done) == removed
    remove_old(tmp_path, keep=0)
    assert not folder.exists()


@pytest.mark.parametrize("written", range(len(PARTS) + 2))
def test_what_a_crash_left_of_parts_is_no_checkpoint_and_is_removed(tmp_path, written):
    left = tmp_path / "checkpoints" / ".step_00000002.tmp"
    left.mkdir(parents=True)
    for name in ["__1_0.distcp", "__0_0.distcp", ".metadata.tmp", ".metadata", "training_state.pt", "manifest.json"][
        :written
    ]:
        (left / name).write_text("part")
    with pytest.raises(UserError, match="is neither a checkpoint nor a run folder with checkpoints"):
        find_checkpoint(tmp_path)
    recover(tmp_path / "checkpoints")
    assert not left.exists()


def test_parts_need_shards(capsys, tmp_path):
    assert run_text(*TINY_TEXT, "--sharded_checkpoints", "--output_dir", tmp_path / "run") == 2
    assert "--sharded_checkpoints true: needs --fsdp true" in capsys.readouterr().err


@pytest.fixture
def alone(tmp_path):
    """A process group of one, in which shards are written as by many."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield Ranks(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_split_projections_are_read_from_parts(alone, tmp_path, kind):
    """Their fused weight in a state dict is a copy, so that reading into it is not enough."""
    made = {"Linear": lambda: torch.nn.Linear(8, 24), "Conv1D": lambda: transformers.Conv1D(24, 8)}[kind]
    saved, read = (
        torch.nn.Sequential(OrderedDict(attn=torch.nn.Sequential(OrderedDict(c_attn=made())))) for _ in range(2)
    )
    for model in (saved, read):
        fully_shard(alphadecay.split_qkv(model))
    writer = ShardWriter(alone)
    writer.save(tmp_path / "parts", weights_of({MODEL_PREFIX: saved}), lambda _: None)
    writer.wait()
    read_shards(tmp_path / "parts", {MODEL_PREFIX: read}, {}, None)
    for found, expected in zip(read.parameters(), saved.parameters(), strict=True):
        assert torch.equal(found.full_tensor(), expected.full_tensor())


def test_parts_that_cannot_be_written_or_read_are_said_in_one_line(alone, tmp_path):
    writer, tensors, hashes = ShardWriter(alone), {"model.a": torch.ones(3)}, []
    writer.save(tmp_path / "parts", tensors, hashes.append)
    writer.wait()
    assert set(hashes[0]) == {"__0_0.distcp"} and torch.equal(
        read_whole(tmp_path / "parts", "")["model.a"], torch.ones(3)
    )
    (tmp_path / "file").write_text("no folder")
    writer.save(tmp_path / "file" / "parts", tensors, hashes.append)
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*parts: .*[Nn]ot a directory.*$") as refused:
        writer.wait()
    assert "\n" not in str(refused.value) and len(hashes) == 1
    (tmp_path / "parts" / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"parts cannot be read: .*No such file or directory.*$"):
        read_whole(tmp_path / "parts", "")
