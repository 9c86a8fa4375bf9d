"""A run in its folder: log, decay log, curves, checkpoints, best figures."""

import time
from collections.abc import Mapping, Sequence
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
from runtime.start import Start
from runtime.tables import say
from runtime.training_state import TrainingState, Written
from runtime.writer import BackgroundWriter


class Session:
    """What the main process of a run writes. Seconds go on from the checkpoint's."""

    def __init__(
        self,
        options: RunOptions,
        start: Start,
        config: Mapping[str, Any],
        written: Written,
        contract: Mapping[str, Any],
    ) -> None:
        self.contract = contract  # of `runtime.run_contract`, for the checkpoints
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
        if options.enable_wandb:  # first: a login that fails must cost no run that is there
            name = options.wandb_name or None
            wandb = Wandb(self.folder, config, options.project, name, written.wandb_id)
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
        self.append(runfolder.DECAY_LOG, rows)
        for key in ("score", "weight_decay"):
            self._draw_by_role(rows, f"decay_{key}", [row[key] for row in rows])
            self.curves.histogram(rows[0]["step"], f"decay_{key}", [row[key] for row in rows if row[key] is not None])

    def log_audit(self, rows: Sequence[Row]) -> None:
        """Append what decay did to the modules to decay.jsonl and draw means by role."""
        self.append(runfolder.DECAY_LOG, rows)
        for key in ("ratio", "swallowed", "kept"):
            self._draw_by_role(rows, f"decay_{key}", [row["audit"][key] for row in rows])

    def _draw_by_role(self, rows: Sequence[Row], name: str, values: Sequence[float | None]) -> None:
        """Draw the mean over each role's modules of one value a row; None is left out."""
        by_role: dict[str, list[float]] = {}
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                by_role.setdefault(row["role"] or "all_modules", []).append(value)
        self.curves.scalars(rows[0]["step"], {f"{name}/{role}": sum(v) / len(v) for role, v in by_role.items()})

    def note_best(self, name: str, metric: Metric, row: Row) -> None:
        """Remember an evaluation's figure if it is the best so far; `name` is the link to point at its checkpoint."""
        before, value = self.best.get(name), row.get(metric.name)
        if value is not None and (before is None or metric.better(value, before["value"])):
            self.best[name] = {"value": value, "step": row["step"]}

    def written(self) -> Written:
        """What a resumed run needs to know of the files written so far."""
        wandb = self.curves.wandb
        return Written(dict(self.best), dict(self.rows), self.seconds, wandb.id if wandb else None)

    def save(self, step: int, model: Mapping[str, Any], ema: Mapping[str, Any] | None, state: TrainingState) -> None:
        """Copy a checkpoint's contents; it is written behind the training, after the one before it.

        Then the links of the best are pointed at theirs and old checkpoints deleted.

        Raises:
            UserError: If the checkpoint before could not be written.
        """
        self._writer.wait()  # first, so that there is one copy in memory at most
        contents = Contents.copied(step, model, ema, state.flat(), self.contract)
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
