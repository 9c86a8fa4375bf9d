"""Whole runs of main.py on real images, small ones."""

import json
import re
from functools import partial

import pytest
import torch
from tiny import TINY, rows, run, run_apart

from main import read_options
from runtime.reports import show_decay_by_role


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*TINY, "--output_dir", folder, "--weight_decay_end", "0.01", monkeypatch=monkeypatch, draw=True) == 0
    return folder


def test_a_run_leaves_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json", "log.jsonl", "decay.jsonl", "tensorboard", "checkpoints", "summary.json", "figures",
    }  # fmt: skip
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures == {
        "training.png", "decay_over_time.png", "decay_by_depth.png", "alpha_by_depth.png", "spectra.png",
    }  # fmt: skip
    checkpoints = {path.name for path in (finished / "checkpoints").iterdir()}
    assert checkpoints == {"step_00000005", "step_00000010", "best", "best_ema"}
    assert any(path.name.startswith("events") for path in (finished / "tensorboard").rglob("*"))


def test_the_configuration_holds_every_option_and_what_else_a_result_depends_on(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["seed"] == 0 and config["decay_low"] == 2 / 3 and config["weight_decay_end"] == 0.01
    assert set(read_options(TINY).flat()) < set(config)
    environment = config["environment"]
    assert environment["versions"]["torch"] == torch.__version__ and environment["command"]


def test_the_log_has_one_line_an_evaluation(finished):
    log = rows(finished / "log.jsonl")
    assert [(row["step"], row["epoch"]) for row in log] == [(5, 0), (10, 1)]
    keys = {
        "train_loss",
        "lr",
        "weight_decay",
        "seconds",
        "acc1",
        "acc5",
        "loss",
        "acc1_ema",
        "acc5_ema",
        "loss_ema",
    }
    assert all(keys <= set(row) for row in log)
    assert log[-1]["lr"] == pytest.approx(1e-6) and log[-1]["weight_decay"] == pytest.approx(0.01)


def test_the_ledger_has_one_line_a_module_and_refresh(finished):
    ledger = rows(finished / "decay.jsonl")
    assert [row["step"] for row in ledger[::8]] == [0, 3, 6, 9] and len(ledger) == 32
    assert {row["role"] for row in ledger} == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    for row in ledger:
        base = row["weight_decay"] / row["multiplier"]
        assert 0.009 < base < 0.051 and 2 / 3 <= row["multiplier"] <= 3
    bases = [row["weight_decay"] / row["multiplier"] for row in ledger[::8]]
    assert bases == sorted(bases, reverse=True) and bases[0] == pytest.approx(0.05)


def test_the_summary_agrees_with_the_log(finished):
    summary, log = json.loads((finished / "summary.json").read_text()), rows(finished / "log.jsonl")
    for name in ("acc1", "acc1_ema", "loss", "loss_ema"):
        assert summary[name] == log[-1][name]
    assert summary["best_acc1"] == max(row["acc1"] for row in log)
    assert summary["best_acc1_ema"] == max(row["acc1_ema"] for row in log)
    assert summary["seconds"] > summary["decay_seconds"] > 0 and summary["samples_per_second"] > 0


def test_evaluating_a_finished_run_gives_its_accuracies(finished, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run("--eval", "--resume", finished, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    last = rows(finished / "log.jsonl")[-1]
    raw, ema = (float(re.search(rf"{name} weights +([\d.]+)", said)[1]) for name in ("raw", "EMA"))
    assert raw == pytest.approx(last["acc1"], rel=1e-3) and ema == pytest.approx(last["acc1_ema"], rel=1e-3)
    written = finished / "evaluation.json"
    content = json.loads(written.read_text())
    assert content["figures"]["loss"] == pytest.approx(last["loss"], rel=1e-6) and content["step"] == last["step"]
    manifest = json.loads((finished / f"checkpoints/step_{last['step']:08d}" / "manifest.json").read_text())
    assert set(content["weights_sha256"].values()) <= set(manifest["files"].values())
    written.unlink()
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def timeless(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]


@pytest.mark.slow
def test_auto_starts_fresh_and_says_so_and_then_goes_on(tmp_path, monkeypatch, capsys):
    words = [*TINY, "--output_dir", tmp_path / "run", "--resume", "auto", "--max_steps"]
    assert run(*words, "3", monkeypatch=monkeypatch) == 0
    assert "starting a new run" in capsys.readouterr().out
    assert run(*words, "6", monkeypatch=monkeypatch) == 0
    assert "resuming from" in capsys.readouterr().out


@pytest.mark.slow
def test_overwriting_replaces_the_run_and_nothing_else(tmp_path, monkeypatch):
    words = [*TINY, "--output_dir", tmp_path, "--max_steps", "2"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*words, "--overwrite", "--seed", "1", monkeypatch=monkeypatch) == 0
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(rows(tmp_path / "log.jsonl")) == 1


def test_a_configuration_runs_again(finished, tmp_path, monkeypatch):
    words = ["--config", finished / "config.json", "--output_dir", tmp_path / "again"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert timeless(tmp_path / "again" / "log.jsonl") == timeless(finished / "log.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--seed 1", "--decay uniform", "--weight_decay 5"])
def test_options_change_the_result(finished, tmp_path, monkeypatch, change):
    words = ["--config", finished / "config.json", "--output_dir", tmp_path / "other", *change.split()]
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert timeless(tmp_path / "other" / "log.jsonl") != timeless(finished / "log.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adam --weight_decay 5e-6",
        "--optimizer sgd --momentum 0.9 --lr 0.1",
        "--mixup 0 --cutmix 0 --smoothing 0 --no-model_ema --no-model_ema_eval",
        "--epochs 1 --warmup_epochs 0 --max_steps 1",
        "--warmup_epochs 9",
        "--update_freq 2 --batch_size 100 --clip_grad 1.0",
        "--amp bf16",
        "--amp fp16",
        "--decay_assign sigmoid --decay_budget matched",
        "--decay_control shuffle --decay_norm_bias",
        "--model resnet10t --model_kwargs in_chans=3",
        "--decay_fit goodness-of-fit --decay_window farms --decay_frozen",
        "--pl_fitting fix-finger --filter_zeros --esd_metric_for_tb gradnorm_d_weightnorm",
        "--num_workers 2 --checkpoint_every 1",
        # Not with --amp bf16: that convolution's gradient is not deterministic on CPUs, see docs/reliability.md.
        "--channels_last --model resnet10t --model_kwargs in_chans=3",
        "--mixup_mode elem --cutmix_minmax 0.2 0.8",
        "--layer_decay 0.7 --remove_last_layer false",
        "--compile",
        pytest.param("--compile ", marks=pytest.mark.proof),
    ],
)
def test_options_train(tmp_path, monkeypatch, words):
    if words == "--compile":  # without the minute that generating and compiling C++ takes
        monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager"))
    limits = ["--max_steps", "3", "--output_dir", tmp_path / "run"]
    assert run(*TINY, *limits, *words.split(), monkeypatch=monkeypatch) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_training_that_diverges_stops_with_status_3_and_saves_nothing_of_it(tmp_path, monkeypatch, capsys):
    words = [
        *TINY,
        "--output_dir",
        tmp_path / "run",
        "--optimizer",
        "sgd",
        "--lr",
        "1e38",
        "--warmup_epochs",
        "0",
    ]
    assert run(*words, monkeypatch=monkeypatch) == 3
    assert "stopped: loss or gradient not finite at optimizer step 1: first in the" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))


def test_dry_run_shows_every_parameter_and_writes_nothing(tmp_path, monkeypatch, capsys):
    assert run(*TINY, "--dry_run", "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert re.search(r"^blocks\.0\.attn\.qkv\.weight +blocks\.0\.attn\.qkv +192x64 +1 +0\.\d+ +alpha", said, re.M)
    assert re.search(r"^cls_token +\(no decay\) +1x1x64 +1 +0 +norm, bias, position or token", said, re.M)
    assert re.search(r"^head\.weight +\(other\) +10x64 +1 +0\.05 +head", said, re.M)
    assert "32 trainable parameters in 10 groups, each in exactly one; 0 frozen" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_the_table_and_status_0(tmp_path):
    done = run_apart(*TINY, "--output_dir", tmp_path / "run")
    assert done.returncode == 0 and "decay by role" in done.stdout and "img/s" in done.stderr


@pytest.mark.parametrize(
    ("decay", "message"),
    [("uniform", "not finite after optimizer step 5"), ("alphadecay", "blocks.0.attn.qkv (192, 64): the weight holds")],
)
def test_weights_that_went_wrong_between_two_looks_are_never_logged_or_saved(
    tmp_path, monkeypatch, capsys, decay, message
):
    monkeypatch.setattr("runtime.finite.FiniteGate.check", lambda *_: None)
    words = [*TINY, "--output_dir", tmp_path / "run", "--optimizer", "sgd", "--lr", "1e38", "--warmup_epochs", "0"]
    assert run(*words, "--decay", decay, monkeypatch=monkeypatch) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists() and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_going_back_to_an_earlier_checkpoint_forgets_the_later_ones(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, monkeypatch=monkeypatch) == 0
    earlier = folder / "checkpoints" / "step_00000005"
    words = ["--resume", earlier, "--overwrite", "--output_dir", folder, "--max_steps", "6"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    steps = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert steps == ["step_00000005", "step_00000006"] and [r["step"] for r in rows(folder / "log.jsonl")] == [5, 6]


@pytest.mark.slow
def test_overwriting_by_a_resumed_run_leaves_nothing_of_the_old_one(tmp_path, monkeypatch):
    first, old = tmp_path / "first", tmp_path / "old"
    assert run(*TINY, "--output_dir", first, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert run(*TINY, "--output_dir", old, "--seed", "1", monkeypatch=monkeypatch) == 0
    words = ["--resume", first, "--output_dir", old, "--overwrite", "--max_steps", "3"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert [path.name for path in (old / "checkpoints").glob("step_*")] == ["step_00000003"]


def test_the_table_of_decays_is_of_the_last_refresh_with_a_line_a_role(capsys):
    def row(step, role, score):
        values = {"score": score, "weight_decay": score / 10, "multiplier": score}
        return {"step": step, "role": role, "audit": None, **values}

    ledger = [row(0, "mlp.fc1", 9.0), row(5, "mlp.fc1", 2.0), row(5, "mlp.fc1", 4.0), row(5, "mlp.fc2", 1.0)]
    show_decay_by_role(ledger, "alpha")
    said = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mlp")]
    assert said == [["mlp.fc1", "2", "3", "0.3", "3"], ["mlp.fc2", "1", "1", "0.1", "1"]]
