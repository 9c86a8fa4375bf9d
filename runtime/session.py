"""Writes a run's folder: log, decay log, curves, checkpoints, best metrics."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from runtime import runfolder
from runtime.checkpoints import (
    LINKS,
    Contents,
    link,
    recover,
    remove_after,
    remove_old,
    write_checkpoint,
)
from runtime.curves import Curves, Wandb
from runtime.errors import UserError
from runtime.metrics import Metric
from runtime.run_options import RunOptions
from runtime.runfolder import Row
from runtime.sharded_checkpoints import Hashes
from runtime.start import Start
from runtime.tables import say
from runtime.training_state import TrainingState, Written
from runtime.writer import BackgroundWriter


class Session:
    """Everything that the main process of a run writes. Its clock continues from the checkpoint's seconds."""

    def __init__(
        self,
        options: RunOptions,
        start: Start,
        config: Mapping[str, Any],
        written: Written,
        contract: Mapping[str, Any],
    ) -> None:
        self.contract = contract  # see `runtime.run_contract`; stored in checkpoints
        self.options, self.folder, self.start = options, start.folder, start
        self.checkpoints = self.folder / "checkpoints"
        self.best: dict[str, Row] = dict(written.best)
        self.rows: dict[str, int] = dict(written.rows)
        self._seconds_before, self._began = written.seconds, time.perf_counter()
        self._writer = BackgroundWriter()
        runfolder.check_no_links(self.folder)
        if not start.continues:
            runfolder.check_inputs_stay(self.folder, config)
        if start.checkpoint is not None:
            runfolder.require_rows(start.checkpoint.path.parent.parent, self.rows)
        ended = self._ended() if start.continues else -1
        wandb = None
        if options.enable_wandb:  # before anything is deleted: the login can fail
            name = options.wandb_name or None
            wandb = Wandb(self.folder, config, options.project, name, written.wandb_id)
        if not start.continues:
            runfolder.remove_run(self.folder)
        runfolder.write_config(self.folder, config)
        self._cut_back_to_checkpoint()
        if ended > start.step:
            (self.folder / runfolder.SUMMARY).unlink()  # its steps are repeated
        self.curves = Curves(self.folder, start.step, wandb)

    def _ended(self) -> int:
        """The last step of the run in the folder if it was finished, else -1."""
        path = self.folder / runfolder.SUMMARY
        step = runfolder.read_json(path, "a run's summary").get("step") if path.exists() else -1
        if not isinstance(step, int):
            raise UserError(f"{path}: step {step!r} is not a whole number")
        return step

    def _cut_back_to_checkpoint(self) -> None:
        """Remove from the folder everything written after the checkpoint."""
        (self.folder / runfolder.REQUEUE).unlink(missing_ok=True)
        recover(self.checkpoints)
        remove_after(self.checkpoints, self.start.step)
        if self.start.checkpoint is not None:
            for message in runfolder.cut_back(self.folder, self.rows, self.start.checkpoint.path.parent.parent):
                say(f"warning: {message}")
        for name in LINKS:
            if (self.checkpoints / name).is_symlink() and name not in self.best:
                (self.checkpoints / name).unlink()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, including those before it was resumed."""
        return self._seconds_before + time.perf_counter() - self._began

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Append rows to one of the files of rows."""
        runfolder.append_rows(self.folder / name, rows)
        self.rows[name] = self.rows.get(name, 0) + len(rows)

    def log_evaluation(self, row: Row) -> None:
        """Append an evaluation to log.jsonl and draw its values."""
        self.append(runfolder.LOG, [row])
        curves = {f"evaluation/{k}": v for k, v in row.items() if k not in ("step", "epoch") and v is not None}
        self.curves.scalars(row["step"], curves)

    def log_refresh(self, rows: Sequence[Row]) -> None:
        """Append a refresh to decay.jsonl; draw means by role and histograms. No rows: all matrices are frozen."""
        self.append(runfolder.DECAY_LOG, rows)
        for key in ("score", "weight_decay") if rows else ():
            self._draw_by_role(rows, f"decay_{key}", [row[key] for row in rows])
            self.curves.histogram(rows[0]["step"], f"decay_{key}", [row[key] for row in rows if row[key] is not None])

    def log_audit(self, rows: Sequence[Row]) -> None:
        """Append an audit to decay.jsonl and draw means by role."""
        self.append(runfolder.DECAY_LOG, rows)
        for key in ("ratio", "swallowed", "kept") if rows else ():
            self._draw_by_role(rows, f"decay_{key}", [row["audit"][key] for row in rows])

    def _draw_by_role(self, rows: Sequence[Row], name: str, values: Sequence[float | None]) -> None:
        """Draw the mean of each role's values; `values` has one value per row, and None is skipped."""
        by_role: dict[str, list[float]] = {}
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                by_role.setdefault(row["role"] or "all_modules", []).append(value)
        self.curves.scalars(rows[0]["step"], {f"{name}/{role}": sum(v) / len(v) for role, v in by_role.items()})

    def note_best(self, name: str, metric: Metric, row: Row) -> None:
        """Remember an evaluation's metric if it is the best so far; `name` is the link to its checkpoint."""
        best, value = self.best.get(name), row.get(metric.name)
        if value is not None and (best is None or metric.better(value, best["value"])):
            self.best[name] = {"value": value, "step": row["step"]}

    def written(self) -> Written:
        """The state of the files written so far, which a resumed run needs."""
        wandb = self.curves.wandb
        return Written(dict(self.best), dict(self.rows), self.seconds, wandb.id if wandb else None)

    def save(self, step: int, model: Mapping[str, Any], ema: Mapping[str, Any] | None, state: TrainingState) -> None:
        """Copy a checkpoint's contents and write them in the background, after the previous checkpoint.

        Then the links of the best checkpoints are updated and old checkpoints deleted.

        Raises:
            UserError: If the previous checkpoint could not be written.
        """
        self._writer.wait()  # first, so that memory has at most one copy
        self._writer.submit(self.writes(step, state, model, ema))

    def writes(
        self, step: int, state: TrainingState, model: Mapping[str, Any], ema: Mapping[str, Any] | None = None
    ) -> Callable[..., None]:
        """Copy a checkpoint's contents; returns what writes them, or completes files in shards whose hashes it gets."""
        contents = Contents.copied(step, model, ema, state.flat(), self.contract)
        links = [name for name in LINKS if self.best.get(name, {}).get("step") == step]
        return partial(self._write, contents, links)

    def _write(self, contents: Contents, links: Sequence[str], shards: Hashes | None = None) -> None:
        logs = [self.folder / name for name in runfolder.ROWS]
        checkpoint = write_checkpoint(self.checkpoints, contents, before_rename=logs, shards=shards)
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
        """The optimizer step of the log's last row; None if the log is empty."""
        rows = runfolder.whole_rows(self.folder / runfolder.LOG)
        return rows[-1]["step"] if rows else None

    def leave(self, mark: str) -> None:
        """Close a run that a signal ended, after its last checkpoint is on the disk.

        Args:
            mark: Text of the file REQUEUE, which requests that the run is queued again; "": write no file.
        """
        self.wait_saved()
        self.curves.close()
        if mark:
            (self.folder / runfolder.REQUEUE).write_text(mark + "\n")

    def finish(self, summary: Row, figures: Mapping[str, Any]) -> None:
        """Write summary.json and the figures, and close the curves, after the last checkpoint is on the disk."""
        self.wait_saved()
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            path = self.folder / "figures" / f"{name}.png"
            path.unlink(missing_ok=True)  # if it is a link, its target stays unchanged
            figure.savefig(path, dpi=200)
            figure.set_layout_engine("none")  # the layout is done; repeating it would take time
            self.curves.figure(summary["step"], name, figure)
        runfolder.write_json(self.folder / runfolder.SUMMARY, summary)
        self.curves.close()
