"""Planting a fault in a copy of the project, and running the tests that must notice it there.

Nothing of the project may be imported here: pytest is run in processes that are forked from one that has imported the
large libraries, which saves most of the time, and those must find the project in the copy.
"""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from faults_planted.fault import Fault

ROOT = Path(__file__).resolve().parent.parent.parent
CAUGHT, SURVIVED, STALE, HANGS = "caught", "SURVIVED", "STALE", "HANGS"
PATIENCE = 900.0  # seconds that the tests of one fault may take
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.M)
LIBRARIES = (
    "pytest", "torch", "torch.distributed.tensor", "torchvision.datasets", "timm.data", "timm.optim", "timm.models",
    "matplotlib.figure", "scipy.stats", "statsmodels.stats.multitest", "sklearn.datasets", "jinja2", "yaml", "fsspec",
    "transformers.models.llama.modeling_llama", "torch.utils.tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    name: str
    verdict: str
    by: str  # the first test that failed; else what is wrong
    seconds: float
    slow: bool = False


class Stale(Exception):
    """An entry that does not fit the code or the tests; the message says why."""


def tracked_files(root: Path) -> list[str]:
    """The files that git tracks and that are there, by their paths below the root."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (root / name).exists()]


def copy_tree(root: Path, files: Sequence[str], to: Path) -> None:
    """Copy files with the folders that they are in."""
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, to / name, follow_symlinks=False)


def plant(fault: Fault, tree: Path) -> None:
    """Put the fault into a file; raises Stale unless the old text stands there once."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if (count := text.count(fault.old)) != 1:
        raise Stale(f"{fault.file} has the old text {count} times")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def run_tests(tree: Path, node_ids: Sequence[str], patience: float) -> tuple[int | None, str]:
    """Exit status of pytest in a tree, None if it took too long, and what it printed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # of processes that are ended
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    with tempfile.NamedTemporaryFile("r", prefix="planted_", errors="replace") as printed:
        process = context.Process(target=_pytest, args=(str(tree), list(node_ids), printed.name))
        process.start()
        try:
            process.join(patience)
        finally:
            ended = not process.is_alive()
            stop_tests(process)
        return process.exitcode if ended else None, printed.read()


def stop_tests(*processes: BaseProcess) -> None:
    """End processes that run tests, and what they started; all of them where none is named."""
    for process in processes or multiprocessing.active_children():
        process.kill()
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _pytest(tree: str, node_ids: list[str], printed: str) -> None:
    """Run pytest in a process of its own, which sees the tree and not the project that this file is of."""
    os.setsid()
    descriptor = os.open(printed, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": tree, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    sys.dont_write_bytecode = True
    sys.path[:] = [
        tree,
        *(
            path
            for path in sys.path
            if path not in ("", str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers"))
        ),
    ]
    import pytest

    options = ["-x", "-q", "-n0", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-m", "not proof"]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # plugins, by LIBRARIES
    status = pytest.main([*options, *node_ids])
    sys.stdout.flush()
    os._exit(int(status))  # threads that a test left behind are not waited for


def judged(status: int | None, printed: str) -> tuple[str, str]:
    """Verdict and what stands behind it, from pytest's exit status and words."""
    if status is None:
        return HANGS, "the tests took too long"
    if status == 0:
        return SURVIVED, "all tests passed"
    if status < 0:
        return CAUGHT, f"the tests' process was ended by signal {-status}"
    found = FAILED.search(printed)
    if status == 1 and found:
        return CAUGHT, found[1]
    lines = [line for line in printed.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no word")
    return STALE, f"pytest ended with {status}: {said}"


def try_fault(fault: Fault, root: Path, files: Sequence[str], patience: float = PATIENCE) -> Outcome:
    """Plant a fault in a copy of the files and run its tests there."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted_", ignore_cleanup_errors=True) as folder:
        tree = Path(folder).resolve()
        copy_tree(root, files, tree)
        try:
            plant(fault, tree)
            verdict, by = judged(*run_tests(tree, fault.node_ids, patience))
        except Stale as reason:
            verdict, by = STALE, str(reason)
    return Outcome(fault.name, verdict, by, round(time.monotonic() - began, 1), fault.slow)


def passes_unplanted(faults: Sequence[Fault], root: Path, files: Sequence[str]) -> Outcome:
    """How the tests of these faults end where nothing is planted; what fails there too proves nothing."""
    began = time.monotonic()
    tests = dict.fromkeys(test for fault in faults for test in fault.node_ids)
    with tempfile.TemporaryDirectory(prefix="planted_", ignore_cleanup_errors=True) as folder:
        tree = Path(folder).resolve()
        copy_tree(root, files, tree)
        verdict, by = judged(*run_tests(tree, list(tests), PATIENCE * len(faults)))
    return Outcome("(nothing planted)", verdict, by, round(time.monotonic() - began, 1))
