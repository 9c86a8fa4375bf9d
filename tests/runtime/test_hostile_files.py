"""Files that are broken on purpose and absurd values end in one line; nothing runs, hangs or fills the memory."""

import gzip
import json
import math
import os
import shutil

import pytest
import torch
from forked import forked
from photos import class_folders
from safetensors.torch import load_file, save_file
from test_run_folder import everything
from tiny import TINY, run
from tiny_text import TINY_TEXT, run_text

from datasets import BadImage, read_image
from llama.sources import bounded_lines
from runtime import state_checks
from runtime.checkpoints import sha256
from runtime.errors import exit_status, printable
from runtime.training_state import TrainingState


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with a checkpoint of step 2, once for all."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*TINY, "--output_dir", folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    return folder


@pytest.fixture
def damaged(stopped, tmp_path):
    """A copy of the run, and a function that changes its training state or manifest with hashes that are right."""
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder, symlinks=True)
    checkpoint = folder / "checkpoints" / "step_00000002"

    def change(state=None, manifest=None):
        path = checkpoint / "training_state.pt"
        if state is not None:
            held = torch.load(path, weights_only=True)
            state(held)
            torch.save(held, path)
        content = json.loads((checkpoint / "manifest.json").read_text())
        content["files"] = {name: sha256(checkpoint / name) for name in content["files"]}
        if manifest is not None:
            manifest(content)
        (checkpoint / "manifest.json").write_text(json.dumps(content))

    return folder, checkpoint, change


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs main.py, which must end with one line and change nothing."""

    def check(culprit, *words, watched=None):
        before = everything(watched) if watched else None
        capsys.readouterr()
        assert run(*words, monkeypatch=monkeypatch) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and culprit in said, said
        assert before is None or everything(watched) == before

    return check


def first(state):
    """The optimizer's state of some weight."""
    return next(each for each in state["optimizer"]["state"].values() if each["exp_avg"].numel() > 64)


def shortened(state, name="exp_avg"):
    each = first(state)
    each[name] = each[name].flatten()[:-64].clone()


STATES = {
    "short average": (shortened, "exp_avg of a weight has the shape"),
    "short square": (lambda s: shortened(s, "exp_avg_sq"), "exp_avg_sq of a weight has the shape"),
    "average in words": (lambda s: first(s).update(exp_avg="x"), "exp_avg of a weight is not a tensor"),
    "many steps": (lambda s: first(s).update(step=torch.zeros(3)), "a weight's step is not a number"),
    "step of a weight in words": (lambda s: first(s).update(step="one"), "a weight's step is not a number"),
    "weight without a dict": (lambda s: s["optimizer"]["state"].update({0: 3}), "the state of a weight is not a dict"),
    "no groups": (lambda s: s["optimizer"].update(param_groups=[]), "has 0 parameter groups"),
    "group without weights": (
        lambda s: s["optimizer"]["param_groups"][0].update(params=[]),
        "a different number of weights",
    ),
    "rate in words": (
        lambda s: s["optimizer"]["param_groups"][0].update(lr="fast"),
        "lr of a parameter group is 'fast'",
    ),
    "rate that is none": (
        lambda s: s["optimizer"]["param_groups"][0].update(lr=math.nan),
        "lr of a parameter group is nan",
    ),
    "optimizer as a list": (lambda s: s.update(optimizer=[1]), "has an invalid 'optimizer'"),
    "no optimizer": (lambda s: s.pop("optimizer"), "has no 'optimizer'"),
    "no random states": (lambda s: s.update(random=[]), "has an invalid 'random'"),
    "random states of nothing": (lambda s: s.update(random=[{}]), "is invalid"),
    "negative count": (lambda s: s.update(loss_steps=-1), "has an invalid 'loss_steps'"),
    "another step": (lambda s: s.update(step=3), "is of step 3, not 2"),
    "step in words": (lambda s: s.update(step="2"), "has an invalid 'step'"),
    "rows that are no counts": (lambda s: s.update(rows={"log.jsonl": 1.5}), "has an invalid 'rows'"),
    "seconds without end": (lambda s: s.update(seconds=math.inf), "has an invalid 'seconds'"),
    "wandb's name as a number": (lambda s: s.update(wandb_id=3), "has an invalid 'wandb_id'"),
    "streams in words": (lambda s: s.update(streams=["here"]), "has an invalid 'streams'"),
    "best of nothing": (lambda s: s.update(best={"best": 1}), "has an invalid 'best'"),
}


@pytest.mark.parametrize(("change", "said"), STATES.values(), ids=STATES)
def test_a_training_state_is_looked_at_before_it_is_used(damaged, refused, change, said):
    folder, _, alter = damaged
    alter(state=change)
    refused(said, "--resume", folder, "--max_steps", "4", watched=folder)


def test_every_entry_of_a_training_state_is_looked_at():
    assert set(TrainingState(streams=[{}]).flat()) == set(state_checks.ENTRIES)


MANIFESTS = {
    "endless step": lambda m: m.update(step=math.inf),
    "step of another": lambda m: m.update(step=7),
    "negative step": lambda m: m.update(step=-2),
    "file elsewhere": lambda m: m["files"].update({"../../config.json": "0"}),
    "files as a list": lambda m: m.update(files=[1]),
    "run in words": lambda m: m.update(run="fast"),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_is_looked_at(damaged, refused, change):
    folder, _, alter = damaged
    alter(manifest=change)
    refused("manifest.json cannot be read", "--resume", folder, watched=folder)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["config.json", "checkpoints/step_00000002/manifest.json", "summary.json"])
@pytest.mark.parametrize(
    "content", [DEEP.encode(), b"\xff\xfe{}", b"[]", b""], ids=["deep", "no text", "list", "empty"]
)
def test_json_of_any_kind_is_read_or_named(damaged, refused, name, content):
    folder, _, _ = damaged
    (folder / name).write_bytes(content)
    refused(name, "--resume", folder, "--max_steps", "2", watched=folder)


def test_weights_that_are_no_safetensors_are_named(damaged, refused):
    folder, checkpoint, alter = damaged
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    alter()
    refused("model.safetensors cannot be read as safetensors", "--eval", "--resume", folder, watched=folder)


KEYWORDS = [
    "checkpoint_path=evil.pt", "pretrained=True", "pretrained_cfg={'file':'evil.pt'}", "pretrained_cfg_overlay={}",
    "pretrained_strict=False", "cache_dir=/tmp", "num_classes=3", "img_size=8", "drop_path_rate=1",
    "features_only=True",
    "patch_size=0", "num_heads=0", "embed_dim=-8", "depth=-1", "embed_dim=[1]", "=3", "a b=3", "depth=" + "(" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("word", KEYWORDS, ids=lambda word: word[:30])
def test_keywords_of_the_model_load_nothing_and_replace_no_option(refused, tmp_path, word):
    words = [*TINY[: TINY.index("--model_kwargs")], "--output_dir", tmp_path / "run", "--model_kwargs", word]
    refused("--model", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_cannot_bring_them_in_either(damaged, refused):
    folder, _, _ = damaged
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_kwargs": ["checkpoint_path=evil.pt"]}))
    refused("--model_kwargs checkpoint_path=evil.pt: loads a file", "--eval", "--resume", folder)


def test_weights_to_start_from_must_be_all_there(stopped, refused, tmp_path, monkeypatch, capsys):
    weights = load_file(stopped / "checkpoints" / "step_00000002" / "model.safetensors")
    path = tmp_path / "weights.safetensors"
    words = [*TINY, "--max_steps", "1", "--output_dir", tmp_path / "run", "--finetune", path]
    for names, said in (
        ([n for n in weights if "mlp" not in n], 'Missing key(s) in state_dict: "blocks.0.mlp.fc1'),
        ([], ""),
    ):
        save_file({name: weights[name] for name in names}, path)
        refused(said, *words)
    torch.save({}, tmp_path / "empty.pth")
    refused("is not a state dict of tensors", *words[:-1], tmp_path / "empty.pth")
    save_file(weights | {"more.weight": torch.zeros(3)}, path)
    refused('Unexpected key(s) in state_dict: "more.weight"', *words)
    save_file(weights | {"head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}, path)
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert "the head is new: the weights have 3 classes, the data 10" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "more", "index elsewhere", "index of nothing"])
def test_a_transformers_folder_to_start_from_must_be_whole(tmp_path, capsys, damage):
    folder = tmp_path / "model"
    assert run_text(*TINY_TEXT, "--max_steps", "1", "--output_dir", tmp_path / "first", "--export_hf", folder) == 0
    weights = load_file(folder / "model.safetensors")
    if damage == "missing":
        weights = {name: weight for name, weight in weights.items() if "mlp" not in name}
    elif damage == "more":
        weights["another.weight"] = torch.zeros(3)
    else:
        shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
        names = dict.fromkeys(weights, "../elsewhere.safetensors") if damage == "index elsewhere" else 3
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if "index" not in damage:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    words = ["--max_steps", "1", "--output_dir", tmp_path / "then", "--init_from", folder]
    assert run_text(*TINY_TEXT, *words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    expected = {"missing": "lacks model.layers.0.mlp", "more": "another.weight", "index of nothing": "no weight_map"}
    assert expected.get(damage, "names '../elsewhere.safetensors', which is not a file in that folder") in said
    assert not (tmp_path / "then").exists()


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_what_is_no_file_is_no_image_and_keeps_nobody_waiting(tmp_path, kind):
    path = tmp_path / "a.jpg"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "link to a device": lambda: path.symlink_to("/dev/zero")}[
        kind
    ]()
    with pytest.raises(BadImage, match="a.jpg"):
        read_image(str(path))


def test_training_images_that_are_all_broken_end_in_one_line(tmp_path, monkeypatch, capsys):
    for part in ("train", "val"):
        class_folders(tmp_path / part, classes=2, images=4)
    for path in [path for path in (tmp_path / "train").rglob("*.*") if path.is_file()]:
        path.unlink()
        os.mkfifo(path)
    words = ["--data_set", "image_folder", "--data_path", tmp_path / "train", "--eval_data_path", tmp_path / "val"]
    words += ["--batch_size", "4", "--output_dir", tmp_path / "run"]
    assert run(*TINY, *words, monkeypatch=monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --data_path: no image of a batch can be read, the last /") and "JPEG" in last


def test_a_line_of_any_length_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("llama.sources.LONGEST_LINE", 1 << 16)
    path = tmp_path / "long.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"first\n" + b"x" * (1 << 20) + b"\nlast\n")
    with gzip.open(path) as file:
        assert [len(line) for line in bounded_lines(file)] == [6, 1 << 16, 5]


ENVIRONMENTS = [{"RANK": "foo"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "2"}, {"RANK": "3"}, {"LOCAL_RANK": "x"}]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_an_environment_that_torchrun_would_not_make_is_refused(tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = [*TINY, "--output_dir", tmp_path / "run"]
    assert run(*words, monkeypatch=monkeypatch) == 2 and not (tmp_path / "run").exists()


def test_what_is_printed_moves_no_cursor():
    assert printable("a\x1b[2J\nb\r\x00é") == "a\\x1b[2J b\\r\\x00é"


def test_errors_of_the_system_name_the_file(capsys, tmp_path):
    assert exit_status(lambda: open(tmp_path / ("n" * 300))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /") and said.endswith(": File name too long\n")
    with pytest.raises(OSError):
        exit_status(lambda: (_ for _ in ()).throw(OSError("a mistake of ours")))


def test_a_reader_that_goes_away_ends_it_without_a_word(tmp_path):
    program = tmp_path / "closed.py"
    program.write_text(
        "import sys\nimport main\nfrom runtime.errors import exit_status\n"
        "import os\nreader, writer = os.pipe()\nos.close(reader)\nos.dup2(writer, 1)\n"
        "sys.exit(exit_status(main.main))\n"
    )
    done = forked(1, *TINY, "--dry_run", program=program)
    assert done.returncode == 141 and done.stderr == ""


LINKS = (".evaluation.json.tmp", ".config.json.tmp", ".summary.json.tmp", ".log.jsonl.tmp", ".decay.jsonl.tmp",
         "figures/training.png", "log.jsonl", "decay.jsonl", "config.json")  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_of_somebody_else_leads_no_writer_out_of_it(stopped, tmp_path, monkeypatch, name):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(stopped, folder, symlinks=True)
    link = folder / name
    outside.write_bytes(link.read_bytes() if link.is_file() else b"precious")
    before = outside.read_bytes()
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    assert run("--eval", "--resume", folder, monkeypatch=monkeypatch) == 0
    assert run("--resume", folder, "--max_steps", "4", monkeypatch=monkeypatch) == 0
    assert outside.read_bytes() == before
