"""Checkpoints are whole or absent, verified when read, and run no code."""

import json
import os
import pickle

import pytest
import torch
from image_steps import learner

from runtime.checkpoints import Contents, find_checkpoint, link, recover, remove_old, sha256, write_checkpoint
from runtime.errors import UserError
from runtime.learner import restore
from runtime.processes import Ranks
from runtime.runfolder import write_json
from runtime.seeding import random_state, seed_everything

WEIGHTS = {"a": torch.randn(3, 4), "b": torch.arange(5)}


def save(folder, step, ema=None):
    optimizer = {"state": {0: {"x": WEIGHTS["a"]}}, "param_groups": []}
    state = {"step": step, "optimizer": optimizer, "scaler": {}, "random": [{}]}
    return write_checkpoint(folder / "checkpoints", Contents.copied(step, WEIGHTS, ema, state, {}))


def found(path):
    return find_checkpoint(path)[0]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    save(tmp_path, 120, ema=WEIGHTS)
    checkpoint = found(tmp_path)
    assert (checkpoint.step, checkpoint.path.name) == (120, "step_00000120")
    for weights in (checkpoint.model_weights(), checkpoint.ema_weights()):
        assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert torch.equal(checkpoint.training_state()["optimizer"]["state"][0]["x"], WEIGHTS["a"])


def test_weights_that_share_memory_are_saved(tmp_path):
    tied = {"a": WEIGHTS["a"], "b": WEIGHTS["a"], "c": WEIGHTS["a"].T}
    write_checkpoint(tmp_path, Contents.copied(1, tied, None, {}, {}))
    assert torch.equal(found(tmp_path / "step_00000001").model_weights()["c"], WEIGHTS["a"].T)


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
    checkpoint, broken = find_checkpoint(tmp_path)
    assert checkpoint.step == 1 and len(broken) == 1 and f"step_00000002/{name}" in broken[0]


def test_if_none_is_whole_each_is_named(tmp_path):
    (save(tmp_path, 1).path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"step_00000001/model.safetensors is broken"):
        find_checkpoint(tmp_path)


def test_an_unfinished_checkpoint_is_none(tmp_path):
    os.rename(save(tmp_path, 1).path, tmp_path / "checkpoints" / ".step_00000001.tmp")
    with pytest.raises(UserError, match="neither a checkpoint"):
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
        found(path).training_state()
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint .*file/step_00000001"):
        write_checkpoint(tmp_path / "file", Contents.copied(1, WEIGHTS, None, {}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_newest_and_the_linked_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = [save(tmp_path, step) for step in range(1, 7)]
    link(folder, "best", saved[0])
    link(folder, "best_ema", saved[1])
    link(folder, "best_ema", saved[2])
    remove_old(folder, keep=2)
    assert sorted(p.name[-1] for p in folder.glob("step_*")) == ["1", "3", "5", "6"]
    assert found(folder / "best").step == 1 and found(folder / "best_ema").step == 3


def test_contents_do_not_follow_what_training_goes_on_to_do():
    weights, state = {"a": torch.zeros(3)}, {"optimizer": {0: [torch.zeros(2), 1]}, "rows": {"log": 1}}
    contents = Contents.copied(1, weights, weights, state, {})
    weights["a"] += 1
    state["optimizer"][0][0] += 1
    state["rows"]["log"] = 2
    assert contents.model["a"].sum() == 0 and contents.ema["a"].sum() == 0
    assert contents.state["optimizer"][0][0].sum() == 0 and contents.state["rows"] == {"log": 1}


def test_copies_keep_their_strides_for_fused_kernels():
    moments = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert Contents.copied(1, {}, None, {"x": moments}, {}).state["x"].stride() == moments.stride()


@pytest.mark.parametrize("crash", ["before the new one is there", "after it"])
def test_a_crash_while_a_checkpoint_is_replaced_leaves_a_whole_one(tmp_path, crash):
    path = save(tmp_path, 1).path
    os.rename(path, path.with_name(f".{path.name}.old"))
    if crash == "after it":
        save(tmp_path, 1)
    (path.parent / ".step_00000002.tmp").mkdir()
    assert found(tmp_path).step == 1
    recover(path.parent)
    assert [each.name for each in path.parent.iterdir()] == [path.name] and found(tmp_path).step == 1


@pytest.fixture
def on_the_disk(monkeypatch):
    """What was synced and renamed, in this order; names of files and, behind them, where they went."""
    done = []

    def noted(name):
        real = getattr(os, name)

        def call(source, *target):
            path = os.readlink(f"/proc/self/fd/{source}") if name == "fsync" else source
            done.append(" -> ".join([name, *(os.path.basename(each) for each in (path, *target))]))
            return real(source, *target)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        noted(name)
    return done


def test_a_checkpoint_and_its_log_are_on_the_disk_before_it_has_its_name(tmp_path, on_the_disk):
    log = tmp_path / "log.jsonl"
    log.write_text("{}")
    write_checkpoint(tmp_path / "checkpoints", Contents.copied(1, WEIGHTS, WEIGHTS, {}, {}), before_rename=[log])
    renamed = on_the_disk.index("rename -> .step_00000001.tmp -> step_00000001")
    files = ["model.safetensors", "ema.safetensors", "training_state.pt", "manifest.json"]
    assert {f"fsync -> {name}" for name in (*files, ".step_00000001.tmp", "log.jsonl")} <= set(on_the_disk[:renamed])
    assert on_the_disk[renamed + 1 :] == ["fsync -> checkpoints"]


def test_a_json_file_is_on_the_disk_before_it_has_its_name(tmp_path, on_the_disk):
    write_json(tmp_path / "summary.json", {})
    assert on_the_disk == ["fsync -> .summary.json.tmp", "replace -> .summary.json.tmp -> summary.json"]


def test_a_checkpoint_that_cannot_be_replaced_is_still_there(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = os.rename

    def full(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path, 1)
    assert found(tmp_path).step == 1


def test_each_rank_gets_its_own_random_state_back(tmp_path):
    made, states, drawn = learner(), [], []
    for rank in (0, 1):
        seed_everything(5, rank)
        states.append(random_state())
        drawn.append(torch.rand(4))
    state = {"random": states, "optimizer": made.optimizer.state_dict(), "scaler": made.scaler.state_dict()}
    write_checkpoint(tmp_path / "checkpoints", Contents.copied(1, made.plain.state_dict(), None, state, {}))
    for rank in (0, 1):
        restore(made, found(tmp_path), Ranks(rank, 2, torch.device("cpu")))
        assert torch.equal(torch.rand(4), drawn[rank])
