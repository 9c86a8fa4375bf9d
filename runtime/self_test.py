"""Shows a user that their own options resume to the last bit: all steps at once against the same steps in two parts."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime import runfolder
from runtime.checkpoints import Checkpoint, find_checkpoint
from runtime.errors import SelfTestFailed, UserError
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.tables import say, table

STEPS = 8  # of the test where --max_steps does not say
TIMES = (
    "seconds",
    "train_seconds",
    "decay_seconds",
    "tokens_per_second",
    "mfu",
    "wandb_id",
)  # what may differ between the parts
SHOWN_LINES = 15


def self_test(command: Sequence[str], options: RunOptions, ranks: Ranks, harmless: Sequence[str] = ()) -> None:
    """Run a trainer's command three times in processes of their own and compare what the runs leave, bit by bit.

    The first run takes all steps, the second stops before half of them, the third goes on from there. Every rank starts
    its part of each.

    Args:
        command: The trainer's sys.argv.
        options: Its options; --max_steps gives the number of steps.
        ranks: The process group.
        harmless: Options of the third run that should not change anything, such as another --num_workers.

    Raises:
        UserError: If a run fails, or the folder for them is taken.
        SelfTestFailed: If something differs.
    """
    steps = options.max_steps or STEPS
    if steps < 2:
        raise UserError(f"--max_steps {steps}: --self_test_resume needs at least 2 steps")
    folder = Path(f"{options.output_dir}_self_test")
    ranks.from_main(lambda: _check_free(folder))
    whole, parts = folder / "whole", folder / "parts"
    middle = max(1, steps * 3 // 8)
    for label, words in (
        (f"{steps} steps at once", run_to(whole, steps)),
        (f"{middle} steps", run_to(parts, middle)),
        (f"steps {middle + 1} to {steps}", [*run_to(parts, steps), "--resume", str(parts), *harmless]),
    ):
        if ranks.is_main:
            say(f"self-test: {label}")
        _run(command, words, ranks, label)
    ranks.from_main(lambda: _compare(whole, parts, folder))


def run_to(folder: Path, step: int) -> list[str]:
    """Options for a fresh run in a folder up to a step, whatever the command said before."""
    fresh = ["--resume", "", "--no_self_test_resume", "--no_enable_wandb", "--no_overwrite"]
    return [*fresh, "--output_dir", str(folder), "--max_steps", str(step)]


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} is there already, perhaps from a self-test that was interrupted; remove it first")


def _run(command: Sequence[str], words: Sequence[str], ranks: Ranks, label: str) -> None:
    """Run the command with other words behind its own, as this rank of a process group of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    if ranks.count > 1:
        environment["MASTER_PORT"] = str(ranks.from_main(_free_port))
    done = subprocess.run(
        [sys.executable, *command, *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    failed = [each for each in ranks.gather((done.returncode, done.stdout)) if each[0] != 0]
    if failed:
        status, said = failed[0]
        last = "\n".join(said.splitlines()[-SHOWN_LINES:])
        raise UserError(f"--self_test_resume: the run of {label} ended with status {status}", details=last)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _compare(whole: Path, parts: Path, folder: Path) -> None:
    """Print a table of what was compared; the runs are deleted if all is the same."""
    compared = what_runs_leave(whole, parts)
    different = differences(whole, parts)
    rows = [(name, len(pairs), different.get(name, "same bits")) for name, pairs in compared.items()]
    say("\n" + table(["compared", "values", "in one go and in two parts"], rows))
    if different:
        raise SelfTestFailed(f"resuming changed {', '.join(different)}; both runs are kept in {folder}")
    shutil.rmtree(folder)
    say("\nresuming is exact: nothing differs but times")


def differences(whole: Path, parts: Path) -> dict[str, str]:
    """What differs between two runs' last checkpoints, logs and decay logs, times apart: its name, and where first."""
    found = {name: first_difference(pairs) for name, pairs in what_runs_leave(whole, parts).items()}
    return {name: difference for name, difference in found.items() if difference}


def what_runs_leave(whole: Path, parts: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """By name of what is compared: the name of each value and the value in both runs."""
    compared: dict[str, list[tuple[str, Any, Any]]] = {}
    runs = [(folder, find_checkpoint(folder)[0]) for folder in (whole, parts)]
    contents = [_contents(folder, checkpoint) for folder, checkpoint in runs]
    for name in contents[0]:
        ours, theirs = (dict(leaves(content[name])) for content in contents)
        compared[name] = [(key, ours.get(key), theirs.get(key)) for key in {**ours, **theirs}]
    return compared


def _contents(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.training_state()
    contents = {
        "step": checkpoint.step,
        "weights": checkpoint.model_weights(),
        "EMA weights": checkpoint.ema_weights() or {},
        "optimizer and decay": state.pop("optimizer"),
        "random states": state.pop("random"),
        "counts and best figures": {key: value for key, value in state.items() if key not in TIMES},
    }
    for name in (runfolder.LOG, runfolder.DECAY_LOG):
        rows = runfolder.read_rows(folder / name)
        contents[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return contents


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of what is not a dict, list or tuple, at any depth."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from leaves(each, f"{name}[{index}]")
    else:
        yield name or "value", value


def first_difference(pairs: Sequence[tuple[str, Any, Any]]) -> str:
    """Where two runs first differ, in words; empty if nowhere. Tensors differ if a bit of them does."""
    for name, ours, theirs in pairs:
        if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
            same = ours.dtype == theirs.dtype and ours.shape == theirs.shape and _bits(ours) == _bits(theirs)
        else:
            same = ours == theirs
        if not same:
            return f"{name} differs" if isinstance(ours, torch.Tensor) else f"{name}: {ours} and {theirs}"
    return ""


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
