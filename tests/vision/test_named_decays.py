"""--decay_multiplier, --decay_only and --freeze through main.py."""

import pytest
import torch
from tiny import TINY, rows, run

import main as program
from runtime.checkpoints import find_checkpoint
from runtime.processes import Ranks

BY_NAME = ["--freeze", "patch_embed.*", "*.attn.q.weight", "--split_qkv", "--decay_multiplier", "*.mlp.*=0.5"]
BY_NAME += ["head.*=0", "--decay_only", "attn", "norm"]


def task_of(*words):
    options = program.read_options([str(word) for word in words])
    return program.build_task(options, Ranks(0, 1, torch.device("cpu")))


@pytest.mark.slow
def test_frozen_weights_and_their_average_keep_their_bits_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    words = [*TINY, *BY_NAME, "--output_dir"]
    start = task_of(*words, tmp_path / "run").learner.plain.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    assert run(*words, tmp_path / "run", "--max_steps", "4", monkeypatch=monkeypatch) == 0
    assert run(*words, tmp_path / "part", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert run("--resume", tmp_path / "part", "--max_steps", "4", monkeypatch=monkeypatch) == 0
    ours, theirs = (find_checkpoint(tmp_path / name)[0] for name in ("run", "part"))
    whole, average, resumed = ours.model_weights(), ours.ema_weights(), theirs.model_weights()
    for name, before in start.items():
        assert torch.equal(resumed[name], whole[name])
        if name.endswith("attn.qkv.weight"):
            width = len(before) // 3
            assert torch.equal(whole[name][:width], before[:width]) and torch.equal(
                average[name][:width], before[:width]
            )
            assert not torch.equal(whole[name][width:], before[width:])
        else:
            assert torch.equal(whole[name], before) == name.startswith("patch_embed."), name
            assert torch.equal(average[name], before) == name.startswith("patch_embed."), name
    names = {row["module"] for row in rows(tmp_path / "run" / "decay.jsonl")}
    assert "blocks.0.attn.k" in names and "blocks.0.attn.q" not in names


def test_layer_decay_splits_groups_of_names_and_keeps_their_decay(tmp_path):
    task = task_of(*TINY, "--layer_decay", "0.8", "--decay_multiplier", "*.mlp.*=0.5", "--output_dir", tmp_path)
    statics = {g["decay_name"]: g["static_multiplier"] for g in task.learner.optimizer.param_groups}
    assert statics["blocks.0.mlp.fc1"] == 0.5 == statics["(other, x0.5, layer 1)"]
    task.decay.refresh()
    for group in task.learner.optimizer.param_groups:
        assert group["weight_decay"] == 0.05 * group["static_multiplier"] * group["decay_multiplier"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze", "blocks.*.atn.*"], "error: --freeze blocks.*.atn.*: matches no parameter (did you mean attn?)"),
        (["--freeze", "*"], "error: --freeze *: matches every parameter, so none would be trained"),
        (["--decay_only", "gamma"], "error: --decay_only gamma: occurs in no name of a parameter"),
        (["--decay_multiplier", "norm=1"], "error: --decay_multiplier norm=1: matches no parameter (did you mean"),
    ],
)  # fmt: skip
def test_a_name_that_matches_nothing_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    assert run(*TINY, *words, "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
