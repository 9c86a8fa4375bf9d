"""Several processes, started by torchrun, and the published command as printed."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from forked import forked, free_port
from photos import bad_files, imagenet
from tiny import ROOT, TINY, rows, run

from main import read_options
from runtime.processes import Ranks

# The README of the published program (hed-ucas/AlphaDecay at 23ce27c), paths apart.
PUBLISHED = """--model vit_deit_tiny_patch16_224 --drop_path 0.1 --batch_size 192 --lr 4e-3
    --weight_decay 0.000005 --use_modulewise_wd --alpha_positively_with_WD --unbalancedWD_every 500
    --esd_metric_for_tb alpha --assign_func tb_linear_map --wd_min_ratio 0.6666 --wd_max_ratio 3 --update_freq 1
    --model_ema true --model_ema_eval true --data_path {data} --output_dir {output} --wandb_name published"""


def torchrun(
    processes: int, *words: str, timeout: int = 300, program: str | Path = "main.py", launch: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    torch_run = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    command = [sys.executable, *torch_run, "--master_addr=localhost", *launch, str(program), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_what_is_added_up_is_added_up_over_ranks(monkeypatch):
    def other_rank_has_two(values, *_, **__):
        values += 2

    monkeypatch.setattr("torch.distributed.all_reduce", other_rank_has_two)
    assert Ranks(0, 2, torch.device("cpu")).sum(torch.tensor([1.0, 3.0])).tolist() == [3.0, 5.0]


def test_the_published_command_means_what_the_paper_means(tmp_path):
    options = read_options(shlex.split(PUBLISHED.format(data="images", output=tmp_path)))
    decay, optimizer = options.decay, options.optimizer
    assert options.model.model == "deit_tiny_patch16_224" and options.model.drop_path == 0.1
    assert (decay.decay, decay.decay_metric, decay.decay_assign) == ("alphadecay", "alpha", "linear")
    assert (decay.decay_interval, decay.decay_low, decay.decay_high) == (500, 0.6666, 3)
    assert (decay.weight_decay, decay.decay_control, optimizer.optimizer) == (5e-6, "none", "adam")
    assert (optimizer.epochs, optimizer.warmup_epochs, optimizer.min_lr) == (120, 20, 1e-6)
    data = options.data
    assert (data.mixup, data.cutmix, data.smoothing, data.reprob) == (0.8, 1.0, 0.1, 0.25)
    assert options.ema.model_ema and options.ema.model_ema_eval and options.ema.model_ema_decay == 0.9999
    assert options.run.wandb_name == "published" and not options.run.enable_wandb


@pytest.mark.parametrize(
    ("words", "decay", "control"),
    [
        ("", "uniform", "none"),
        ("--use_modulewise_wd", "alphadecay", "none"),
        ("--use_modulewise_wd false", "uniform", "none"),
        ("--no-use_modulewise_wd", "uniform", "none"),
        ("--use-modulewise-wd --alpha_positively_with_WD False", "alphadecay", "invert"),
    ],
)
def test_published_switches_have_an_off(words, decay, control):
    read = read_options(["--data_set", "digits", *words.split()]).decay
    assert (read.decay, read.decay_control) == (decay, control)


def test_published_metrics_are_the_published_quantities():
    for published, ours in (("fnorm", "squared_frobenius_norm"), ("spectral_norm", "largest_eigenvalue")):
        assert read_options(["--data_set", "digits", "--esd_metric_for_tb", published]).decay.decay_metric == ours


@pytest.mark.slow
def test_the_published_command_trains_in_two_processes_as_printed(tmp_path):
    data, output = imagenet(tmp_path / "images", classes=4, train=100, val=3), tmp_path / "run"
    words = shlex.split(PUBLISHED.format(data=data, output=output))
    # At 224 pixels this takes 8 GiB a process; small images change nothing that is looked at here.
    done = torchrun(2, *words, "--max_steps", "3", "--num_workers", "1", "--input_size", "64", timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((output / "config.json").read_text())
    assert config["decay"] == "alphadecay" and config["model"] == "deit_tiny_patch16_224"
    ledger = rows(output / "decay.jsonl")
    assert {row["step"] for row in ledger} == {0} and len(ledger) == 48
    decays = [row["weight_decay"] / 5e-6 for row in ledger]
    assert min(decays) == pytest.approx(0.6666) and max(decays) == pytest.approx(3)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["step"] == 3 and {"acc1", "acc1_ema"} <= set(summary)


TWO = [*TINY, "--drop_path", "0", "--mixup", "0", "--cutmix", "0"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    done = forked(2, *TWO, "--batch_size", "120", "--output_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(two_processes, tmp_path, monkeypatch):
    assert run(*TWO, "--output_dir", tmp_path / "one", monkeypatch=monkeypatch) == 0
    for one, two in zip(rows(tmp_path / "one" / "log.jsonl"), rows(two_processes / "log.jsonl"), strict=True):
        for name in ("train_loss", "loss", "loss_ema"):
            assert two[name] == pytest.approx(one[name], rel=1e-3)
    ours, theirs = rows(tmp_path / "one" / "decay.jsonl"), rows(two_processes / "decay.jsonl")
    assert [row["module"] for row in ours] == [row["module"] for row in theirs]
    assert [r["score"] for r in ours] == pytest.approx([r["score"] for r in theirs], rel=1e-3)


@pytest.mark.slow
def test_evaluation_is_the_same_for_any_number_of_processes(two_processes, monkeypatch, capsys):
    words = ["--eval", "--resume", two_processes]
    assert run(*words, monkeypatch=monkeypatch) == 0
    alone = capsys.readouterr().out
    assert forked(3, *words).stdout == alone
    assert f"{rows(two_processes / 'log.jsonl')[-1]['acc1']:.4g}" in alone


BATCH_NORM = (
    "--data_set digits --input_size 32 --model resnet10t --batch_size 40 --epochs 1 --warmup_epochs 0 --lr 0.05 "
    "--optimizer sgd --aa none --num_workers 0 --model_ema --model_ema_decay 0.5 --model_ema_eval "
    "--decay uniform --max_steps 4"
).split()


@pytest.mark.slow
def test_what_two_processes_log_with_batch_norm_is_what_they_save(tmp_path, monkeypatch):
    """Running statistics are of each process' own images: those of the main process are saved, and evaluated."""
    done = forked(2, *BATCH_NORM, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run("--eval", "--resume", tmp_path / "run", monkeypatch=monkeypatch) == 0
    (logged,) = rows(tmp_path / "run" / "log.jsonl")
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())["figures"]
    for name in ("loss", "acc1", "loss_ema", "acc1_ema"):
        assert logged[name] == pytest.approx(saved[name], rel=1e-5), name


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(two_processes, tmp_path):
    folder = tmp_path / "run"
    words = [*TWO, "--batch_size", "120", "--output_dir", folder]
    for more in (["--max_steps", "7"], ["--resume", "auto"]):
        assert forked(2, *words, *more).returncode == 0
    name = "checkpoints/step_00000010/model.safetensors"
    assert (folder / name).read_bytes() == (two_processes / name).read_bytes()


@pytest.mark.slow
def test_bad_input_is_said_once(tmp_path):
    done = forked(2, *TINY, "--output_dir", tmp_path / "run", "--weight_decay", "-1")
    assert done.stderr.count("error: --weight_decay -1.0: must be at least 0\n") == 1
    assert done.returncode == 1 and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_too_many_bad_images_on_one_rank_end_all(tmp_path):
    root = imagenet(tmp_path / "images", classes=2, train=20, val=2)
    bad_files(root / "val" / "n0001")
    words = ["--data_path", root, "--data_set", "IMNET", "--batch_size", "8", "--max_bad_images", "2"]
    done = forked(2, *TINY, *words, "--output_dir", tmp_path / "run", timeout=120)
    assert done.returncode == 1 and "error: --max_bad_images 2: 3 images cannot be read" in done.stderr
