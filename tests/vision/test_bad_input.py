"""Bad input: exit status 2, one line that names the culprit and its value, nothing written."""

import pytest
from tiny import TINY, run, run_apart

from runtime.runfolder import write_json

CASES = {
    "unknown option": (["--weight_deca", "1"], "--weight_deca;"),
    "bounds swapped": (["--decay_low", "3", "--decay_high", "1"], "--decay_low 3: above --decay_high 1"),
    "negative decay": (["--weight_decay", "-0.1"], "--weight_decay -0.1: must be at least 0"),
    "interval 0": (["--decay_interval", "0"], "--decay_interval 0: must be at least 1"),
    "unknown decay": (["--decay", "alfa"], "--decay alfa: must be one of uniform, alphadecay"),
    "unknown model": (["--model", "deit_tiny_patch16_24"], "deit_tiny_patch16_224"),
    "model of nonsense": (["--model", "?"], "--model ?: timm"),
    "model keyword": (["--model_kwargs", "wings=2"], "does not accept"),
    "malformed keyword": (["--model_kwargs", "depth"], "--model_kwargs depth: expected KEY=VALUE"),
    "unknown optimizer": (
        ["--optimizer", "adamm"],
        "--optimizer adamm: timm has no such optimizer; close: adam",
    ),
    "batch size 0": (["--batch_size", "0"], "--batch_size 0: must be at least 1"),
    "batch size too large": (
        ["--batch_size", "2000"],
        "--batch_size 2000: larger than the 1433 training images",
    ),
    "accumulated too large": (["--update_freq", "100"], "--batch_size 240 x 1 processes x 100 micro-steps"),
    "odd batch": (["--batch_size", "31"], "--batch_size 31: mixup"),
    "rate of letters": (["--lr", "fast"], "--lr: 'fast' is not a number"),
    "rate not a number": (["--lr", "nan"], "--lr: 'nan' is not a number"),
    "rate 0": (["--lr", "0"], "--lr 0.0: must be above 0"),
    "rates swapped": (["--min_lr", "1"], "--min_lr 1: above --lr"),
    "no epoch": (["--epochs", "0"], "--epochs 0"),
    "unknown data set": (["--data_set", "digit"], "digits (did you mean digits?)"),
    "unknown policy": (["--aa", "flip-all"], "--aa flip-all"),
    "unknown device": (["--device", "tpu9"], "--device tpu9"),
    "EMA missing": (["--no-model_ema"], "--model_ema_eval true"),
    "eval of nothing": (["--eval"], "--eval: needs weights to evaluate"),
    "resume of nothing": (["--resume", "nowhere"], "--resume nowhere: does not exist"),
    "config of nothing": (["--config", "nowhere.json"], "nowhere.json cannot be read"),
    "no matrix takes part": (
        ["--model_kwargs", "patch_size=8", "embed_dim=48", "depth=2"],
        "no weight matrix",
    ),
    "no data path": (["--data_set", "IMNET"], "--data_set IMNET: needs --data_path"),
    "no such data": (["--data_set", "IMNET", "--data_path", "nowhere"], "--data_path nowhere/val: no such folder"),
    "no validation images": (["--data_set", "image_folder", "--data_path", "tests"], "--eval_data_path"),
    "path that nobody reads": (["--eval_data_path", "tests"], "--eval_data_path tests: goes with"),
    "class count": (["--nb_classes", "3"], "--nb_classes 3: the data have 10 classes"),
    "one share": (["--cutmix_minmax", "0.5"], "--cutmix_minmax (0.5,): expected two shares"),
    "two sources of weights": (["--finetune", "x", "--pretrained"], "--finetune x: not together with --pretrained"),
    "no such weights": (["--finetune", "nowhere.pth"], "--finetune nowhere.pth: no such file"),
    "layer decay": (["--layer_decay", "0"], "--layer_decay 0.0: must be above 0"),
    "unknown metric": (["--decay_metric", "beta"], "--decay_metric beta: must be one of alpha, alpha_hat"),
    "caution with coupled decay": (
        ["--decay_cautious", "--optimizer", "adam"],
        "--decay alphadecay: cautious decay needs an optimizer that decays weights by learning rate x decay x weight, "
        "such as AdamW; Adam does not",
    ),
    "entries with coupled decay": (
        ["--decay", "adadecay", "--adadecay_scope", "entry", "--optimizer", "momentum"],
        "adadecay per entry decay needs an optimizer that decays weights",
    ),
    "replay of nothing": (["--decay", "replay"], "--decay replay: needs --decay_ledger PATH"),
    "no such ledger": (
        ["--decay", "replay", "--decay_ledger", "nowhere.jsonl"],
        "--decay replay: nowhere.jsonl: No such file or directory",
    ),
    "a ledger that is none": (
        ["--decay", "replay", "--decay_ledger", "README.md"],
        "--decay replay: README.md, line 1: not JSON",
    ),
    "a ledger that nobody reads": (
        ["--decay_ledger", "x"],
        "--decay_ledger x: needs --decay replay, not alphadecay",
    ),
    "a mean that nobody takes": (["--decay_ledger_mean"], "--decay_ledger_mean True: needs --decay replay"),
    "a metric that nobody takes": (["--decay", "adadecay", "--decay_metric", "entropy"], "--decay_metric entropy, "),
    "a control of nothing": (
        ["--decay", "awd", "--decay_control", "shuffle"],
        "--decay_control shuffle: has no effect with --decay awd",
    ),
    "scale 0": (["--awd_scale", "0"], "--awd_scale 0.0: must be above 0"),
    "two published kinds": (
        ["--use_modulewise_wd", "--use_AWD_NeurIPS2023"],
        "--use_AWD_NeurIPS2023: means --decay awd, but --decay alphadecay was given too",
    ),
    "lag too long": (["--decay_lag", "3"], "--decay_lag 3: must be below --decay_interval 3"),
    "too few micro-steps": (["--update_freq", "0"], "--update_freq 0: must be at least 1"),
    "boolean": (["--model_ema", "perhaps"], "--model_ema: 'perhaps' is neither true nor false"),
}


@pytest.mark.parametrize(("words", "culprit"), CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_nothing_is_written(words, culprit, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, *words, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and culprit in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_run_is_left_alone(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "config.json", {"seed": 1, "environment": {}})
    assert run(*TINY, "--output_dir", tmp_path, monkeypatch=monkeypatch) == 2
    assert "holds another run; give --resume, --overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_as_output_folder_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert run(*TINY, "--output_dir", tmp_path / "file", monkeypatch=monkeypatch) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_folder_without_checkpoints_cannot_be_resumed(tmp_path, monkeypatch, capsys):
    (tmp_path / "readme.txt").write_text("no checkpoint")
    assert run(*TINY, "--resume", tmp_path, monkeypatch=monkeypatch) == 2
    assert f"--resume {tmp_path}: is neither a checkpoint" in capsys.readouterr().err


@pytest.mark.slow
def test_the_process_says_it_too(tmp_path):
    done = run_apart(*TINY, "--output_dir", tmp_path / "run", "--decay_interval", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --decay_interval 0: must be at least 1\n"
