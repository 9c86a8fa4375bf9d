"""The smallest runs of main_llama.py that still go through everything."""

import json
import re
import sys
from pathlib import Path

import pytest
from tiny import ROOT, drawing

import main_llama as program
from runtime.errors import exit_status

CONFIG = ROOT / "tests" / "helpers" / "tiny_llama.json"
TINY_TEXT = [
    *f"--dataset stdlib --model_config {CONFIG} --max_length 32 --batch_size 4 --num_training_steps 6".split(),
    *"--warmup_steps 2 --decay alphadecay --decay_interval 2 --eval_every 3 --target_eval_tokens 500".split(),
    *"--shuffle_buffer 20".split(),
]
MODULES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def run_text(*words: str, program_name: str = "main_llama.py", draw: bool = False) -> int:
    """main_llama.py in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as monkeypatch, drawing(draw):
        monkeypatch.setattr(sys, "argv", [program_name, *map(str, words)])
        return exit_status(program.main)


def printed(said: str, weights: str = "raw") -> list[float]:
    """What an evaluation prints of raw or EMA weights: perplexity, the published one, loss, ..., predicted tokens."""
    return [float(word) for word in re.search(rf"^{weights} weights +(.*)$", said, re.M)[1].split()]


def changed_config(folder: Path, **changed) -> Path:
    """The tiny config with some values changed, None for those to leave out."""
    values = json.loads(CONFIG.read_text()) | changed
    path = folder / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    return path


def task_of(*words: str, alone):
    """What a run would train, and its options."""
    options = program.read_options([str(word) for word in words])
    text = program.open_text(options.text, alone)
    program.seed_everything(options.run.seed)
    return program.build_task(options, text, alone), options
