"""What the programs answer before torch is loaded: help and mistakes, in words that a person can use."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from tiny import ROOT

import comparison.options
import llama.options
import vision.options
from llama.corpora import FINDERS
from llama.options import DATASETS
from runtime import decay_options, run_options
from runtime.errors import exit_status
from runtime.steps import AMP_DTYPES

HIDDEN = ("torch", "torchvision", "timm", "transformers", "wandb", "numpy", "PIL", "yaml")
PROGRAMS = ("main.py", "main_llama.py", "compare.py")


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """Runs a program where nothing heavy can be imported."""
    folder = tmp_path_factory.mktemp("hidden")
    for name in HIDDEN:
        (folder / f"{name}.py").write_text("raise ImportError('hidden')\n")

    def start(*words):
        env = os.environ | {"PYTHONPATH": str(folder)}
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    return start


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_mistakes_need_no_torch(light, program):
    helped, mistaken = light(program, "--help"), light(program, "--outputdir", "x")
    assert (helped.returncode, helped.stderr) == (0, "") and helped.stdout.startswith(f"usage: {program} [options]\n")
    assert mistaken.returncode == 2
    assert mistaken.stderr == "error: unknown option --outputdir; did you mean --output_dir?\n"


def test_choices_are_those_that_there_are():
    homes = {"SCORES": "analysis", "FITS": "tails", "RULES": "assign", "CONTROLS": "assign", "BUDGETS": "assign"}
    for name, home in homes.items():
        assert tuple(getattr(importlib.import_module(f"alphadecay.{home}"), name)) == getattr(decay_options, name)
    assert tuple(FINDERS) == DATASETS and tuple(AMP_DTYPES) == run_options.AMP


CONFIGS = {
    "language.json": '{"dataset": "stdlib", "min_lr": null, "output_dir": "x"}',
    "images.json": '{"data_set": "digits"}',
    "text.json": '{"data_set": "digits", "lr": "fast"}',
    "part.json": '{"lr": 0.25}',
    "broken.json": "{",
}
MISTAKES = [
    ("main.py", "-lr 3", "-lr: names of options begin with two dashes; write --lr 3"),
    ("main.py", "-lr=3", "-lr=3: names of options begin with two dashes; write --lr=3"),
    ("main.py", "-weight-decay -1", "-weight-decay: names of options begin with two dashes; write --weight-decay -1"),
    ("main.py", "-eval --resume x", "-eval: names of options begin with two dashes; write --eval"),
    ("main.py", "-help", "-help: names of options begin with two dashes; write --help"),
    ("main.py", "-x 3", "unknown option -x; --help lists the options"),
    ("main.py", "--weigth-decay 1", "unknown option --weigth-decay; did you mean --weight_decay or"),
    ("main.py", "--lr", "--lr: needs a value"),
    ("main.py", "--data_set image_folder --data_path x", "--data_set image_folder: needs --eval_data_path FOLDER too"),
    (
        "main.py",
        "--data_set digits --eval_data_path x",
        "--eval_data_path x: goes with --data_set image_folder, not digits",
    ),
    ("main.py", "--resume /nope", "--resume /nope: does not exist"),
    ("main_llama.py", "--eval --resume nope", "--resume nope: does not exist"),
    ("main.py", "--resume .", "--resume .: is neither a checkpoint nor a run folder with checkpoints"),
    ("main.py", "--config /nope", "--config /nope: /nope cannot be read as a run's configuration"),
    ("main.py", "--config broken.json", "--config broken.json: broken.json cannot be read as a run's configuration"),
    (
        "main.py",
        "--config language.json",
        "--config language.json: is a run of main_llama.py, which has other options",
    ),
    ("main_llama.py", "--config images.json", "--config images.json: is a run of main.py, which has other options"),
    ("main.py", "--config text.json", "--lr 'fast': must be a number (from text.json)"),
    ("compare.py", "", "give --preset (quick, smoke) or --config FILE"),
    ("compare.py", "-preset quick", "-preset: names of options begin with two dashes; write --preset quick"),
    ("compare.py", "--preset quick --config x", "--config x: not together with --preset quick; give one of them"),
]
READERS = {"main.py": vision.options, "main_llama.py": llama.options, "compare.py": comparison.options}


@pytest.mark.parametrize(("program", "words", "said"), MISTAKES)
def test_a_mistake_is_named_as_it_was_typed(program, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    assert exit_status(lambda: READERS[program].read_options(words.split())) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {said}")
    assert {path.name for path in tmp_path.iterdir()} == set(CONFIGS)


def test_a_configuration_may_hold_some_options_only(tmp_path, monkeypatch):
    (tmp_path / "part.json").write_text(CONFIGS["part.json"])
    options = vision.options.read_options(["--data_set", "digits", "--config", str(tmp_path / "part.json")])
    assert (options.optimizer.lr, options.data.data_set) == (0.25, "digits")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_short_and_readable(program, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        READERS[program].read_options(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "usage" in text.splitlines()[0] and "[options]" in text.splitlines()[0]
    assert not re.search(
        r"\[(TEXT|N|X|NAME|true)|0\.6666|Options|LanguageOptimizer|default: (False|None)\)",
        text,
    )
    if program == "main.py":
        titles = [line for line in text.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
        assert titles == ["Data:", "Model:", "Optimizer:", "Decay:", "Moving average:", "Run:"]
        assert "smallest multiplier of the linear rule (default: 0.667)" in text
