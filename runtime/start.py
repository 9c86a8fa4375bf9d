"""Where a run begins: what may go on from which checkpoint, and what is said of it. Nothing is written here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import runfolder
from runtime.checkpoints import Checkpoint, find_checkpoint, has_checkpoints, later_than
from runtime.errors import UserError
from runtime.metrics import Metric
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.runfolder import Row
from runtime.tables import say


@dataclass(frozen=True)
class Start:
    """Where a run begins: its folder, and the checkpoint it goes on from, if any."""

    folder: Path
    checkpoint: Checkpoint | None
    passed_over: Sequence[str] = ()  # what is wrong with newer checkpoints

    @property
    def continues(self) -> bool:
        """Whether the checkpoint is one of the run that is in the folder."""
        ours = self.folder / "checkpoints"  # perhaps a link to a folder on another disk
        return self.checkpoint is not None and ours.exists() and ours.samefile(self.checkpoint.path.parent)

    @property
    def step(self) -> int:
        """Optimizer steps taken before."""
        return self.checkpoint.step if self.checkpoint else 0


def find_start(options: RunOptions, ranks: Ranks) -> Start:
    """Find the checkpoint that --resume names and make sure that the run may use its folder; nothing is written.

    The main process looks, so that all ranks start from the same one.

    Raises:
        UserError: If there is no such checkpoint, or the folder holds another run.
    """
    return ranks.from_main(lambda: _whole(_find_start(options), options))


def _whole(start: Start, options: RunOptions) -> Start:
    """An evaluation is of the checkpoint that was asked for: not, unasked, of the one before a broken one."""
    if options.eval and start.passed_over and start.checkpoint:
        raise UserError(f"{start.passed_over[0]}; --resume {start.checkpoint.path} evaluates the one before")
    return start


def _find_start(options: RunOptions) -> Start:
    folder = Path(options.output_dir)
    if options.resume == "auto":
        if runfolder.holds_run(folder) and has_checkpoints(folder):
            return Start(folder, *find_checkpoint(folder))
        if options.eval:
            raise UserError(f"--eval --resume auto: {folder} holds no checkpoint")
        runfolder.check_free(folder, overwrite=True)  # a run that ended before its first checkpoint
        return Start(folder, None)
    if options.resume and not Path(options.resume).exists():
        raise UserError(f"--resume {options.resume}: no such run folder or checkpoint")
    start = Start(folder, *(find_checkpoint(Path(options.resume)) if options.resume else (None,)))
    if options.eval or options.dry_run:
        return start
    if not start.continues:
        runfolder.check_free(folder, options.overwrite)
    elif not options.overwrite and (later := later_than(folder / "checkpoints", start.step)):
        raise UserError(f"--resume {options.resume}: {later} is later and would be deleted; give --output_dir FOLDER "
                        "to go on elsewhere, or --overwrite to give it up")  # fmt: skip
    return start


def finished(start: Start, last_step: int, metrics: Mapping[str, Metric], ranks: Ranks) -> bool:
    """Whether the run that is to go on has nothing left to do; the main process says so. Nothing is written.

    Args:
        start: Where the run would go on.
        last_step: The optimizer step at which it is to stop.
        metrics: The trainer's figures; headlines among them are said.
    """
    summary = ranks.from_main(lambda: _summary_at(start)) if start.step >= last_step else None
    if summary is None:
        return False
    if ranks.is_main:
        headlines = [name for name, metric in metrics.items() if metric.headline and summary.get(name) is not None]
        said = ", ".join(f"{name} {summary[name]:.4g}" for name in headlines)
        say(f"{start.folder}: finished at optimizer step {start.step}, nothing left to do ({said or 'no figures'})")
    return True


def _summary_at(start: Start) -> Row | None:
    """The run's summary if it was written at the step of the checkpoint, else None: the run's end is to be repeated."""
    path = start.folder / runfolder.SUMMARY
    if not (start.continues and path.exists()):
        return None
    summary = runfolder.read_json(path, "a run's summary")
    return summary if summary.get("step") == start.step else None


def announce(start: Start, options: RunOptions, ranks: Ranks) -> None:
    """Say where a run starts."""
    if not ranks.is_main:
        return
    for reason in start.passed_over:
        say(f"warning: passed over a broken checkpoint: {reason}")
    if start.checkpoint:
        doing = "evaluating" if options.eval else "resuming from"
        say(f"{doing} {start.checkpoint.path} (step {start.step})")
    elif options.resume == "auto":
        say(f"--resume auto: {start.folder} holds no checkpoint, starting fresh")
