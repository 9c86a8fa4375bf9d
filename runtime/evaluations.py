"""The results file of an evaluation: all metrics, and the weights and data they belong to."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime import runfolder
from runtime.checkpoints import EMA, MODEL, sha256
from runtime.errors import UserError
from runtime.run_options import RunOptions
from runtime.start import Start

KIND = "evaluation"  # value of "kind" in the file


def results_file(options: RunOptions, start: Start) -> Path | None:
    """The file for an evaluation's metrics: --results_file, else evaluation.json in the run folder, else None.

    Raises:
        UserError: If the path cannot be written or another file is there.
    """
    if not options.results_file and start.checkpoint is None:
        return None
    path = Path(options.results_file or start.folder / runfolder.EVALUATION)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--results_file {path}: is a folder, or its folder does not exist")
    if path.exists() and not options.overwrite and not _is_evaluation(path):
        raise UserError(f"--results_file {path}: is not the result of an evaluation; --overwrite replaces it")
    return path


def _is_evaluation(path: Path) -> bool:
    try:
        return runfolder.read_json(path, "an evaluation").get("kind") == KIND
    except UserError:
        return False


def write_results(path: Path, start: Start, options: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write the metrics of an evaluation with the options, the weights' SHA-256, the command and versions."""
    checkpoint = start.checkpoint
    files = [] if checkpoint is None else [checkpoint.path / name for name in (MODEL, EMA)]
    weights = {str(file): sha256(file) for file in files if file.exists()}
    step = None if checkpoint is None else checkpoint.step
    content = {"kind": KIND, "step": step, "figures": dict(metrics), "weights_sha256": weights}
    runfolder.write_json(path, content | {"options": dict(options), "environment": runfolder.environment()})
    sys.stderr.write(f"metrics of the evaluation: {path}\n")
