"""What an evaluation leaves: a file with every figure, and what was evaluated on what."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import runfolder
from runtime.checkpoints import EMA, MODEL, sha256
from runtime.errors import UserError
from runtime.run_options import RunOptions
from runtime.start import Start

KIND = "evaluation"  # what the file says it is


def results_file(options: RunOptions, start: Start) -> Path | None:
    """Where an evaluation's figures go: --results_file, else evaluation.json in the run's folder, if it is a run's.

    Raises:
        UserError: If something else lies there.
    """
    if not options.results_file and start.checkpoint is None:
        return None
    path = Path(options.results_file or start.folder / runfolder.EVALUATION)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--results_file {path}: is a folder, or its folder is not there")
    if path.exists() and not options.overwrite and not _is_evaluation(path):
        raise UserError(f"--results_file {path}: holds something else than an evaluation; --overwrite replaces it")
    return path


def _is_evaluation(path: Path) -> bool:
    try:
        return runfolder.read_json(path, "an evaluation").get("kind") == KIND
    except UserError:
        return False


def write_results(path: Path, start: Start, options: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write the figures of an evaluation with the options, the weights' SHA-256, the command and versions."""
    checkpoint = start.checkpoint
    files = [] if checkpoint is None else [checkpoint.path / name for name in (MODEL, EMA)]
    weights = {str(file): sha256(file) for file in files if file.exists()}
    step = None if checkpoint is None else checkpoint.step
    content = {"kind": KIND, "step": step, "figures": dict(figures), "weights_sha256": weights}
    runfolder.write_json(path, content | {"options": dict(options), "environment": runfolder.environment()})
    sys.stderr.write(f"figures of the evaluation: {path}\n")
