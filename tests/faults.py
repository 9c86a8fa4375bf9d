"""Real processes, real signals: a run is hit at random moments, goes on each time, and in the end to its end.

python tests/faults.py --signal KILL --hits 20 --processes 2
python tests/faults.py --program main_llama.py --sharded --phases writing --hits 20 --processes 2

Its last checkpoint, log and ledger must have the bits of a run that nothing hit. Each process is forked from this one,
which has imported everything already but computed nothing; otherwise it is as torchrun would start it.
"""

import argparse
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import main
import main_llama
from alphadecay.analysis import Measurement
from llama.run import TextTraining
from runtime import runfolder, self_test, session, sharded_checkpoints, trainer
from runtime.checkpoints import find_checkpoint, has_checkpoints
from runtime.errors import EXIT_PREEMPTED, exit_status
from runtime.tables import say, table
from vision.run import ImageTraining

for _name in ("distributed.fsdp", "utils.tensorboard"):  # which every process would import for itself
    import_module(f"torch.{_name}")
import_module("transformers.models.llama.modeling_llama")

PHASES = ("training", "evaluating", "refreshing", "writing")
LONGEST_DELAY = {"training": 0.1, "evaluating": 0.02, "refreshing": 0.001, "writing": 0.005}  # seconds after it began
SHARDED, FILES = ["--fsdp", "--sharded_checkpoints"], 5  # options, and the files of their checkpoint by two processes
LEFT = "__9_9.distcp"  # put into what a hit left of a checkpoint, to see that the next start removes it
PATIENCE = 60.0  # seconds until a process that should end counts as hanging
WORDS = (
    "--data_set digits --input_size 16 --model vit_tiny_patch16_224 --model_kwargs patch_size=8 embed_dim=64 depth=2 "
    "num_heads=2 --drop_path 0.1 --warmup_epochs 1 --lr 1e-3 --optimizer adamw --weight_decay 0.05 "
    "--decay alphadecay --decay_interval 3 --aa none --reprob 0.25 --num_workers 0 "
    "--update_freq 2 --model_ema --model_ema_decay 0.9 --model_ema_eval --checkpoint_every 2 --save_ckpt_num 2 "
    "--resume auto --device cpu"
).split()  # 5 optimizer steps an epoch
TEXT_WORDS = (
    f"--dataset stdlib --model_config {Path(__file__).parent / 'helpers' / 'tiny_llama.json'} --max_length 32 "
    "--total_batch_size 16 --warmup_steps 10 --decay alphadecay --decay_interval 3 "
    "--clip_grad 1 --eval_every 5 --target_eval_tokens 2000 --shuffle_buffer 50 --checkpoint_every 2 "
    "--save_ckpt_num 2 --resume auto --device cpu"
).split()


@dataclass(frozen=True)
class Program:
    """What is hit: a trainer's `main`, the options of its run, and its global batch without accumulation."""

    main: Callable[[], None]
    words: Sequence[str]
    batch: int
    length: tuple[str, int]  # the option that says how long it trains, and what 5 optimizer steps are there


PROGRAMS = {
    "main.py": Program(main.main, WORDS, 140, ("--epochs", 1)),
    "main_llama.py": Program(main_llama.main, TEXT_WORDS, 8, ("--num_training_steps", 5)),
}


@dataclass
class Run:
    """Processes of one run and what they have said of themselves."""

    pids: list[int]
    reports: int  # descriptor to read from
    active: set[str] = field(default_factory=set)
    step: int = 0
    text: str = ""

    def listen(self, until: Callable[[str], bool]) -> bool:
        """Follow the reports until one is as wished; False if the run ended before."""
        while True:
            line, newline, rest = self.text.partition("\n")
            if newline:
                self.text = rest
                self._note(line)
                if until(line):
                    return True
                continue
            if not select.select([self.reports], [], [], PATIENCE)[0]:
                raise SystemExit("a run is hanging")
            read = os.read(self.reports, 65536)
            if not read:
                return False
            self.text += read.decode()

    def catch_up(self) -> None:
        """Read what has been said until now."""
        while select.select([self.reports], [], [], 0)[0] and (read := os.read(self.reports, 65536)):
            self.text += read.decode()
        *lines, self.text = self.text.split("\n")
        for line in lines:
            self._note(line)

    def _note(self, line: str) -> None:
        if line.startswith("step "):
            self.step = int(line[5:])
        elif line.startswith("+"):
            self.active.add(line[1:])
        else:
            self.active.discard(line[1:])

    def statuses(self, patience: float = PATIENCE) -> list[int]:
        """Exit status of each process, minus the signal's number if one killed it; `patience` is in seconds."""
        deadline, left, found = time.monotonic() + patience, dict(enumerate(self.pids)), {}
        while left:
            for rank, pid in list(left.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    found[rank] = os.waitstatus_to_exitcode(status)
                    del left[rank]
            if time.monotonic() > deadline:
                for pid in left.values():
                    os.kill(pid, signal.SIGKILL)
                raise SystemExit(f"ranks {list(left)} did not end")
            time.sleep(0.01)
        os.close(self.reports)
        return [found[rank] for rank in sorted(found)]


def start(name: str, words: Sequence[str], processes: int, log: Path) -> Run:
    """Fork the processes of a run; they append what they print to `log`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    reader, writer = os.pipe()
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _be_rank(name, rank, processes, port, words, writer, log)
        pids.append(pid)
    os.close(writer)
    return Run(pids, reader)


def _be_rank(name: str, rank: int, processes: int, port: int, words: Sequence[str], writer: int, log: Path) -> None:
    """What a forked process does; never returns."""
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if processes > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                MASTER_ADDR="localhost", MASTER_PORT=str(port),
            )  # fmt: skip
        torch.set_num_threads(1)
        trainer.Trainer._figures = lambda *_: {}  # type: ignore[method-assign]  # slower than the training
        if rank == 0:
            report_phases(lambda line: os.write(writer, f"{line}\n".encode()), SHARDED[-1] in words)
        sys.argv = [name, *words]
        status = exit_status(PROGRAMS[name].main)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)


def report_phases(report: Callable[[str], Any], sharded: bool) -> None:
    """Let the program say when it enters and leaves a phase, and which step it has taken.

    If checkpoints are `sharded`, writing begins when the process writes its own part.
    """

    def announced(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            report(f"+{phase}")
            try:
                return function(*args, **named)
            finally:
                report(f"-{phase}")

        return call

    for run in (ImageTraining, TextTraining):
        run.take_steps = announced("training", run.take_steps)  # type: ignore[method-assign]
        run.evaluate = announced("evaluating", run.evaluate)  # type: ignore[method-assign]
    Measurement.run = announced("refreshing", Measurement.run)  # type: ignore[method-assign]
    if sharded:
        writer = sharded_checkpoints.ShardWriter
        writer._write = announced("writing", writer._write)  # type: ignore[method-assign]
    else:
        session.write_checkpoint = announced("writing", session.write_checkpoint)
    counted = trainer.Trainer.after_step

    def after_step(self: Any, step: int, loss: Any) -> bool:
        report(f"step {step}")
        return counted(self, step, loss)

    trainer.Trainer.after_step = after_step  # type: ignore[method-assign]


def hit_once(
    run: Run, number: int, phase: str, wait: Callable[[], None], left: Sequence[Path], dice: random.Random
) -> tuple[str, int] | None:
    """Send a signal at a random moment of a phase, to one rank or all; what it met, or None if the run was done.

    The moment is when `wait`, called as the phase begins, returns; the files `left` must have been removed before.
    """
    times = dice.randint(1, 2)

    def begun(line: str) -> bool:
        nonlocal times
        if remaining := [path for path in left if path.exists()]:
            raise SystemExit(f"the next start left {remaining}")
        times -= line == f"+{phase}"
        return times == 0

    if not run.listen(begun):
        return None
    wait()
    run.catch_up()
    met = phase if phase in run.active else "training"
    for pid in run.pids if dice.random() < 0.5 else [dice.choice(run.pids)]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return met, run.step


def hit_until_done(
    name: str,
    number: int,
    hits: int,
    processes: int,
    seed: int,
    folder: Path,
    phases: Sequence[str] = PHASES,
    sharded: bool = False,
) -> list[list[Any]]:
    """Hit a run `hits` times and let it go on each time, then compare with a run that was left alone.

    Args:
        phases: In which it is hit, in turn.
        sharded: Whether each process writes its part of a checkpoint.

    Returns:
        Rows of phase, hits in it, and most optimizer steps from a signal to the checkpoint it led to.

    Raises:
        SystemExit: If anything is not as it should be.
    """
    dice, met_in, latency = random.Random(seed), Counter(), dict.fromkeys(PHASES, 0)
    program = PROGRAMS[name]
    words = [*program.words, *(SHARDED if sharded else ()), "--batch_size", str(program.batch // processes)]
    longer = 1 + hits if list(phases) == ["writing"] else 4 + hits * 13 // 10  # a hit costs up to 7 steps, or 4
    words += [program.length[0], str(program.length[1] * longer)]
    left_alone, hit = folder / "left_alone", folder / "hit"
    untouched = start(name, [*words, "--output_dir", str(left_alone)], processes, folder / "log")
    expect([0] * processes, untouched.statuses(PATIENCE * longer))
    for turn in range(hits):
        left, phase = mark_what_is_left(hit), phases[turn % len(phases)]
        run = start(name, [*words, "--output_dir", str(hit)], processes, folder / "log")
        run.step = find_checkpoint(hit)[0].step if has_checkpoints(hit) else 0
        if sharded and phase == "writing":
            wait = partial(wait_for_files, hit, dice.randint(0, FILES))
        else:
            wait = partial(time.sleep, dice.uniform(0, LONGEST_DELAY[phase]))
        met = hit_once(run, number, phase, wait, left, dice)
        statuses = run.statuses()
        if met is None:
            raise SystemExit(f"the run was done after {turn} hits, see {folder / 'log'}")
        met_in[met[0]] += 1
        if has_checkpoints(hit) and (broken := find_checkpoint(hit)[1]):
            raise SystemExit(f"the newest checkpoint is not whole: {broken}")
        if number != signal.SIGKILL:
            expect([EXIT_PREEMPTED] * processes, statuses)
            latency[met[0]] = max(latency[met[0]], find_checkpoint(hit)[0].step - met[1])
            if latency[met[0]] > processes:  # the step in which it came and, to agree with another process, one more
                raise SystemExit(f"saved {latency[met[0]]} steps after the signal")
            if not (hit / runfolder.REQUEUE).exists():
                raise SystemExit("no REQUEUE file was left")
    last = start(name, [*words, "--output_dir", str(hit)], processes, folder / "log")
    expect([0] * processes, last.statuses(PATIENCE * longer))
    if (hit / runfolder.REQUEUE).exists():
        raise SystemExit("the REQUEUE file is still there")
    different = self_test.differences(left_alone, hit)
    if different:
        raise SystemExit(f"not the same: {different}")
    return [[phase, met_in[phase], latency[phase] if number != signal.SIGKILL else None] for phase in PHASES]


def wait_for_files(run_folder: Path, count: int) -> None:
    """Return when the checkpoint that is being written has this many files or is complete, within 2 s."""
    deadline, most = time.monotonic() + 2.0, 0
    while most < count and time.monotonic() < deadline:
        files = len(list(run_folder.glob("checkpoints/.step_*.tmp/*")))
        if files < most:
            return
        most = files


def mark_what_is_left(run_folder: Path) -> list[Path]:
    """Put a file into each checkpoint that a hit left half-written; returns these files."""
    marks = [folder / LEFT for folder in run_folder.glob("checkpoints/.step_*.tmp")]
    for mark in marks:
        mark.touch()
    return marks


def expect(wanted: Sequence[int], found: Sequence[int]) -> None:
    """Exit statuses of all ranks."""
    if list(wanted) != list(found):
        raise SystemExit(f"exit statuses {found}, not {wanted}")


def hit() -> None:
    """Read the options, hit a run, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", choices=tuple(PROGRAMS), default="main.py")
    parser.add_argument("--signal", choices=("KILL", "TERM", "USR1"), default="KILL")
    parser.add_argument("--hits", type=int, default=20)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--sharded", action="store_true", help="main_llama.py: each process writes its part")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    began = time.monotonic()
    number = getattr(signal, f"SIG{options.signal}")
    given = (options.program, number, options.hits, options.processes, options.seed, folder)
    rows = hit_until_done(*given, options.phases, options.sharded)
    say(table(["hit while", "times", "most steps until saved"], rows))
    say(f"{options.hits} x SIG{options.signal}, {options.processes} process(es), {time.monotonic() - began:.0f} s:")
    say("the same bits as the run that was left alone; no line of log or ledger doubled or missing")
    shutil.rmtree(folder)


if __name__ == "__main__":
    hit()
