"""A run that goes on is the run that was stopped: what it cannot change is refused, and said in a table."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked
from photos import class_folders
from tiny import TINY, run
from torchvision.datasets import CIFAR10

import main as program
import main_llama
from datasets import DataOptions, ImageData, open_images
from runtime import run_contract
from runtime.checkpoints import find_checkpoint
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from vision.fingerprints import fingerprint

ALONE = Ranks(0, 1, torch.device("cpu"))
FIXED = {
    "mixup": run_contract.Fixed("augmentation", 0.8),
    "many": run_contract.Fixed("augmentation", ()),
    "lr": run_contract.Fixed("schedule", 1e-3),
}
OPTIONS = {"mixup": 0.8, "many": (), "lr": 1e-3}

# Options that change no result of a run that is resumed.
FREE = {
    "data_set", "data_path", "eval_data_path", "nb_classes",  # the data's fingerprint stands for them
    "max_bad_images",  # when to give up
    "num_workers",  # batches depend on no worker
    "pretrained", "finetune",  # where the run began; its weights are the checkpoint's since
    "model_ema_eval",  # what is evaluated, not what is trained
    "output_dir", "overwrite", "save_ckpt_num", "checkpoint_every",  # where and when files are written
    "resume", "config", "eval", "results_file", "dry_run", "self_test_resume", "allow_changed",  # what a call does
    "on_nonfinite", "max_nonfinite",  # their purpose is to resume after a bad step with another policy
    "max_steps",  # where the run stops; schedules stay
    "log_interval", "decay_audit", "enable_wandb", "project", "wandb_name",  # what is shown
    "device",  # the machine is a fact of its own
    "timeout",  # how long processes wait
}  # fmt: skip


# Of language runs, which have the options of the run in common.
FREE_OF_TEXT = {
    "dataset", "data_path", "tokenizer",  # the data's fingerprint stands for them
    "max_bad_lines",  # when to give up
    "model_config",  # a fact of its own, the architecture, stands for what is in it
    "init_from",  # where the run began; its weights are the checkpoint's since, its config the architecture
    "activation_checkpointing",  # computes the same again
    "export_hf", "peak_tflops", "sharded_checkpoints",  # what is written, how, and shown
    "model_ema_eval",  # what is evaluated, not what is trained
}  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "free"),
    [(program, FREE), (main_llama, FREE_OF_TEXT | {each.name for each in fields(RunOptions)} & FREE)],
    ids=["vision", "language"],
)
def test_every_option_is_fixed_or_known_to_change_no_result(trainer, free):
    names = {each.name for cls in trainer.OPTION_CLASSES for each in fields(cls)}
    assert set(trainer.FIXED) | free == names and set(trainer.FIXED) & free == set()


def test_categories_of_options_and_facts_are_those_of_the_documentation():
    categories = {each.category for each in program.FIXED.values()} | set(run_contract.FACT_CATEGORIES.values())
    assert categories == {
        "model", "data", "batch_size", "world_size", "decay", "schedule", "augmentation", "threads",
        "optimizer", "ema", "precision", "seed", "machine", "libraries",
    }  # fmt: skip


def contract(options=(), **facts):
    return run_contract.contract_of(OPTIONS | dict(options), run_contract.facts_of(ALONE, "ab" * 32) | facts, FIXED)


def test_what_a_manifest_gives_back_is_unchanged():
    given_back = json.loads(json.dumps(contract({"many": ("a", "b")})))
    assert run_contract.contract_changes(given_back, contract({"many": ("a", "b")}), FIXED) == []


def test_changes_name_category_and_both_values():
    found = run_contract.contract_changes(contract(threads=4), contract({"lr": 0.1, "many": ("a",)}, threads=8), FIXED)
    assert found == [("augmentation", "many", [], ["a"]), ("schedule", "lr", 1e-3, 0.1), ("threads", "threads", 4, 8)]


@pytest.mark.parametrize(("now", "changed"), [({}, []), ({"mixup": 0.1, "many": (1,)}, ["mixup", "many"])])
def test_an_option_newer_than_the_checkpoint_had_its_default(now, changed):
    before = contract()
    del before["options"]["mixup"], before["options"]["many"]
    assert [each.name for each in run_contract.contract_changes(before, contract(now), FIXED)] == changed


def test_a_fact_that_the_checkpoint_does_not_know_is_changed():
    before = contract()
    del before["facts"]["timm"]
    found = run_contract.contract_changes(before, contract(), FIXED)
    assert [(each.name, each.before) for each in found] == [("timm", None)]
    assert "unknown" in run_contract.change_table(found)


def test_a_checkpoint_without_a_contract_says_nothing_of_options():
    assert {each.name for each in run_contract.contract_changes({}, contract(), FIXED)} == set(contract()["facts"])


def test_values_that_differ_are_seen_to_differ():
    found = run_contract.contract_changes(contract({"lr": 0.1}), contract({"lr": 0.1000001, "many": ("a", "b")}), FIXED)
    said = run_contract.change_table(found)
    assert "0.1000001" in said and "a b" in said and "none" in said


def test_threads_are_a_fact_of_a_gpu_too_but_older_checkpoints_lack_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    found = run_contract.facts_of(Ranks(1, 4, torch.device("cuda:1")), "ab" * 32)
    assert (found["world_size"], found["device"], found["machine"]) == (4, "cuda", "some GPU")
    assert found["threads"] == torch.get_num_threads() and found["data"] == "ab" * 8
    now = run_contract.contract_of(OPTIONS, found, FIXED)
    older = {"options": now["options"], "facts": {k: v for k, v in now["facts"].items() if k != "threads"}}
    assert run_contract.contract_changes(older, now, FIXED) == []
    other = {"options": now["options"], "facts": now["facts"] | {"threads": 1000}}
    assert [change.name for change in run_contract.contract_changes(other, now, FIXED)] == ["threads"]


@pytest.mark.parametrize("name", ["augmentation", "mixup", "threads", "timm", "libraries"])
def test_categories_options_and_facts_can_be_allowed(name):
    run_contract.check_names((name,), FIXED)


def test_an_unknown_name_is_one_line_with_what_is_known(monkeypatch, capsys, tmp_path):
    words = [*TINY, "--output_dir", tmp_path / "run", "--allow_changed", "lr", "mixpu"]
    assert run(*words, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --allow_changed mixpu: unknown (did you mean mixup?); known are augmentation, ")
    assert said.count("\n") == 1 and "world_size" in said and "decay_low" in said
    assert list(tmp_path.iterdir()) == []


# Whole runs


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*TINY, "--output_dir", folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    return folder


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}  # in the folder itself a lock comes and goes


CHANGES = {
    "model": ("--drop_path 0.2", r"model +drop_path +0\.1 +0\.2"),
    "another model": ("--model resnet10t --model_kwargs", r"model +model +vit_tiny_patch16_224 +resnet10t"),
    "batch size": ("--batch_size 120", r"batch_size +batch_size +240 +120"),
    "micro-steps": ("--update_freq 2 --batch_size 120", r"batch_size +update_freq +1 +2"),
    "decay": ("--decay uniform", r"decay +decay +alphadecay +uniform"),
    "schedule": ("--epochs 3", r"schedule +epochs +2 +3"),
    "augmentation": ("--aa original", r"augmentation +aa +none +original"),
    "data": ("--data_set image_folder", r"data +data +[0-9a-f]{16} +[0-9a-f]{16}"),
}


@pytest.mark.parametrize(("words", "row"), CHANGES.values(), ids=CHANGES)
def test_what_a_run_cannot_change_is_refused_before_anything_is_written(
    stopped, tmp_path, monkeypatch, capsys, words, row
):
    if "image_folder" in words:
        images = class_folders(tmp_path / "images", classes=10, images=24)
        words += f" --data_path {images} --eval_data_path {images}"
    before = times(stopped)
    assert run("--resume", stopped, *words.split(), monkeypatch=monkeypatch) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["category", "name", "in", "the", "checkpoint", "now"]
    assert any(re.fullmatch(row, line) for line in lines)
    count = "1 difference" if len(lines) == 3 else f"{len(lines) - 2} differences"
    assert last.startswith(f"error: --resume {stopped}/checkpoints/step_00000002: {count} from the checkpoint: ")
    assert last.endswith("; to resume anyway, give --allow_changed NAME...")
    assert times(stopped) == before


@pytest.mark.parametrize("resume", ["auto", "RUN", "RUN/checkpoints/best"])
def test_other_threads_are_refused_with_how_to_get_them_back(stopped, tmp_path, monkeypatch, capsys, resume):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    before = times(stopped)
    folder = stopped if resume == "auto" else tmp_path / "elsewhere"
    words = ["--resume", resume.replace("RUN", str(stopped)), "--output_dir", folder]
    assert run(*words, monkeypatch=monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"1 difference from the checkpoint: threads; OMP_NUM_THREADS={threads} restores the threads" in last
    assert times(stopped) == before and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_world_size_is_refused_by_all_ranks_and_said_once(stopped):
    before = times(stopped)
    done = forked(2, "--resume", stopped, timeout=120)
    assert done.returncode == 1 and done.stderr.count("from the checkpoint: ") == 1
    assert any(line.split() == ["world_size", "world_size", "1", "2"] for line in done.stderr.splitlines())
    assert times(stopped) == before


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.slow
def test_what_is_allowed_by_category_or_name_is_said_and_becomes_the_runs(copied, monkeypatch, capsys):
    words = ["--resume", copied, "--max_steps", "3", "--mixup", "0.4", "--reprob", "0", "--lr", "0.002"]
    assert run(*words, "--allow_changed", "mixup", "seed", monkeypatch=monkeypatch) == 2
    assert "2 differences from the checkpoint: reprob, lr;" in capsys.readouterr().err
    assert run(*words, "--allow_changed", "augmentation", "lr", "seed", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "resuming with changes (--allow_changed): reprob, mixup, lr; results can differ" in said
    assert any(line.split() == ["augmentation", "mixup", "0.8", "0.4"] for line in said.splitlines())
    assert find_checkpoint(copied)[0].contract()["options"]["lr"] == 0.002
    assert run("--resume", copied, "--max_steps", "4", monkeypatch=monkeypatch) == 0


def test_what_changes_no_result_may_change_freely(copied, tmp_path, monkeypatch, capsys):
    words = "--num_workers 1 --checkpoint_every 1 --log_interval 3 --max_steps 3 --save_ckpt_num 2".split()
    words += ["--output_dir", tmp_path / "other"]
    assert run("--resume", copied, *words, monkeypatch=monkeypatch) == 0
    assert "--allow_changed" not in capsys.readouterr().out


def test_evaluating_and_looking_need_no_leave(stopped, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert run("--eval", "--resume", stopped, "--mixup", "0", monkeypatch=monkeypatch) == 0
    assert run("--dry_run", "--resume", stopped, "--mixup", "0", monkeypatch=monkeypatch) == 0


@pytest.mark.parametrize("change", ["renamed", "changed"])
def test_other_images_in_the_same_folders_are_refused(tmp_path, monkeypatch, capsys, change):
    images, folder = class_folders(tmp_path / "images", classes=2, images=4), tmp_path / "run"
    words = f"--data_set image_folder --data_path {images} --eval_data_path {images} --batch_size 4".split()
    assert run(*TINY, *words, "--output_dir", folder, "--max_steps", "1", monkeypatch=monkeypatch) == 0
    CHANGED_FILES[change](images / "n0000" / "001.JPEG")
    before = times(folder)
    assert run("--resume", folder, monkeypatch=monkeypatch) == 2
    assert "1 difference from the checkpoint: data;" in capsys.readouterr().err and times(folder) == before


# The data's fingerprint


def folders(root: Path) -> str:
    words = {"data_path": str(root), "eval_data_path": str(root)}
    return fingerprint(open_images(DataOptions(data_set="image_folder", **words), ALONE))


def test_the_fingerprint_of_folders_does_not_depend_on_where_they_lie(tmp_path):
    first = class_folders(tmp_path / "a", classes=2, images=3)
    shutil.copytree(first, tmp_path / "somewhere" / "else")
    assert folders(first) == folders(tmp_path / "somewhere" / "else")


def rename(file: Path) -> None:
    file.rename(file.with_name("009.JPEG"))


CHANGED_FILES = {
    "renamed": rename,
    "moved to another class": lambda file: file.rename(file.parent.parent / "n0001" / "009.JPEG"),
    "gone": Path.unlink,
    "changed": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "added": lambda file: file.with_name("009.JPEG").write_bytes(file.read_bytes()),
    "unreadable": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "class renamed": lambda file: file.parent.rename(file.parent.with_name("n0000b")),
}


@pytest.mark.parametrize("change", CHANGED_FILES.values(), ids=CHANGED_FILES)
def test_the_fingerprint_of_folders_changes_with_names_and_contents(tmp_path, change):
    root = class_folders(tmp_path / "images", classes=2, images=3)
    before = folders(root)
    change(root / "n0000" / "001.JPEG")
    assert folders(root) != before


def test_the_fingerprint_reads_few_files_of_many(tmp_path):
    root = class_folders(tmp_path / "images", classes=2, images=50)
    before = folders(root)
    changed = 0
    for file in sorted(root.rglob("*.JPEG")):
        content = file.read_bytes()
        file.write_bytes(b"")
        changed += folders(root) != before
        file.write_bytes(content)
    assert changed == 64 and folders(root) == before


def test_the_fingerprint_of_images_in_memory_is_of_every_pixel_and_label():
    digits = open_images(DataOptions(data_set="digits"), ALONE)
    before = fingerprint(digits)
    assert before == fingerprint(open_images(DataOptions(data_set="digits"), ALONE)) and len(before) == 64
    digits.validation.images[17].putpixel((3, 3), (1, 2, 3))
    pixel = fingerprint(digits)
    digits.train.labels[5] += 1
    assert len({before, pixel, fingerprint(digits)}) == 3


def cifar(pixels, labels):
    images = object.__new__(CIFAR10)
    images.data, images.targets = pixels, labels
    return fingerprint(ImageData(images, images, ("a", "b"), (0, 0, 0), (1, 1, 1), horizontal_flip=True))


def test_the_fingerprint_of_cifar_is_of_every_pixel_and_label():
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    other = pixels.copy()
    other[1, 31, 31, 2] = 1
    assert len({cifar(pixels, [0, 1]), cifar(other, [0, 1]), cifar(pixels, [1, 0])}) == 3
