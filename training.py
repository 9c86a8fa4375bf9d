"""A whole vision run: epochs, evaluations, checkpoints, and what is shown of it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from alphadecay.alpha_figures import alpha_by_depth
from alphadecay.baselines import ALL
from alphadecay.drawing import print_style
from alphadecay.figures import decay_by_depth, decay_over_time
from alphadecay.groups import effective_decay
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import NonFiniteWeight
from alphadecay.spectra_figures import measured_spectra, spectra_by_role
from datasets import ImageData
from decay_log import log_decays
from engine import Precision, StepRules, backward, evaluate, train_one_epoch
from loaders import Batch, EvalLoader, TrainLoader
from reports import show_summary
from runtime import runfolder
from runtime.errors import NonFiniteError, Preempted
from runtime.figures import training_curves
from runtime.keeper import Keeper
from runtime.learner import Learner
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.runfolder import Row
from runtime.seeding import random_state, restore_random_state
from runtime.session import RunOptions, Session
from runtime.steps import find_bad_values
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


def evaluate_all(
    model: nn.Module,
    averaged: nn.Module | None,
    validation: EvalLoader,
    ranks: Ranks,
    precision: Precision,
    told: Preemption | None = None,
) -> Row:
    """Validation figures of the raw weights and, under names ending in _ema, of their average if there is one.

    Raises:
        Preempted: If `told` is given and the run is told to end.
    """

    def batches() -> Iterable[Batch]:
        return validation if told is None else told.watched(validation, validation.most_batches)

    found: Row = dict(evaluate(model, batches(), ranks, precision))
    if averaged is not None:
        found |= {f"{name}_ema": value for name, value in evaluate(averaged, batches(), ranks, precision).items()}
    return found


class Training:
    """The loop over epochs and what it keeps count of; `session` is None on all but the main process."""

    def __init__(
        self,
        task: Task,
        options: RunOptions,
        ranks: Ranks,
        session: Session | None,
        state: dict[str, Any],
        told: Preemption,
    ) -> None:
        self.task, self.options, self.ranks, self.session, self.told = task, options, ranks, session, told
        self.train_seconds: float = state.get("train_seconds", 0.0)
        self.decay_seconds_before: float = state.get("decay_seconds", 0.0)
        self.images = task.train.batches.images_a_step
        self.keeper = Keeper(task.learner, options, ranks, session, state, told, self._seconds, self._trace)
        log_decays(task.decay, options, session)

    def run(self) -> None:
        """Train to the task's last step; evaluate, log and save after each epoch.

        Raises:
            Preempted: If the run was told to end; a checkpoint of the step it had reached is on the disk.
        """
        done, shown = self.keeper.step * self.images, self.ranks.is_main
        try:
            with progress(self.task.last_step * self.images, done, "img", "training", shown) as self.bar:
                self._train()
        except Preempted as signal:
            raise self.keeper.leave(str(signal)) from None
        self.task.train.close()
        self.task.validation.close()
        if self.session is not None:
            self._finish(self.session)

    def _train(self) -> None:
        task, keeper = self.task, self.keeper
        keeper.have_checkpoint_to_roll_back_to()
        if keeper.evaluation_due:
            self._after_epoch()
        while keeper.step < task.last_step:
            epoch, done = divmod(keeper.step, task.train.steps)
            began = time.perf_counter()
            batches = task.train.epoch(epoch, done * task.rules.accumulate)
            try:
                train_one_epoch(
                    task.learner, batches, task.rules, self.ranks, keeper.step, keeper.gate,
                    self._after_step, keeper.bad_step,
                )  # fmt: skip
            except NonFiniteWeight as error:  # met by a refresh of the decays, between two looks
                raise NonFiniteError(str(error)) from error
            finally:
                self.train_seconds += time.perf_counter() - began
            self._after_epoch()

    def _after_step(self, step: int, loss: Tensor | None) -> bool:
        ends, epoch_ends = step == self.task.last_step, step % self.task.train.steps == 0
        self.keeper.count(step, loss, evaluation_due=epoch_ends)
        self.bar.update(self.images)
        if self.session is not None and loss is not None and step % self.options.log_interval == 0:
            lr, base = self._rates()
            points = {"training/loss": loss.item(), "training/lr": lr, "training/weight_decay": base}
            self.session.curves.scalars(step, points)
            self.bar.set_postfix(loss=f"{points['training/loss']:.3f}", refresh=False)
        every = self.options.checkpoint_every
        if every and step % every == 0 and not ends and not epoch_ends:
            self.keeper.save()
        self.told.check()
        return ends

    def _after_epoch(self) -> None:
        """Evaluate, log and save. A run that ends within an epoch is saved as it was before, to go on from there."""
        keeper = self.keeper
        keeper.require_finite()
        before = None if keeper.evaluation_due else keeper.state()
        lr, base = self._rates()
        row: Row = {
            "step": keeper.step,
            "epoch": (keeper.step - 1) // self.task.train.steps,
            "lr": lr,
            "weight_decay": base,
            "bad_steps": keeper.bad_steps,
        }
        row |= applied_decay(self.task.decay) | self._evaluate()
        row |= {"train_loss": keeper.mean_loss()}  # last: a run told to end while it evaluates keeps its sums
        keeper.evaluation_due = False
        if self.session is not None:
            self.session.note_best("best", row["acc1"], keeper.step, higher_is_better=True)
            self.session.note_best("best_ema", row.get("acc1_ema"), keeper.step, higher_is_better=True)
            self.session.log_evaluation(row | {"seconds": round(self.session.seconds, 3)})
            self.bar.set_postfix({k: f"{row[k]:.1f}" for k in ("acc1", "acc1_ema") if k in row}, refresh=False)
        keeper.save(before)

    def _evaluate(self) -> Row:
        task, learner = self.task, self.task.learner
        averaged = learner.averaged if task.evaluate_ema else None
        return evaluate_all(learner.plain, averaged, task.validation, self.ranks, task.rules.precision, self.told)

    def _rates(self) -> tuple[float, float]:
        """Learning rate and base decay of the step just taken."""
        schedules, step = self.task.rules.schedules, self.keeper.step
        return schedules.lr_at(step - 1), schedules.weight_decay_at(step - 1)

    def _seconds(self) -> Row:
        return {"train_seconds": self.train_seconds, "decay_seconds": self.decay_seconds}

    def _trace(self, step: int) -> Row:
        """Where a bad step stopped being finite on this rank, and the images of the step by file or index."""
        task, random = self.task, random_state()
        batches, keys = task.train.again(step, task.rules.accumulate)
        finding = find_bad_values(task.learner, batches, backward(task.rules, self.ranks), step)
        restore_random_state(random)
        micro_batch = keys[finding.micro_step]
        return {
            "module": finding.module,
            "found": str(finding),
            "gradients": finding.parameters,
            "suspects": [task.train.name_of(micro_batch[place]) for place in finding.samples],
            "samples": [[task.train.name_of(key) for key in batch] for batch in keys],
        }

    @property
    def decay_seconds(self) -> float:
        """Seconds spent measuring spectra and assigning decays."""
        return self.decay_seconds_before + self.task.decay.seconds

    def _finish(self, session: Session) -> None:
        log = runfolder.read_rows(session.folder / runfolder.LOG)
        ledger = runfolder.read_rows(session.folder / runfolder.LEDGER)
        summary, score = self._summary(session, log), self.task.decay.metric
        with print_style():
            session.finish(summary, self._figures(log, ledger, score))
        show_summary(summary, ledger, score)
        say(f"\nrun folder: {session.folder}")

    def _figures(self, log: Sequence[Row], ledger: Sequence[Row], score: str) -> dict[str, Any]:
        """Figures of the run by name; `score` is what its ledger's scores are."""
        decay = self.task.decay
        records, spectra = measured_spectra(self.task.learner.plain, decay.measuring, **decay.selection)
        drawn = {"spectra": spectra_by_role(spectra), "alpha_by_depth": alpha_by_depth(records)}
        if log:
            drawn["training"] = training_curves(log, "acc1", "top-1 accuracy in %")
        if ledger:
            drawn["decay_over_time"] = decay_over_time(ledger, score)
        if any(row["module"] != ALL for row in ledger):  # not of a kind with one decay for all
            drawn["decay_by_depth"] = decay_by_depth(ledger, score)
        return drawn

    def _summary(self, session: Session, log: Sequence[Row]) -> Row:
        last = log[-1] if log else {}
        names = ("acc1", "acc5", "loss", "acc1_ema", "acc5_ema", "loss_ema")
        best = {f"best_acc1{k[4:]}": v["value"] for k, v in session.best.items()}
        best_steps = {f"best_acc1{k[4:]}_step": v["step"] for k, v in session.best.items()}
        trained = self.keeper.step * self.images
        return {
            "step": self.keeper.step,
            **best,
            **best_steps,
            **{name: last[name] for name in names if name in last},
            "train_loss": last.get("train_loss"),
            "bad_steps": self.keeper.bad_steps,
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
    decays = [effective_decay(g) for g in groups]
    mean = sum(s * d for s, d in zip(sizes, decays, strict=True)) / sum(sizes) if groups else 0.0
    return {
        "weight_decay_mean": mean,
        "weight_decay_min": min(decays, default=0.0),
        "weight_decay_max": max(decays, default=0.0),
    }
