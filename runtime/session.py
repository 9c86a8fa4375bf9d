"""A run in its folder: log, ledger, curves, checkpoints, best figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime import runfolder
from runtime.checkpoints import (
    LINKS,
    Checkpoint,
    Contents,
    find_checkpoint,
    has_checkpoints,
    later_than,
    link,
    recover,
    remove_after,
    remove_old,
    write_checkpoint,
)
from runtime.curves import Curves, Wandb
from runtime.errors import UserError, printable
from runtime.processes import Ranks
from runtime.run_options import RunOptions
from runtime.runfolder import Row
from runtime.tables import say
from runtime.writer import BackgroundWriter

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADLINES = ("acc1", "acc1_ema", "perplexity", "loss")


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


class Session:
    """What the main process of a run writes. Seconds go on from the checkpoint's."""

    def __init__(
        self,
        options: RunOptions,
        start: Start,
        config: Mapping[str, Any],
        state: Mapping[str, Any],
        contract: Mapping[str, Any],
    ) -> None:
        self.contract = contract  # of `runtime.drift`, for the checkpoints
        self.options, self.folder, self.start = options, start.folder, start
        self.checkpoints = self.folder / "checkpoints"
        self.best: dict[str, Row] = dict(state.get("best", {}))  # link -> {"value", "step"}
        self.rows: dict[str, int] = dict(state.get("rows", {}))  # file -> lines written
        self._seconds_before, self._began = float(state.get("seconds", 0.0)), time.perf_counter()
        self._writer = BackgroundWriter()
        runfolder.check_no_links(self.folder)
        if not start.continues:
            runfolder.check_inputs_stay(self.folder, config)
        if start.checkpoint is not None:
            runfolder.require_rows(start.checkpoint.path.parent.parent, self.rows)
        ended = self._ended() if start.continues else -1
        wandb = None
        if options.enable_wandb:  # first: a login that fails must cost no run that is there
            name = options.wandb_name or None
            wandb = Wandb(self.folder, config, options.project, name, state.get("wandb_id"))
        if not start.continues:
            runfolder.remove_run(self.folder)
        runfolder.write_config(self.folder, config)
        self._forget_what_comes_again()
        if ended > start.step:
            (self.folder / runfolder.SUMMARY).unlink()  # of steps that come again
        self.curves = Curves(self.folder, start.step, wandb)

    def _ended(self) -> int:
        """The step at which the run in the folder ended before, -1 if it did not."""
        path = self.folder / runfolder.SUMMARY
        step = runfolder.read_json(path, "a run's summary").get("step") if path.exists() else -1
        if not isinstance(step, int):
            raise UserError(f"{path}: step {step!r} is no whole number")
        return step

    def _forget_what_comes_again(self) -> None:
        """Cut the folder back to what the checkpoint has seen of it."""
        (self.folder / runfolder.REQUEUE).unlink(missing_ok=True)
        recover(self.checkpoints)
        remove_after(self.checkpoints, self.start.step)
        if self.start.checkpoint is not None:
            for line in runfolder.cut_back(self.folder, self.rows, self.start.checkpoint.path.parent.parent):
                say(f"warning: {line}")
        for name in LINKS:
            if (self.checkpoints / name).is_symlink() and name not in self.best:
                (self.checkpoints / name).unlink()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, those before a resumption included."""
        return self._seconds_before + time.perf_counter() - self._began

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Append to one of the files of rows."""
        runfolder.append_rows(self.folder / name, rows)
        self.rows[name] = self.rows.get(name, 0) + len(rows)

    def log_evaluation(self, row: Row) -> None:
        """Append to log.jsonl and draw it."""
        self.append(runfolder.LOG, [row])
        curves = {f"evaluation/{k}": v for k, v in row.items() if k not in ("step", "epoch") and v is not None}
        self.curves.scalars(row["step"], curves)

    def log_refresh(self, rows: Sequence[Row]) -> None:
        """Append the modules' decays to decay.jsonl and draw means by role."""
        self.append(runfolder.LEDGER, rows)
        for key in ("score", "weight_decay"):
            self._draw_by_role(rows, f"decay_{key}", [row[key] for row in rows])
            self.curves.histogram(rows[0]["step"], f"decay_{key}", [row[key] for row in rows if row[key] is not None])

    def log_audit(self, rows: Sequence[Row]) -> None:
        """Append what decay did to the modules to decay.jsonl and draw means by role."""
        self.append(runfolder.LEDGER, rows)
        for key in ("ratio", "swallowed", "kept"):
            self._draw_by_role(rows, f"decay_{key}", [row["audit"][key] for row in rows])

    def _draw_by_role(self, rows: Sequence[Row], name: str, values: Sequence[float | None]) -> None:
        """Draw the mean over each role's modules of one value a row; None is left out."""
        by_role: dict[str, list[float]] = {}
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                by_role.setdefault(row["role"] or "all_modules", []).append(value)
        self.curves.scalars(rows[0]["step"], {f"{name}/{role}": sum(v) / len(v) for role, v in by_role.items()})

    def note_best(self, name: str, value: float | None, step: int, higher_is_better: bool) -> None:
        """Remember a figure if it is the best so far; `name` is the link that will point at its checkpoint."""
        before = self.best.get(name)
        if value is None:
            return
        if before is None or (value > before["value"] if higher_is_better else value < before["value"]):
            self.best[name] = {"value": value, "step": step}

    def state(self) -> Row:
        """What a resumed run needs to know of the files written so far."""
        return {
            "best": dict(self.best),
            "rows": dict(self.rows),
            "seconds": self.seconds,
            "wandb_id": self.curves.wandb and self.curves.wandb.id,
        }

    def save(self, step: int, model: Mapping[str, Any], ema: Mapping[str, Any] | None, state: Row) -> None:
        """Copy a checkpoint's contents; it is written behind the training, after the one before it.

        Then the links of the best are pointed at theirs and old checkpoints deleted.

        Raises:
            UserError: If the checkpoint before could not be written.
        """
        self._writer.wait()  # first, so that there is one copy in memory at most
        contents = Contents.copied(step, model, ema, state, self.contract)
        links = [name for name in LINKS if self.best.get(name, {}).get("step") == step]
        self._writer.submit(lambda: self._write(contents, links))

    def _write(self, contents: Contents, links: Sequence[str]) -> None:
        seen = [self.folder / name for name in runfolder.ROWS]
        checkpoint = write_checkpoint(self.checkpoints, contents, before_rename=seen)
        for name in links:
            link(self.checkpoints, name, checkpoint)
        remove_old(self.checkpoints, self.options.save_ckpt_num)

    def check_saved(self) -> None:
        """Raise UserError if a checkpoint could not be written; does not wait."""
        self._writer.check()

    def wait_saved(self) -> None:
        """Return when the last checkpoint is on the disk; raises UserError if it could not be written."""
        self._writer.wait()

    def last_evaluation(self) -> int | None:
        """The optimizer step of the log's last row."""
        logged = runfolder.whole_rows(self.folder / runfolder.LOG)
        return logged[-1]["step"] if logged else None

    def leave(self, mark: str) -> None:
        """Close a run that was told to end; the last checkpoint is on the disk then.

        Args:
            mark: What the file says that asks for the run to be put into the queue again; "" for no such file.
        """
        self.wait_saved()
        self.curves.close()
        if mark:
            (self.folder / runfolder.REQUEUE).write_text(mark + "\n")

    def finish(self, summary: Row, figures: Mapping[str, Any]) -> None:
        """Write summary.json and the figures, and close the curves; the last checkpoint is on the disk then."""
        self.wait_saved()
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            path = self.folder / "figures" / f"{name}.png"
            path.unlink(missing_ok=True)  # if it is a link, what it leads to stays
            figure.savefig(path, dpi=200)
            figure.set_layout_engine("none")  # it is laid out: once more would only take time
            self.curves.figure(summary["step"], name, figure)
        runfolder.write_json(self.folder / runfolder.SUMMARY, summary)
        self.curves.close()


def introduce(model: str, data: str, plain: nn.Module, options: RunOptions, ranks: Ranks) -> None:
    """Say what will be trained on what, and where it is written."""
    if ranks.is_main:
        size = sum(p.numel() for p in plain.parameters())
        device = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
        precision = "float32" if options.amp == "none" else f"{options.amp} with float32 weights"
        where = printable(options.output_dir)
        say(f"training {model} ({size:,} parameters) on {data}; {device}, {precision}; writes to {where}")


def begin(
    options: RunOptions, start: Start, config: Row, state: Row, contract: Mapping[str, Any], ranks: Ranks
) -> Session | None:
    """The run's session on the main process, None on the others; all of them raise what keeps it from beginning."""
    begun: list[Session] = []
    ranks.from_main(lambda: begun.append(Session(options, start, config, state, contract)))
    return begun[0] if begun else None


def finished(start: Start, last_step: int, ranks: Ranks) -> bool:
    """Whether the run that is to go on has nothing left to do; the main process says so. Nothing is written.

    Args:
        start: Where the run would go on.
        last_step: The optimizer step at which it is to stop.
    """
    summary = ranks.from_main(lambda: _summary_at(start)) if start.step >= last_step else None
    if summary is None:
        return False
    if ranks.is_main:
        figures = {name: value for name, value in summary.items() if name in HEADLINES and value is not None}
        said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
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
