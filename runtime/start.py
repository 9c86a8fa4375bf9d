"""Finds and announces the checkpoint from which a run starts. Writes nothing."""

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
    """Where a run starts: its folder, and the checkpoint it resumes from, if any."""

    folder: Path
    checkpoint: Checkpoint | None
    skipped: Sequence[str] = ()  # for each newer, broken checkpoint what is wrong with it

    @property
    def continues(self) -> bool:
        """Whether the checkpoint belongs to the run in the folder."""
        ours = self.folder / "checkpoints"  # perhaps a link to a folder on another disk
        return self.checkpoint is not None and ours.exists() and ours.samefile(self.checkpoint.path.parent)

    @property
    def step(self) -> int:
        """Optimizer steps taken before the start."""
        return self.checkpoint.step if self.checkpoint else 0


def find_start(options: RunOptions, ranks: Ranks) -> Start:
    """Find the checkpoint of --resume and check that the run may use its folder; write nothing.

    Only the main process searches, so that all ranks start from the same checkpoint.

    Raises:
        UserError: If there is no such checkpoint, or the folder holds another run.
    """
    return ranks.from_main(lambda: _checked(_find_start(options), options))


def _checked(start: Start, options: RunOptions) -> Start:
    """Raise UserError if an evaluation would silently use an older checkpoint because a newer one is broken."""
    if options.eval and start.skipped and start.checkpoint:
        raise UserError(f"{start.skipped[0]}; --resume {start.checkpoint.path} evaluates the one before it")
    return start


def _find_start(options: RunOptions) -> Start:
    folder = Path(options.output_dir)
    if options.resume == "auto":
        if runfolder.holds_run(folder) and has_checkpoints(folder):
            return Start(folder, *find_checkpoint(folder))
        if options.eval:
            raise UserError(f"--eval --resume auto: {folder} has no checkpoint")
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
                        "to continue there, or --overwrite to delete it")  # fmt: skip
    return start


def finished(start: Start, last_step: int, metrics: Mapping[str, Metric], ranks: Ranks) -> bool:
    """Whether the run to be resumed is finished already; the main process prints it. Writes nothing.

    Args:
        start: Where the run would resume.
        last_step: The optimizer step at which it should stop.
        metrics: The trainer's metrics; the headlines among them are printed.
    """
    summary = ranks.from_main(lambda: _summary_at(start)) if start.step >= last_step else None
    if summary is None:
        return False
    if ranks.is_main:
        headlines = [name for name, metric in metrics.items() if metric.headline and summary.get(name) is not None]
        values = ", ".join(f"{name} {summary[name]:.4g}" for name in headlines)
        say(f"{start.folder}: finished at optimizer step {start.step}, nothing left to do ({values or 'no metrics'})")
    return True


def _summary_at(start: Start) -> Row | None:
    """The run's summary if it was written at the checkpoint's step; else None, and the end of the run is repeated."""
    path = start.folder / runfolder.SUMMARY
    if not (start.continues and path.exists()):
        return None
    summary = runfolder.read_json(path, "a run's summary")
    return summary if summary.get("step") == start.step else None


def announce(start: Start, options: RunOptions, ranks: Ranks) -> None:
    """Print where a run starts."""
    if not ranks.is_main:
        return
    for reason in start.skipped:
        say(f"warning: skipped a broken checkpoint: {reason}")
    if start.checkpoint:
        action = "evaluating" if options.eval else "resuming from"
        say(f"{action} {start.checkpoint.path} (step {start.step})")
    elif options.resume == "auto":
        say(f"--resume auto: {start.folder} has no checkpoint, starting a new run")
