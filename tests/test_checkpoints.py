"""Checkpoints are whole or absent, verified when read, and run no code."""

import json
import os
import pickle

import pytest
import torch

from runtime.checkpoints import find_checkpoint, link, remove_old, save_checkpoint, sha256
from runtime.errors import UserError

WEIGHTS = {"a": torch.randn(3, 4), "b": torch.arange(5)}


def save(folder, step, ema=None):
    return save_checkpoint(folder / "checkpoints", step, WEIGHTS, ema, {"step": step, "optimizer": {"x": WEIGHTS["a"]}})


def test_what_is_saved_is_what_is_loaded(tmp_path):
    save(tmp_path, 120, ema=WEIGHTS)
    found = find_checkpoint(tmp_path)
    assert (found.step, found.path.name) == (120, "step_00000120")
    for weights in (found.model_weights(), found.ema_weights()):
        assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert torch.equal(found.training_state()["optimizer"]["x"], WEIGHTS["a"])


def test_weights_that_share_memory_are_saved(tmp_path):
    tied = {"a": WEIGHTS["a"], "b": WEIGHTS["a"], "c": WEIGHTS["a"].T}
    save_checkpoint(tmp_path, 1, tied, None, {})
    assert torch.equal(find_checkpoint(tmp_path / "step_00000001").model_weights()["c"], WEIGHTS["a"].T)


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "deleted"])
def test_a_broken_checkpoint_is_passed_over_for_the_newest_whole_one(tmp_path, name, damage):
    save(tmp_path, 1)
    file = save(tmp_path, 2).path / name
    data = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.write_bytes(data.replace(data[40:50], b"0123456789"))
    assert find_checkpoint(tmp_path).step == 1


def test_if_none_is_whole_each_is_named(tmp_path):
    (save(tmp_path, 1).path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"step_00000001/model.safetensors is broken"):
        find_checkpoint(tmp_path)


def test_an_unfinished_checkpoint_is_none(tmp_path):
    os.rename(save(tmp_path, 1).path, tmp_path / "checkpoints" / ".step_00000001.tmp")
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(tmp_path)


class Malicious:
    def __reduce__(self):
        return print, ("this must never run",)


def pickled(value, file):
    pickle.dump(value, file, protocol=2)  # the protocol torch.load expects


@pytest.mark.parametrize("dump", [pickled, torch.save], ids=["pickle", "torch"])
def test_a_checkpoint_can_run_no_code(tmp_path, dump, capsys):
    path = save(tmp_path, 1).path
    with open(path / "training_state.pt", "wb") as file:
        dump(Malicious(), file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training_state.pt"] = sha256(path / "training_state.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"training_state.pt holds more than plain values and tensors"):
        find_checkpoint(path).training_state()
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint .*file"):
        save_checkpoint(tmp_path / "file", 1, WEIGHTS, None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_newest_and_the_linked_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = [save(tmp_path, step) for step in range(1, 7)]
    link(folder, "best", saved[0])
    link(folder, "best_ema", saved[1])
    link(folder, "best_ema", saved[2])
    remove_old(folder, keep=2)
    assert sorted(p.name[-1] for p in folder.glob("step_*")) == ["1", "3", "5", "6"]
    assert find_checkpoint(folder / "best").step == 1 and find_checkpoint(folder / "best_ema").step == 3
