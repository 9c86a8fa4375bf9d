"""Compare weight decay strategies over base decays and seeds: runs, then a table, figures and a verdict.

python compare.py --preset quick
python compare.py --config scripts/compare/llama_c4_adam.yaml --output_dir runs/llama_c4 --submit slurm
"""

import sys

from comparison.options import PRESETS, CompareOptions, read_options
from runtime.errors import Preempted, RunsFailed, UserError, exit_status
from runtime.extras import answered, require_extra

if __name__ == "__main__":  # answers --help and wrong options before torch and timm are loaded, which takes seconds
    if mistaken := answered("compare.py", read_options, sys.argv[1:]):
        sys.exit(mistaken)

import runtime.openmp  # noqa: F401  before torch

# isort: split
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from comparison.board import Board, show_failures, show_runs
from comparison.grid import Grid, read_grid
from comparison.results import (
    BROKEN,
    DAMAGED,
    FINISHED,
    WAITING,
    Run,
    at_rest,
    check_same,
    claim,
    forget_failure,
    read_runs,
)
from comparison.running import places, rehearse, run_here
from runtime.tables import say


@dataclass(frozen=True)
class Machine:
    """The resources of this machine that runs may use."""

    gpus: Sequence[str]
    jobs: int  # runs at once
    threads: int | None  # per run; None: torch chooses


def main() -> None:
    """Check the whole comparison, do its runs, and report."""
    options = read_options(sys.argv[1:])
    require_extra("compare.py", "compare")
    grid = read_grid(PRESETS[options.preset] if options.preset else Path(options.config))
    root = Path(options.output_dir or f"runs/compare_{grid.source.stem}").absolute()
    machine = this_machine(options, grid)
    runs = read_runs(grid, root)
    check_same(runs, machine.threads, starting=not (options.report_only or options.dry_run))
    if options.dry_run:
        show_runs(runs)
        return
    if options.report_only:
        report(grid, root)
        return
    if options.submit:
        from comparison.cluster import executor_for

        executor_for(options.submit, root, grid.slurm)  # checks the parameters before anything is written
    check_folder(root)
    prepare(grid, runs, root, machine, options.retry_failed)
    with ended_by_signals():
        do_runs(grid, runs, root, machine, options.submit)
    require_finished(report(grid, root))


def this_machine(options: CompareOptions, grid: Grid) -> Machine:
    """GPUs, number of runs at once, and threads per run."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [gpu for gpu in visible.split(",") if gpu] if visible else list(map(str, range(torch.cuda.device_count())))
    own_choice = options.threads or gpus or options.submit == "slurm"  # a cluster's nodes may have GPUs
    threads = options.threads if own_choice else 1
    cores = len(os.sched_getaffinity(0)) // (threads or 1)
    return Machine(gpus, options.jobs or max(1, (len(gpus) or cores) // grid.processes), threads)


def check_folder(root: Path) -> None:
    """Raise UserError if the comparison's folder, or one of its parents, is not a folder; writes nothing."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--output_dir {root}: is a file, or is inside one")


def prepare(grid: Grid, runs: Sequence[Run], root: Path, machine: Machine, retry_failed: bool) -> None:
    """Build one run of each new setting without training; then write each run's identity into its folder.

    Raises:
        UserError: If a run cannot be built, or a folder cannot be written.
    """
    (place,) = places(1, machine.threads, machine.gpus, grid.processes)
    for setting in grid.settings:
        members = [run for run in runs if run.spec.setting.name == setting.name]
        if not any(run.folder.exists() for run in members):
            say(f"trying out {setting.name}")
            rehearse(members, place)
    claim(runs, machine.threads)
    keep_source(grid, root)
    for run in runs:
        if retry_failed and run.state == BROKEN:
            forget_failure(run)


def keep_source(grid: Grid, root: Path) -> None:
    """Copy the grid's file into the comparison's folder, if it is not there yet."""
    kept = root / "grid.yaml"
    try:
        content = grid.source.read_bytes()
        if not kept.exists() or kept.read_bytes() != content:
            kept.write_bytes(content)
    except OSError as error:
        raise UserError(f"--output_dir {root}: cannot be written: {error}") from error


def do_runs(grid: Grid, runs: Sequence[Run], root: Path, machine: Machine, submit: str | None) -> None:
    """Start or resume the runs that have neither finished nor failed, and wait for their end."""
    todo = [run for run in runs if run.state not in (FINISHED, BROKEN)]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them ended before; folder: {root}")
    if not todo:
        return
    if submit is None:
        where = places(machine.jobs, machine.threads, machine.gpus, grid.processes)
        run_here(todo, where, Board(runs, machine.jobs))
        return
    from comparison.cluster import run_on_cluster

    (node,) = places(1, machine.threads, (), 1)  # the cluster assigns the GPUs
    with Board(runs, len(todo)) as board:
        run_on_cluster(submit, todo, root, grid.slurm, node, board)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end the comparison as Ctrl-C does, but with exit status 75."""

    def end(number: int, _: FrameType | None) -> None:
        raise Preempted(f"{signal.Signals(number).name}; the same command continues")

    handled = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(grid: Grid, root: Path) -> list[Run]:
    """Write report/, print its table and verdict, and return the runs as they were read for it.

    Raises:
        UserError: If no run has begun, or the report cannot be written.
    """
    from comparison.report import summary_text, write_report

    runs = at_rest(read_runs(grid, root))
    if all(run.state == WAITING for run in runs):
        raise UserError(f"--output_dir {root}: has no run of {grid.source}")
    write_report(grid, runs, root, root / "report")
    show_failures(runs)
    say(summary_text(grid, runs))
    say(f"\nreport: {root / 'report' / 'report.html'}")
    return runs


def require_finished(runs: Sequence[Run]) -> None:
    """Raise RunsFailed if runs have failed, are damaged, or have not finished."""
    failed = [run for run in runs if run.state == BROKEN]
    damaged = [run for run in runs if run.state == DAMAGED]
    left = [run for run in runs if run.state not in (FINISHED, BROKEN, DAMAGED)]
    if damaged:
        others = f"{len(failed)} failed, {len(left)} are not done"
        raise RunsFailed(f"{len(damaged)} runs are damaged, {others}; to repeat a damaged run, delete its folder")
    if failed or left:
        advice = "--retry_failed resumes failed runs" if failed else "the same command continues"
        raise RunsFailed(f"{len(failed)} runs failed, {len(left)} are not done; {advice}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
