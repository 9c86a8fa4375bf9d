"""How both programs begin: the frame of a command, and a run whose folder is opened and whose state is put back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import printable
from runtime.learner import Learner, restore
from runtime.locks import sole_writer
from runtime.preemption import Preemption, preemption
from runtime.processes import Ranks, process_group
from runtime.run_contract import Contract, Fixed, check_names
from runtime.run_options import RunOptions
from runtime.runfolder import Row
from runtime.seeding import seed_everything
from runtime.self_test import self_test
from runtime.session import Session
from runtime.start import Start, announce, find_start
from runtime.tables import say
from runtime.training_state import TrainingState


@dataclass(frozen=True)
class Run:
    """A run that has begun, as a rank sees it."""

    options: RunOptions
    ranks: Ranks
    session: Session | None  # of the main process; it alone writes
    state: TrainingState  # what it goes on from
    preemption: Preemption


def launch(
    options: RunOptions,
    fixed: Mapping[str, Fixed],
    command: Sequence[str],
    train: Callable[[Start, Ranks, Preemption], None],
    evaluate: Callable[[Start, Ranks], None],
    show: Callable[[Ranks], None],
    harmless: Sequence[str] = (),
) -> None:
    """Do what a program's options say, on every rank.

    Args:
        options: Of the run.
        fixed: What a run cannot change when it goes on.
        command: The program and its words, for --self_test_resume.
        train, evaluate, show: What the program does for a run, --eval and --dry_run.
        harmless: For --self_test_resume, as in `runtime.self_test`.
    """
    check_names(options.allow_changed, fixed)
    with process_group(options.device) as ranks:
        if options.self_test_resume:
            self_test(command, options, ranks, harmless)
            return
        with sole_writer(options, ranks):
            start = find_start(options, ranks)
            announce(start, options, ranks)
            if options.eval:
                evaluate(start, ranks)
            elif options.dry_run:
                show(ranks)
            else:
                with preemption(ranks) as noted:
                    train(start, ranks, noted)


def begin(
    what: tuple[str, str],
    learner: Learner,
    options: RunOptions,
    config: Row,
    contract: Contract,
    start: Start,
    ranks: Ranks,
    noted: Preemption,
) -> Run:
    """Put the checkpoint's state back, say what is trained, and open the run's folder.

    Args:
        what: The names of the model and of its data.
        config: Every option, for config.json.

    Raises:
        UserError: If something keeps the run from beginning; on all ranks alike.
    """
    seed_everything(options.seed, ranks.rank)  # each rank drops out its own
    state = restore(learner, start.checkpoint, ranks) if start.checkpoint else TrainingState()
    if ranks.is_main:
        say(introduction(what, learner, options, ranks))
    opened: list[Session] = []
    ranks.from_main(lambda: opened.append(Session(options, start, config, state.written, contract)))
    return Run(options, ranks, opened[0] if opened else None, state, noted)


def introduction(what: tuple[str, str], learner: Learner, options: RunOptions, ranks: Ranks) -> str:
    """What is trained, on which devices, and where it is written."""
    size = sum(p.numel() for p in learner.plain.parameters())
    device = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
    precision = "float32" if options.amp == "none" else f"{options.amp} with float32 weights"
    (model, data), where = what, printable(options.output_dir)
    return f"training {model} ({size:,} parameters) on {data}; {device}, {precision}; writes to {where}"
