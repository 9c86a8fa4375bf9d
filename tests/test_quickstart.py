"""The first command of the README, as a user runs it."""

import json
import subprocess

import pytest
from tiny import ROOT


@pytest.mark.slow
def test_the_quickstart_reaches_95_percent_and_ends_with_its_tables(tmp_path):
    folder = tmp_path / "quickstart"
    command = ["bash", "scripts/quickstart.sh", "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert max(summary["acc1"], summary["acc1_ema"]) >= 95
    for words in ("raw weights", "EMA weights", "decay by role at step 1750", "attn.qkv", "mlp.fc2"):
        assert words in done.stdout
    again = subprocess.run(
        [".venv/bin/python", "main.py", "--eval", "--resume", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0 and f"{summary['acc1']:.4g}" in again.stdout
