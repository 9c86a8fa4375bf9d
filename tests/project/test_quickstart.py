"""The first command of the README, as a user runs it."""

import json
import subprocess

import pytest
from tiny import ROOT


def quickstart(folder, *more):
    """What scripts/quickstart.sh says, and its run's summary."""
    command = ["bash", "scripts/quickstart.sh", "--output_dir", str(folder), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_a_short_quickstart_ends_with_its_tables_and_is_evaluated_again(tmp_path):
    said, summary = quickstart(tmp_path / "run", "--epochs", "3", "--warmup_epochs", "1", "--decay_interval", "50")
    assert max(summary["acc1"], summary["acc1_ema"]) >= 20  # of ten digits, after 135 steps: chance is 10
    for words in ("raw weights", "EMA weights", "decay by role at step 100", "attn.qkv", "mlp.fc2"):
        assert words in said
    command = [".venv/bin/python", "main.py", "--eval", "--resume", str(tmp_path / "run")]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and f"{summary['acc1']:.4g}" in again.stdout


@pytest.mark.proof
def test_the_quickstart_reaches_95_percent(tmp_path):
    said, summary = quickstart(tmp_path / "run")
    assert max(summary["acc1"], summary["acc1_ema"]) >= 95 and "decay by role at step 1750" in said
