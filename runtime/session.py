"""A run in its folder: options every trainer has, log, ledger, curves, checkpoints, best figures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import runfolder
from runtime.checkpoints import LINKS, Checkpoint, find_checkpoint, link, remove_after, remove_old, save_checkpoint
from runtime.curves import Curves, Wandb
from runtime.options import option
from runtime.processes import Ranks
from runtime.runfolder import Row
from runtime.tables import say

AMP = ("none", "bf16", "fp16")


@dataclass(frozen=True)
class RunOptions:
    """The run: where it goes, how long, on what."""

    output_dir: str = option("runs/run", "folder of the run")
    overwrite: bool = option(False, "replace the run that is in --output_dir")
    resume: str = option("", "go on from a run folder or a checkpoint; auto: from --output_dir if it holds a run")
    allow_changed: tuple[str, ...] = option((), "NAME ... of what may be otherwise than in the checkpoint of --resume")
    config: str = option("", "a run's config.json whose options hold where the command line is silent")
    eval: bool = option(False, "only evaluate what --resume names")
    dry_run: bool = option(False, "print every parameter with its group, decay and why, then stop")
    max_steps: int | None = option(None, "stop after this optimizer step; schedules stay as they are", minimum=1)
    checkpoint_every: int | None = option(None, "optimizer steps between checkpoints, besides each epoch's", minimum=1)
    save_ckpt_num: int = option(3, "newest checkpoints kept, besides the best", minimum=1)
    log_interval: int = option(10, "optimizer steps between points of the training curves", minimum=1)
    seed: int = option(0, "of initial weights, data order, augmentation and dropout", minimum=0, fixed="seed")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: str = option("none", "mixed precision with float32 weights", choices=AMP, fixed="precision")
    enable_wandb: bool = option(False, "log to wandb too")
    project: str = option("alphadecay", "wandb project")
    wandb_name: str = option("", "name of the wandb run")


@dataclass(frozen=True)
class Start:
    """Where a run begins: its folder, and the checkpoint it goes on from, if any."""

    folder: Path
    checkpoint: Checkpoint | None

    @property
    def continues(self) -> bool:
        """Whether the checkpoint is one of the run that is in the folder."""
        return self.checkpoint is not None and self.folder.resolve() in self.checkpoint.path.resolve().parents

    @property
    def step(self) -> int:
        """Optimizer steps taken before."""
        return self.checkpoint.step if self.checkpoint else 0


def find_start(options: RunOptions) -> Start:
    """Find the checkpoint that --resume names and make sure that the run may use its folder; nothing is written.

    Raises:
        UserError: If there is no such checkpoint, or the folder holds another run.
    """
    folder = Path(options.output_dir)
    if options.resume == "auto":
        if runfolder.holds_run(folder) and any((folder / "checkpoints").glob("step_*")):
            return Start(folder, find_checkpoint(folder))
        return Start(folder, None)
    checkpoint = find_checkpoint(Path(options.resume)) if options.resume else None
    start = Start(folder, checkpoint)
    if not (options.eval or options.dry_run or start.continues):
        runfolder.check_free(folder, options.overwrite)
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
        self.best: dict[str, Row] = dict(state.get("best", {}))  # link -> {"value", "step"}
        self._seconds_before, self._began = float(state.get("seconds", 0.0)), time.perf_counter()
        if not start.continues:
            runfolder.remove_run(self.folder)
        remove_after(self.folder / "checkpoints", start.step)  # of the part that is trained again
        runfolder.write_config(self.folder, config)
        if start.checkpoint is not None:
            runfolder.cut_back(self.folder, start.step, start.checkpoint.path.parent.parent)
        wandb = None
        if options.enable_wandb:
            name = options.wandb_name or None
            wandb = Wandb(self.folder, config, options.project, name, state.get("wandb_id"))
        self.curves = Curves(self.folder, start.step, wandb)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, those before a resumption included."""
        return self._seconds_before + time.perf_counter() - self._began

    def log_evaluation(self, row: Row) -> None:
        """Append to log.jsonl and draw it."""
        runfolder.append_rows(self.folder / runfolder.LOG, [row])
        curves = {f"evaluation/{k}": v for k, v in row.items() if k not in ("step", "epoch") and v is not None}
        self.curves.scalars(row["step"], curves)

    def log_refresh(self, rows: Sequence[Row]) -> None:
        """Append the modules' decays to decay.jsonl and draw means by role."""
        runfolder.append_rows(self.folder / runfolder.LEDGER, rows)
        step = rows[0]["step"]
        for key in ("score", "weight_decay"):
            known = [row for row in rows if row[key] is not None]
            by_role: dict[str, list[float]] = {}
            for row in known:
                by_role.setdefault(row["role"], []).append(row[key])
            self.curves.scalars(step, {f"decay_{key}/{role}": sum(v) / len(v) for role, v in by_role.items()})
            self.curves.histogram(step, f"decay_{key}", [row[key] for row in known])

    def note_best(self, name: str, value: float | None, step: int, higher_is_better: bool) -> None:
        """Remember a figure if it is the best so far; `name` is the link that will point at its checkpoint."""
        before = self.best.get(name)
        if value is None:
            return
        if before is None or (value > before["value"] if higher_is_better else value < before["value"]):
            self.best[name] = {"value": value, "step": step}

    def save(self, step: int, model: Mapping[str, Any], ema: Mapping[str, Any] | None, state: Row) -> None:
        """Write a checkpoint, point the links of the best at theirs, and delete old ones."""
        folder = self.folder / "checkpoints"
        own = {
            "best": self.best,
            "seconds": self.seconds,
            "wandb_id": self.curves.wandb and self.curves.wandb.id,
        }
        checkpoint = save_checkpoint(folder, step, model, ema, state | own, self.contract)
        for name in LINKS:
            if name in self.best and self.best[name]["step"] == step:
                link(folder, name, checkpoint)
        remove_old(folder, self.options.save_ckpt_num)

    def finish(self, summary: Row, figures: Mapping[str, Any]) -> None:
        """Write summary.json and the figures, and close the curves."""
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(self.folder / "figures" / f"{name}.png", dpi=150)
            self.curves.figure(summary["step"], name, figure)
        runfolder.write_json(self.folder / runfolder.SUMMARY, summary)
        self.curves.close()


def announce(start: Start, options: RunOptions, ranks: Ranks) -> None:
    """Say where a run starts."""
    if not ranks.is_main:
        return
    if start.checkpoint:
        doing = "evaluating" if options.eval else "resuming from"
        say(f"{doing} {start.checkpoint.path} (step {start.step})")
    elif options.resume == "auto":
        say(f"--resume auto: {start.folder} holds no checkpoint, starting fresh")
