"""The trainer of both programs: steps, evaluations, checkpoints, ending after a signal, bad steps, the summary."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay.analysis import analyze
from alphadecay.figures.drawing import print_style
from alphadecay.records import SpectrumRecords
from alphadecay.schedule import DecaySchedule
from alphadecay.spectra import NonFiniteWeight
from runtime import runfolder
from runtime.checkpoints import find_checkpoint, has_checkpoints
from runtime.command import resume_command
from runtime.decay_log import log_decays
from runtime.errors import Interrupted, NonFiniteError, Preempted
from runtime.figures import figures_of_run
from runtime.finite import FiniteGate
from runtime.learner import Learner, learner_state, require_finite, restore
from runtime.reports import applied_decay, mean_alphas
from runtime.run import StartedRun
from runtime.runfolder import Row
from runtime.saving import ShardSaver, WholeSaver
from runtime.session import Session
from runtime.sharded import agree_on_buffers
from runtime.steps import StepRules
from runtime.tables import progress, say, show_evaluation
from runtime.training_state import TrainingState


@dataclass(frozen=True, kw_only=True)
class Task:
    """The parts of a run, built before anything is written; each program adds its own."""

    learner: Learner
    decay: DecaySchedule
    rules: StepRules
    timescale: str  # a line on how long decay remembers
    last_step: int  # optimizer step at which the run stops
    in_shards: bool = False  # each process writes its part of a checkpoint


class Trainer(ABC):
    """Trains from the first step, or from a checkpoint's, to the last; on every rank.

    Args:
        task: The parts of the run.
        run: Its folder and the state it resumes from.
        unit: The unit of progress, such as "img".
        units_per_step: Units per optimizer step, over all ranks.
        samples_per_step: Images or sequences per optimizer step, over all ranks.
    """

    def __init__(self, task: Task, run: StartedRun, unit: str, units_per_step: int, samples_per_step: int) -> None:
        self.learner, self.decay, self.schedules, self.last_step = (
            task.learner, task.decay, task.rules.schedules, task.last_step
        )  # fmt: skip
        self.options, self.ranks, self.session, self.preemption = run.options, run.ranks, run.session, run.preemption
        self.unit, self.units_per_step, self.samples_per_step = unit, units_per_step, samples_per_step
        self.counts = run.state.counts
        self.saved_step = self.counts.step
        sums, ranks = self.counts.loss_sums, run.ranks
        self._loss_sum = torch.tensor(sums[ranks.rank % len(sums)], dtype=torch.float64, device=ranks.device)
        self._decay_seconds_before = self.counts.decay_seconds
        self.saver = (
            ShardSaver(task.learner, run.session, ranks, Path(run.options.output_dir))
            if task.in_shards
            else WholeSaver(task.learner, run.session)
        )
        self.gate = FiniteGate(task.learner, ranks, run.options.on_nonfinite, run.options.log_interval)
        log_decays(task.decay, run.options, run.session)

    @abstractmethod
    def take_steps(self, step: int) -> None:
        """Train from optimizer step `step` to the next evaluation; call `after_step` and `bad_step`."""

    @abstractmethod
    def evaluates_after(self, step: int) -> bool:
        """Whether the run has an evaluation after optimizer step `step`, not counting one at its last step."""

    @abstractmethod
    def evaluate(self) -> Row:
        """Validation metrics for the log; raises Preempted if a signal requests the run to end."""

    @abstractmethod
    def note_best(self, row: Row, session: Session) -> None:
        """Remember the best metrics of the run."""

    @abstractmethod
    def trace(self, step: int) -> Row:
        """Where values of a bad step are not finite on this rank: "module" (or ""), "found" (in words), "suspects"."""

    @abstractmethod
    def summary(self, session: Session, log: Sequence[Row]) -> Row:
        """Final and best metrics, besides those that every trainer has."""

    @abstractmethod
    def curves(self, log: Sequence[Row]) -> Any:
        """The figure of the training log."""

    @abstractmethod
    def show(self, summary: Row, decay_log: Sequence[Row]) -> None:
        """Print the summary."""

    @abstractmethod
    def close(self) -> None:
        """End loaders and other background work; called however the training ended."""

    def facts(self, step: int) -> Row:
        """Further entries of the log's row for a step."""
        return {}

    def streams(self) -> list[Row] | None:
        """The position of each rank's data stream; None if the step number gives it. All ranks must call this."""
        return None

    def shown(self, row: Row) -> Row:
        """The metrics of an evaluation that the progress bar shows."""
        return {}

    def hand_over(self) -> None:
        """Write the results of a finished run outside its folder. All ranks must call this."""
        return None

    def run(self) -> None:
        """Train to the last step; evaluate, log and save in between.

        Raises:
            Preempted: If a signal requested the run to end; a checkpoint of the last step is on the disk.
        """
        done, last = self.counts.step * self.units_per_step, self.last_step * self.units_per_step
        try:
            with progress(last, done, self.unit, "training", self.ranks.is_main) as self.bar:
                self._train()
        except Preempted as signal:
            raise self._leave(str(signal)) from None
        finally:
            self.close()
        self.saver.wait()
        records = self._records()
        if self.session is not None:
            self._finish(self.session, records)
        self.hand_over()

    def _records(self) -> SpectrumRecords:
        """The spectra of the trained weights, which ranks share the measuring of; all are on the main process."""
        ranks = dist.group.WORLD if self.ranks.count > 1 else None
        how = {**vars(self.decay.measuring), **self.decay.selection}
        records = analyze(self.learner.plain, **how, process_group=ranks)
        spectra = self.ranks.gather_to_main(records.spectra)
        return SpectrumRecords(records, {name: eigs for part in spectra for name, eigs in part.items()})

    def _train(self) -> None:
        self._ensure_checkpoint()
        counts = self.counts
        if counts.evaluation_due or (counts.step >= self.last_step and not self._is_evaluated()):
            self._evaluate_and_save()
        while counts.step < self.last_step:
            began = time.perf_counter()
            try:
                self.take_steps(counts.step)
            except NonFiniteWeight as error:  # found by a refresh, between two checks
                raise NonFiniteError(str(error)) from error
            finally:
                counts.train_seconds += time.perf_counter() - began
            self._evaluate_and_save()

    def _is_evaluated(self) -> bool:
        """Whether the log's last row belongs to the current step."""
        session, step = self.session, self.counts.step
        return self.ranks.from_main(lambda: session is not None and session.last_evaluation() == step)

    def after_step(self, step: int, loss: Tensor | None) -> bool:
        """Count a step, and save if a checkpoint is due; return whether the run ends with it.

        Args:
            step: Optimizer steps taken, including this one.
            loss: The step's mean loss on this rank, a scalar; None if the update was skipped.

        Raises:
            UserError: If a checkpoint could not be written in the background.
            Preempted: If a signal requests the run to end.
        """
        counts, ends, evaluates = self.counts, step == self.last_step, self.evaluates_after(step)
        counts.step, counts.evaluation_due = step, evaluates
        if loss is not None:
            self._loss_sum += loss
            counts.loss_steps += 1
        self.bar.update(self.units_per_step)
        self.saver.check()
        if self.session is not None and loss is not None and step % self.options.log_interval == 0:
            lr, base = self._rates()
            points = {"training/loss": loss.item(), "training/lr": lr, "training/weight_decay": base}
            self.session.curves.scalars(step, points)
            self.bar.set_postfix(loss=f"{points['training/loss']:.3f}", refresh=False)
        every = self.options.checkpoint_every
        if every and step % every == 0 and not ends and not evaluates:
            self.save()
        self.preemption.check()
        return ends

    def _evaluate_and_save(self) -> None:
        """Evaluate, log and save.

        If --max_steps ends the run between evaluations, the checkpoint has the state from before this extra evaluation.
        """
        counts = self.counts
        self._require_finite()
        agree_on_buffers([self.learner.plain, self.learner.averaged], self.ranks)
        before = None if counts.evaluation_due else self.state()
        lr, base = self._rates()
        row: Row = {"step": counts.step, **self.facts(counts.step), "lr": lr, "weight_decay": base}
        row |= {"bad_steps": counts.bad_steps} | applied_decay(self.decay) | self.evaluate()
        row |= {"train_loss": self._mean_loss()}  # last: a run that ends during the evaluation keeps its sums
        counts.evaluation_due = False
        if self.session is not None:
            self.note_best(row, self.session)
            self.session.log_evaluation(row | {"seconds": round(self.session.seconds, 3)})
            show_evaluation(self.bar, counts.step, self.shown(row))
        self.save(before)

    def _mean_loss(self) -> float | None:
        """Mean training loss over all ranks since the last call; None if there was no step."""
        steps = torch.full_like(self._loss_sum, self.counts.loss_steps)
        total, steps = self.ranks.sum(torch.stack([self._loss_sum, steps]))
        self._loss_sum, self.counts.loss_steps = torch.zeros_like(self._loss_sum), 0
        return float(total / steps) if steps else None

    def _rates(self) -> tuple[float, float]:
        """Learning rate and base decay of the step just taken."""
        step = self.counts.step - 1
        return self.schedules.lr_at(step), self.schedules.weight_decay_at(step)

    def state(self) -> TrainingState:
        """The state for a checkpoint, besides raw and EMA weights. All ranks must call this."""
        sums = self.ranks.gather_to_main(self._loss_sum.item())
        seconds = self._decay_seconds_before + self.decay.seconds
        counts = replace(self.counts, loss_sums=sums, decay_seconds=seconds)
        learner, streams = learner_state(self.learner, self.ranks, self.saver.in_shards), self.streams()
        if self.session is None:  # only the main process writes
            return TrainingState(counts, learner, streams=streams)
        return TrainingState(counts, learner, self.session.written(), streams)

    def save(self, state: TrainingState | None = None) -> None:
        """Write a checkpoint in the background, with `state` or the current one. All ranks must call this.

        Raises:
            NonFiniteError: If a weight is not finite; then nothing is saved.
        """
        self._require_finite()
        state = state or self.state()
        self.saved_step = self.counts.step
        self.saver.save(self.counts.step, state)

    def _ensure_checkpoint(self) -> None:
        """Save the initial state if the policy is rollback and the run folder has no checkpoint."""
        folder = Path(self.options.output_dir)
        if self.options.on_nonfinite == "rollback" and not self.ranks.from_main(lambda: has_checkpoints(folder)):
            self.save()

    def _leave(self, signal: str) -> Preempted:
        """Save the current step after a signal and write the file REQUEUE; return the error to raise."""
        if self.counts.step > self.saved_step:
            self.save()
        self.saver.wait()
        message = f"{signal} at optimizer step {self.counts.step}; resume with"
        interrupted = signal == "SIGINT"  # by a person, who decides when to resume
        if self.session is not None:
            self.session.leave("" if interrupted else f"{message} --resume auto")
        self.ranks.wait()  # torchrun ends the other processes as soon as one has ended
        if interrupted:
            return Interrupted(f"{message}: {resume_command(self.options.output_dir, self.ranks.count)}")
        return Preempted(f"{message} --resume auto")

    def _require_finite(self) -> None:
        """Handle a bad step since the last check; raise NonFiniteError if a weight is not finite."""
        bad_step = self.gate.first_bad_step()
        if bad_step is not None:
            self.bad_step(bad_step)
        require_finite(self.learner.plain, self.counts.step)

    def bad_step(self, step: int) -> None:
        """Trace a step whose loss or gradient is not finite, then apply the policy --on_nonfinite.

        Raises:
            NonFiniteError: If the policy is stop, or there were more than --max_nonfinite bad steps.
        """
        self.counts.bad_steps += 1
        count, policy, most = self.counts.bad_steps, self.options.on_nonfinite, self.options.max_nonfinite
        traces = self.ranks.gather(self.trace(step))
        first = next((row for row in traces if row["module"]), traces[0])
        suspects = f", sample {first['suspects'][0]}" if first["suspects"] else ""
        message = f"loss or gradient not finite at optimizer step {step}: first in {first['found']}{suspects}"
        if self.session is not None:
            self.session.append(runfolder.BAD_STEPS, [{"step": step, "action": policy, "ranks": traces}])
        if policy == "stop":
            raise NonFiniteError(f"{message}; --on_nonfinite skip or rollback would continue")
        if count > most:
            raise NonFiniteError(f"{message}; such steps: {count}, more than --max_nonfinite {most}")
        if policy == "rollback":
            message += f"; back to the weights of step {self._roll_back()}"
        if self.ranks.is_main:
            say(f"warning: {message}; its update is skipped ({count} so far)")

    def _roll_back(self) -> int:
        """Restore the newest checkpoint's state; data and schedules continue. Return its step."""
        self.saver.wait()
        folder = Path(self.options.output_dir)
        checkpoint, _ = self.ranks.from_main(lambda: find_checkpoint(folder))
        restore(self.learner, checkpoint, self.ranks)
        return checkpoint.step

    def _finish(self, session: Session, records: SpectrumRecords) -> None:
        """Write the summary and the figures, and print the summary."""
        log = runfolder.read_rows(session.folder / runfolder.LOG)
        decay_log = runfolder.read_rows(session.folder / runfolder.DECAY_LOG)
        samples, seconds = self.counts.step * self.samples_per_step, self.counts.train_seconds
        summary = self.summary(session, log) | {
            "train_loss": log[-1].get("train_loss") if log else None,
            "bad_steps": self.counts.bad_steps,
            "parameters": sum(p.numel() for p in self.learner.plain.parameters()),
            "seconds": round(session.seconds, 3),
            "samples_per_second": round(samples / seconds, 3) if seconds else None,
            "decay_seconds": round(self._decay_seconds_before + self.decay.seconds, 3),
            "alpha_by_role": mean_alphas(records),
        }
        with print_style():
            session.finish(summary, self._figures(records, log, decay_log))
        self.show(summary, decay_log)
        say(f"\nrun folder: {session.folder}")

    def _figures(self, records: SpectrumRecords, log: Sequence[Row], decay_log: Sequence[Row]) -> dict[str, Any]:
        training = {"training": self.curves(log)} if log else {}
        return training | figures_of_run(records, decay_log, self.decay.metric)
