"""A whole vision run: epochs, evaluations, checkpoints, and what is shown of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay import figures
from alphadecay.ledger import ledger_rows
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import NonFiniteWeight
from datasets import ImageData
from engine import Learner, Precision, StepRules, evaluate, train_one_epoch
from loaders import EvalLoader, TrainLoader
from reports import show_summary
from runtime import runfolder
from runtime.checkpoints import Checkpoint
from runtime.errors import NonFiniteError, UserError
from runtime.figures import training_curves
from runtime.processes import Ranks
from runtime.runfolder import Row
from runtime.seeding import random_state, restore_random_state
from runtime.session import RunOptions, Session, Start
from runtime.tables import progress, say


@dataclass(frozen=True)
class Task:
    """What a run consists of, built before anything is written."""

    learner: Learner
    decay: DecaySchedule
    rules: StepRules
    train: TrainLoader
    validation: EvalLoader
    evaluate_ema: bool
    last_step: int  # optimizer step at which the run stops
    data: ImageData


def load_weights(model: nn.Module, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights; raises UserError if they are another model's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).split("\n\t")[1 if "\n\t" in str(error) else 0]
        raise UserError(f"{checkpoint.path} does not fit the model that the options describe: {reason}") from error


def restore(task: Task, start: Start, ranks: Ranks) -> dict[str, Any]:
    """Load a checkpoint into the task; returns its training state, empty without one."""
    if start.checkpoint is None:
        return {}
    learner = task.learner
    load_weights(learner.plain, start.checkpoint.model_weights(), start.checkpoint)
    ema_weights = start.checkpoint.ema_weights()
    if learner.ema is not None and ema_weights is not None:
        load_weights(learner.ema.module, ema_weights, start.checkpoint)
    state = start.checkpoint.training_state()
    try:
        learner.optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise UserError(f"{start.checkpoint.path}: {error}") from error
    learner.scaler.load_state_dict(state["scaler"])
    restore_random_state(state["random"][ranks.rank % len(state["random"])])
    return state


def evaluate_all(
    model: nn.Module, averaged: nn.Module | None, validation: EvalLoader, ranks: Ranks, precision: Precision
) -> Row:
    """Validation figures of the raw weights and, under names ending in _ema, of their average if there is one."""
    found: Row = dict(evaluate(model, validation, ranks, precision))
    if averaged is not None:
        found |= {f"{name}_ema": value for name, value in evaluate(averaged, validation, ranks, precision).items()}
    return found


def require_finite(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError if a weight is not finite: on a GPU a step can go wrong between two looks at it."""
    finite = torch.stack([p.detach().isfinite().all() for p in model.parameters()])
    if not finite.all():
        broken = next(
            name for (name, _), fine in zip(model.named_parameters(), finite.tolist(), strict=True) if not fine
        )
        raise NonFiniteError(f"{broken} holds values that are not finite after optimizer step {step}")


class Training:
    """The loop over epochs and what it keeps count of; `session` is None on all but the main process."""

    def __init__(
        self, task: Task, options: RunOptions, ranks: Ranks, session: Session | None, state: dict[str, Any]
    ) -> None:
        self.task, self.options, self.ranks, self.session = task, options, ranks, session
        sums = state.get("loss_sums", [0.0])
        self.loss_sum: Tensor = torch.tensor(sums[ranks.rank % len(sums)], dtype=torch.float64, device=ranks.device)
        self.loss_steps: int = state.get("loss_steps", 0)
        self.train_seconds: float = state.get("train_seconds", 0.0)
        self.decay_seconds_before: float = state.get("decay_seconds", 0.0)
        self.images = task.train.batches.images_a_step
        if session is not None:
            task.decay.on_refresh = lambda schedule: session.log_refresh(ledger_rows(schedule))

    def run(self, first_step: int) -> None:
        """Train from `first_step` to the task's last step; evaluate, log and save after each epoch."""
        task, step = self.task, first_step
        shown = self.ranks.is_main
        with progress(task.last_step * self.images, step * self.images, "img", "training", shown) as self.bar:
            while step < task.last_step:
                epoch, done = divmod(step, task.train.steps)
                began = time.perf_counter()
                batches = task.train.epoch(epoch, done * task.rules.accumulate)
                try:
                    train_one_epoch(task.learner, batches, task.rules, self.ranks, step, self._after_step)
                except NonFiniteWeight as error:  # met by a refresh of the decays, between two looks
                    raise NonFiniteError(str(error)) from error
                self.train_seconds += time.perf_counter() - began
                step = min((epoch + 1) * task.train.steps, task.last_step)
                self._after_epoch(epoch, step)
        if self.session is not None:
            self._finish(self.session, step)

    def _after_step(self, step: int, loss: Tensor) -> bool:
        self.loss_sum += loss
        self.loss_steps += 1
        self.bar.update(self.images)
        if self.session is not None and step % self.options.log_interval == 0:
            lr, base = self._rates(step)
            points = {"training/loss": loss.item(), "training/lr": lr, "training/weight_decay": base}
            self.session.curves.scalars(step, points)
            self.bar.set_postfix(loss=f"{points['training/loss']:.3f}", refresh=False)
        ends = step == self.task.last_step
        every = self.options.checkpoint_every
        if every and step % every == 0 and not ends and step % self.task.train.steps:
            self._save(step)
        return ends

    def _after_epoch(self, epoch: int, step: int) -> None:
        require_finite(self.task.learner.plain, step)
        lr, base = self._rates(step)
        row: Row = {
            "step": step,
            "epoch": epoch,
            "train_loss": self._mean_loss(),
            "lr": lr,
            "weight_decay": base,
        }
        row |= applied_decay(self.task.decay) | self._evaluate()
        if self.session is not None:
            self.session.note_best("best", row["acc1"], step, higher_is_better=True)
            self.session.note_best("best_ema", row.get("acc1_ema"), step, higher_is_better=True)
            self.session.log_evaluation(row | {"seconds": round(self.session.seconds, 3)})
            self.bar.set_postfix({k: f"{row[k]:.1f}" for k in ("acc1", "acc1_ema") if k in row}, refresh=False)
        self._save(step)

    def _evaluate(self) -> Row:
        task, learner = self.task, self.task.learner
        averaged = learner.ema.module if learner.ema is not None and task.evaluate_ema else None
        return evaluate_all(learner.plain, averaged, task.validation, self.ranks, task.rules.precision)

    def _rates(self, step: int) -> tuple[float, float]:
        """Learning rate and base decay of the step just taken."""
        return self.task.rules.schedules.lr_at(step - 1), self.task.rules.schedules.weight_decay_at(step - 1)

    def _mean_loss(self) -> float:
        """Mean training loss over all ranks since it was last asked for."""
        total, steps = self.ranks.sum(torch.stack([self.loss_sum, torch.full_like(self.loss_sum, self.loss_steps)]))
        self.loss_sum, self.loss_steps = torch.zeros_like(self.loss_sum), 0
        return float(total / steps)

    def _save(self, step: int) -> None:
        learner = self.task.learner
        require_finite(learner.plain, step)
        states = self.ranks.gather(random_state())
        losses = self.ranks.gather(self.loss_sum.item())
        if self.session is None:
            return
        state = {
            "step": step,
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "random": states,
            "loss_sums": losses,
            "loss_steps": self.loss_steps,
            "train_seconds": self.train_seconds,
            "decay_seconds": self.decay_seconds,
        }
        ema = learner.ema.module.state_dict() if learner.ema is not None else None
        self.session.save(step, learner.plain.state_dict(), ema, state)

    @property
    def decay_seconds(self) -> float:
        """Seconds spent measuring spectra and assigning decays."""
        return self.decay_seconds_before + self.task.decay.seconds

    def _finish(self, session: Session, step: int) -> None:
        log = runfolder.read_rows(session.folder / runfolder.LOG)
        ledger = runfolder.read_rows(session.folder / runfolder.LEDGER)
        summary = self._summary(session, log, step)
        drawn = {"training": training_curves(log, "acc1", "top-1 accuracy in %")} if log else {}
        if ledger:
            drawn["decay_over_time"] = figures.decay_over_time(ledger)
            drawn["decay_by_depth"] = figures.decay_by_depth(ledger)
        drawn["spectra"] = figures.spectra(self.task.learner.plain)
        session.finish(summary, drawn)
        show_summary(summary, ledger)
        say(f"\nrun folder: {session.folder}")

    def _summary(self, session: Session, log: Sequence[Row], step: int) -> Row:
        last = log[-1] if log else {}
        names = ("acc1", "acc5", "loss", "acc1_ema", "acc5_ema", "loss_ema")
        best = {f"best_acc1{k[4:]}": v["value"] for k, v in session.best.items()}
        best_steps = {f"best_acc1{k[4:]}_step": v["step"] for k, v in session.best.items()}
        trained = step * self.images
        return {
            "step": step,
            **best,
            **best_steps,
            **{name: last[name] for name in names if name in last},
            "train_loss": last.get("train_loss"),
            "bad_images": len(self.task.train.bad.seen | self.task.validation.bad.seen),
            "converted_images": len(self.task.train.bad.converted | self.task.validation.bad.converted),
            "parameters": sum(p.numel() for p in self.task.learner.plain.parameters()),
            "seconds": round(session.seconds, 3),
            "samples_per_second": round(trained / self.train_seconds, 3) if self.train_seconds else None,
            "decay_seconds": round(self.decay_seconds, 3),
        }


def applied_decay(decay: DecaySchedule) -> Row:
    """Smallest, largest and mean applied decay, over what is decayed at all, weighted by parameters."""
    groups = [g for g in decay.optimizer.param_groups if g["static_multiplier"] > 0]
    sizes = [sum(p.numel() for p in g["params"]) for g in groups]
    decays = [g["weight_decay"] for g in groups]
    mean = sum(s * d for s, d in zip(sizes, decays, strict=True)) / sum(sizes) if groups else 0.0
    return {
        "weight_decay_mean": mean,
        "weight_decay_min": min(decays, default=0.0),
        "weight_decay_max": max(decays, default=0.0),
    }
