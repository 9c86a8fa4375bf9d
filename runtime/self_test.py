"""Tests that resuming with the user's options is bitwise reproducible: compares one run with a run in two parts."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime import runfolder
from runtime.checkpoints import Checkpoint, find_checkpoint
from runtime.errors import SelfTestFailed, UserError
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.tables import say, table

STEPS = 8  # of the test, unless --max_steps is given
TIMES = (
    "seconds",
    "train_seconds",
    "decay_seconds",
    "tokens_per_second",
    "mfu",
    "wandb_id",
)  # may differ between the runs
SHOWN_LINES = 15


def self_test(command: Sequence[str], options: RunOptions, ranks: Ranks, harmless: Sequence[str] = ()) -> None:
    """Run a trainer's command three times in separate processes and compare the results bitwise.

    The first run takes all steps, the second stops before half of them, the third resumes the second. Every rank starts
    its own process of each run.

    Args:
        command: The trainer's sys.argv.
        options: The trainer's options; --max_steps gives the number of steps.
        ranks: The process group.
        harmless: Options of the third run that should not change results, such as another --num_workers.

    Raises:
        UserError: If a run fails, or the folder for the runs exists.
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
        (f"{steps} steps in one run", run_to(whole, steps)),
        (f"{middle} steps", run_to(parts, middle)),
        (f"steps {middle + 1} to {steps}", [*run_to(parts, steps), "--resume", str(parts), *harmless]),
    ):
        if ranks.is_main:
            say(f"self-test: {label}")
        _run(command, words, ranks, label)
    different = ranks.from_main(lambda: _compare(whole, parts))
    if different:
        again = folder / "again"
        if ranks.is_main:
            say("self-test: all steps again, to see whether the same run twice is identical")
        _run(command, run_to(again, steps), ranks, f"{steps} steps again")
        ranks.from_main(lambda: _explain(different, differences(whole, again), folder))
    ranks.from_main(lambda: shutil.rmtree(folder))
    if ranks.is_main:
        say("\nresuming is exact: only times differ")


def run_to(folder: Path, step: int) -> list[str]:
    """Options that make a command start a new run in a folder and stop at a step."""
    new_run = ["--resume", "", "--no_self_test_resume", "--no_enable_wandb", "--no_overwrite"]
    return [*new_run, "--output_dir", str(folder), "--max_steps", str(step)]


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} exists, perhaps from an interrupted self-test; remove it first")


def _run(command: Sequence[str], words: Sequence[str], ranks: Ranks, label: str) -> None:
    """Run the command with further arguments, as this rank of a separate process group."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    if ranks.count > 1:
        environment["MASTER_PORT"] = str(ranks.from_main(_free_port))
    completed = subprocess.run(
        [sys.executable, *command, *words], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    failed = [
        (status, output) for status, output in ranks.gather((completed.returncode, completed.stdout)) if status != 0
    ]
    if failed:
        status, output = failed[0]
        last = "\n".join(output.splitlines()[-SHOWN_LINES:])
        raise UserError(f"--self_test_resume: the run of {label} ended with status {status}", details=last)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _compare(whole: Path, parts: Path) -> dict[str, str]:
    """Print a table of the comparison; returns what differs, as `differences`."""
    compared = paired_values(whole, parts)
    different = differences(whole, parts)
    rows = [(name, len(pairs), different.get(name, "identical")) for name, pairs in compared.items()]
    say("\n" + table(["compared", "values", "one run and two parts"], rows))
    return different


def _explain(resumed: Mapping[str, str], repeated: Mapping[str, str], folder: Path) -> None:
    """Raise SelfTestFailed: resuming changed something, or the same steps give other results each time."""
    if not repeated:
        raise SelfTestFailed(f"resuming changed {', '.join(resumed)}; the runs are kept in {folder}")
    raise SelfTestFailed(
        f"not reproducible on this device: the same steps twice differ in {', '.join(repeated)}, so resuming cannot be "
        f"tested; --deterministic may help; the runs are kept in {folder}"
    )


def differences(whole: Path, parts: Path) -> dict[str, str]:
    """The first difference in each part of two runs' last checkpoints, logs and decay logs; times are not compared."""
    first = {name: first_difference(pairs) for name, pairs in paired_values(whole, parts).items()}
    return {name: difference for name, difference in first.items() if difference}


def paired_values(whole: Path, parts: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """For each compared part, by name: the name of each value, and the value in both runs."""
    compared: dict[str, list[tuple[str, Any, Any]]] = {}
    runs = [(folder, find_checkpoint(folder)[0]) for folder in (whole, parts)]
    contents = [_contents(folder, checkpoint) for folder, checkpoint in runs]
    for name in contents[0]:
        first, second = (dict(leaves(content[name])) for content in contents)
        compared[name] = [(key, first.get(key), second.get(key)) for key in {**first, **second}]
    return compared


def _contents(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    state = checkpoint.training_state()
    contents = {
        "step": checkpoint.step,
        "weights": checkpoint.model_weights(),
        "EMA weights": checkpoint.ema_weights() or {},
        "optimizer and decay": state.pop("optimizer"),
        "random states": state.pop("random"),
        "counts and best metrics": {key: value for key, value in state.items() if key not in TIMES},
    }
    for name in (runfolder.LOG, runfolder.DECAY_LOG):
        rows = runfolder.read_rows(folder / name)
        contents[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return contents


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of all items in nested dicts, lists and tuples."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}[{index}]")
    else:
        yield name or "value", value


def first_difference(pairs: Sequence[tuple[str, Any, Any]]) -> str:
    """A description of the first difference between two runs, or "". Tensors are compared bitwise."""
    for name, first, second in pairs:
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            same = first.dtype == second.dtype and first.shape == second.shape and _bits(first) == _bits(second)
        else:
            same = first == second
        if not same:
            return f"{name} differs" if isinstance(first, torch.Tensor) else f"{name}: {first} and {second}"
    return ""


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
