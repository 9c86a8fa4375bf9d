"""The training loop on images; `runtime/trainer.py` has what both programs share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from datasets import Batch, ImageData
from engine import METRICS, RAW_METRICS, ImageRules, Precision, backward, evaluate, train_one_epoch
from runtime.decay_options import DecayOptions
from runtime.figures import training_curves
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.reports import metrics_table, show_decay_by_role
from runtime.run import StartedRun
from runtime.runfolder import Row
from runtime.schedules import Schedules, schedules_of
from runtime.seeding import random_state, restore_random_state
from runtime.session import Session
from runtime.steps import find_bad_values
from runtime.tables import say
from runtime.trainer import Task, Trainer
from vision.loaders import EvalLoader, TrainLoader
from vision.options import VisionOptimizerOptions


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """A run on images."""

    rules: ImageRules
    train: TrainLoader
    validation: EvalLoader
    evaluate_ema: bool
    data: ImageData


def evaluate_all(
    model: nn.Module,
    averaged: nn.Module | None,
    validation: EvalLoader,
    ranks: Ranks,
    precision: Precision,
    preemption: Preemption | None = None,
) -> Row:
    """Validation metrics of the raw weights and, with names ending in _ema, of their EMA if there is one.

    Raises:
        Preempted: If `preemption` is given and a signal asks the run to end.
    """

    def batches() -> Iterable[Batch]:
        return validation if preemption is None else preemption.watched(validation, validation.max_batches)

    metrics: Row = dict(evaluate(model, batches(), ranks, precision))
    if averaged is not None:
        metrics |= {f"{name}_ema": value for name, value in evaluate(averaged, batches(), ranks, precision).items()}
    return metrics


def build_schedules(options: VisionOptimizerOptions, decay: DecayOptions, steps_per_epoch: int) -> Schedules:
    """Build schedules counted in optimizer steps. A run may end during its warm-up."""
    by_steps = options.warmup_steps >= 0
    warmup = options.warmup_steps if by_steps else options.warmup_epochs * steps_per_epoch
    total = options.epochs * steps_per_epoch
    return schedules_of(options, decay, total, warmup)


class ImageTraining(Trainer):
    """The loop over epochs."""

    def __init__(self, task: ImageTask, run: StartedRun) -> None:
        self.task, images = task, task.train.batches.images_per_step
        super().__init__(task, run, "img", images, images)

    def take_steps(self, step: int) -> None:
        """Train until the end of the epoch."""
        task = self.task
        epoch, done = divmod(step, task.train.steps)
        batches = task.train.epoch(epoch, done * task.rules.accumulate)
        train_one_epoch(self.learner, batches, task.rules, self.ranks, step, self.gate, self.after_step, self.bad_step)

    def evaluates_after(self, step: int) -> bool:
        """At the end of each epoch."""
        return step % self.task.train.steps == 0

    def evaluate(self) -> Row:
        """Evaluate the raw weights and, with --model_ema_eval, the EMA weights."""
        task, learner = self.task, self.learner
        averaged = learner.averaged if task.evaluate_ema else None
        precision = task.rules.precision
        return evaluate_all(learner.plain, averaged, task.validation, self.ranks, precision, self.preemption)

    def facts(self, step: int) -> Row:
        """The epoch of the last step, counted from 0."""
        return {"epoch": (step - 1) // self.task.train.steps}

    def note_best(self, row: Row, session: Session) -> None:
        """Record the best accuracies of raw and EMA weights."""
        session.note_best("best", METRICS["acc1"], row)
        session.note_best("best_ema", METRICS["acc1_ema"], row)

    def shown(self, row: Row) -> Row:
        """Accuracies, for the progress bar."""
        return {name: f"{row[name]:.1f}" for name in ("acc1", "acc1_ema") if name in row}

    def trace(self, step: int) -> Row:
        """Find where a bad step stopped being finite on this rank; list the step's images by file or index."""
        task, random = self.task, random_state()
        batches, keys = task.train.batches_of_step(step, task.rules.accumulate)
        finding = find_bad_values(self.learner, batches, backward(task.rules, self.ranks), step)
        restore_random_state(random)
        micro_batch = keys[finding.micro_step]
        return {
            "module": finding.module,
            "found": str(finding),
            "gradients": finding.parameters,
            "suspects": [task.train.name_of(micro_batch[index]) for index in finding.samples],
            "samples": [[task.train.name_of(key) for key in batch] for batch in keys],
        }

    def close(self) -> None:
        """End the loader processes."""
        self.task.train.close()
        self.task.validation.close()

    def curves(self, log: Sequence[Row]) -> Any:
        """Draw losses, accuracy and learning rate."""
        return training_curves(log, METRICS["acc1"])

    def show(self, summary: Row, decay_log: Sequence[Row]) -> None:
        """Print accuracies and decay by role."""
        show_summary(summary, decay_log, self.decay.metric)

    def summary(self, session: Session, log: Sequence[Row]) -> Row:
        """Final and best accuracies of raw and EMA weights."""
        last = log[-1] if log else {}
        best = {f"best_acc1{k[4:]}": v["value"] for k, v in session.best.items()}
        best_steps = {f"best_acc1{k[4:]}_step": v["step"] for k, v in session.best.items()}
        return {
            "step": self.counts.step,
            **best,
            **best_steps,
            **{name: last[name] for name in METRICS if name in last},
            "bad_images": len(self.task.train.bad.seen | self.task.validation.bad.seen),
            "converted_images": len(self.task.train.bad.converted | self.task.validation.bad.converted),
        }


def show_summary(summary: Row, decay_log: Sequence[Row], score: str) -> None:
    """Print accuracies of raw and EMA weights, and the mean score and decay of each role at the last refresh."""
    first, *rest = RAW_METRICS
    best = replace(first, name=f"best_{first.name}", column=f"best {first.column}")
    say("\n" + metrics_table(summary, [first, best, *rest]))
    show_decay_by_role(decay_log, score)
    say(
        f"\n{summary['step']} steps, {summary['seconds']:.1f} s, {summary['samples_per_second'] or 0:.0f} images/s "
        f"in training, {summary['decay_seconds']:.2f} s for decay"
    )


def show_evaluation(values: Row) -> None:
    """Print the validation metrics of raw and EMA weights."""
    say(metrics_table(values, RAW_METRICS))
