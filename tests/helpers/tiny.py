"""The smallest runs of main.py that still go through everything."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import Ended, forked

import main as program
from runtime.errors import exit_status

ROOT = Path(__file__).parents[2]
TINY = (
    "--data_set digits --input_size 16 --model vit_tiny_patch16_224 --model_kwargs patch_size=8 embed_dim=64 "
    "depth=2 num_heads=2 --drop_path 0.1 --batch_size 240 --epochs 2 --warmup_epochs 1 --lr 1e-3 --optimizer adamw "
    "--weight_decay 0.05 --decay alphadecay --decay_interval 3 --aa none --reprob 0.25 --num_workers 0 "
    "--model_ema --model_ema_decay 0.9 --model_ema_warmup --model_ema_eval"
).split()  # 5 optimizer steps an epoch


def run(*words: str, monkeypatch, draw: bool = False) -> int:
    """main.py in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["main.py", *map(str, words)])
    with drawing(draw):
        return exit_status(program.main)


@contextmanager
def drawing(draw: bool):
    """Without figures, which take longer to draw than these runs take to train."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not draw:
            monkeypatch.setattr("runtime.trainer.Trainer._figures", lambda *_: {})
        yield


def run_apart(*words: str) -> Ended:
    """main.py in a process of its own."""
    return forked(1, *words)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
