"""Start of both programs: what a command does, and a run whose folder is open and whose state is restored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import printable
from runtime.learner import Learner, restore
from runtime.locks import sole_writer
from runtime.precision import nondeterminism_as_user_error, prepare_environment, set_precision
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
class StartedRun:
    """A run whose folder is open and whose state is restored, on one rank."""

    options: RunOptions
    ranks: Ranks
    session: Session | None  # None on all ranks but the main process, which alone writes
    state: TrainingState  # the state it resumes from
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
    """Train, evaluate (--eval), show the groups (--dry_run) or test resuming (--self_test_resume), on every rank.

    Args:
        options: The run's options.
        fixed: The options that must not change when a run resumes.
        command: The program and its arguments, for --self_test_resume.
        train, evaluate, show: The program's functions for a run, --eval and --dry_run.
        harmless: For --self_test_resume, as in `runtime.self_test`.
    """
    check_names(options.allow_changed, fixed)
    prepare_environment(options)
    with process_group(options.device, options.timeout) as ranks, nondeterminism_as_user_error(options):
        set_precision(options, ranks.device)
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
                with preemption(ranks) as watch:
                    train(start, ranks, watch)


def begin(
    names: tuple[str, str],
    learner: Learner,
    options: RunOptions,
    config: Row,
    contract: Contract,
    start: Start,
    ranks: Ranks,
    watch: Preemption,
) -> StartedRun:
    """Restore the checkpoint's state, print what is trained, and open the run folder.

    Args:
        names: The names of the model and of its data.
        config: Every option, for config.json.

    Raises:
        UserError: On all ranks, if the run cannot start.
    """
    seed_everything(options.seed, ranks.rank)  # so that dropout differs between ranks
    state = restore(learner, start.checkpoint, ranks) if start.checkpoint else TrainingState()
    if ranks.is_main:
        say(introduction(names, learner, options, ranks))
    opened: list[Session] = []
    ranks.from_main(lambda: opened.append(Session(options, start, config, state.written, contract)))
    return StartedRun(options, ranks, opened[0] if opened else None, state, watch)


def introduction(names: tuple[str, str], learner: Learner, options: RunOptions, ranks: Ranks) -> str:
    """A line on the model, data, devices, precision and run folder."""
    size = sum(p.numel() for p in learner.plain.parameters())
    device = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
    precision = "float32" if options.amp == "none" else f"{options.amp} with float32 weights"
    (model, data), where = names, printable(options.output_dir)
    return f"training {model} ({size:,} parameters) on {data}; {device}, {precision}; writes to {where}"
