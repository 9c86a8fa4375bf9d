"""A whole run as every trainer takes it: steps between evaluations, checkpoints, the summary and its figures."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from alphadecay.analysis import analyze
from alphadecay.baselines import ALL
from alphadecay.figures.alpha import alpha_by_depth
from alphadecay.figures.decay import decay_by_depth, decay_over_time
from alphadecay.figures.drawing import print_style
from alphadecay.figures.spectra import spectra_by_role
from alphadecay.groups import effective_decay
from alphadecay.records import SpectrumRecord, SpectrumRecords, spectra_of
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import power_sums
from alphadecay.skeletons import skeleton
from alphadecay.spectra import NonFiniteWeight
from runtime import runfolder
from runtime.decay_log import log_decays
from runtime.errors import NonFiniteError, Preempted
from runtime.keeper import Keeper
from runtime.learner import Learner
from runtime.preemption import Preemption
from runtime.processes import Ranks
from runtime.runfolder import Row
from runtime.schedules import Schedules
from runtime.session import RunOptions, Session
from runtime.sharded import is_sharded, whole
from runtime.tables import progress, say, tell_evaluation


@dataclass(frozen=True)
class Job:
    """What is trained, how, and until when."""

    learner: Learner
    decay: DecaySchedule
    schedules: Schedules
    last_step: int  # optimizer step at which the run stops


class Trainer(ABC):
    """The loop of a run and what it keeps count of; `session` is None on all but the main process.

    Args:
        unit: What progress is counted in, such as "img".
        units_a_step: How many of them an optimizer step takes, over all ranks.
        samples_a_step: Images or sequences of an optimizer step, over all ranks.
    """

    def __init__(
        self,
        job: Job,
        options: RunOptions,
        ranks: Ranks,
        session: Session | None,
        state: dict[str, Any],
        told: Preemption,
        unit: str,
        units_a_step: int,
        samples_a_step: int,
    ) -> None:
        self.job, self.options, self.ranks, self.session, self.told = job, options, ranks, session, told
        self.unit, self.units_a_step, self.samples_a_step = unit, units_a_step, samples_a_step
        self.train_seconds: float = state.get("train_seconds", 0.0)
        self._decay_seconds_before: float = state.get("decay_seconds", 0.0)
        self.keeper = Keeper(job.learner, options, ranks, session, state, told, self._own_state, self.trace)
        log_decays(job.decay, options, session)

    @abstractmethod
    def take_steps(self, step: int) -> None:
        """Train from optimizer step `step` on, up to the next evaluation; tell `after_step` and `keeper.bad_step`."""

    @abstractmethod
    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation belongs to the run after so many optimizer steps, wherever it stops."""

    @abstractmethod
    def evaluate(self) -> Row:
        """Validation figures for the log; raises Preempted if the run is told to end meanwhile."""

    @abstractmethod
    def note_best(self, row: Row, session: Session) -> None:
        """Remember the best figures of the run."""

    @abstractmethod
    def trace(self, step: int) -> Row:
        """Where a bad step stopped being finite on this rank; see `Keeper`."""

    @abstractmethod
    def summary(self, session: Session, log: Sequence[Row]) -> Row:
        """Final and best figures, besides those that every trainer has."""

    @abstractmethod
    def curves(self, log: Sequence[Row]) -> Any:
        """The figure of the log."""

    @abstractmethod
    def show(self, summary: Row, ledger: Sequence[Row]) -> None:
        """Print the summary."""

    def facts(self, step: int) -> Row:
        """What else the log says of a step."""
        return {}

    def state(self) -> Row:
        """What else a checkpoint must hold; all ranks come here."""
        return {}

    def shown(self, row: Row) -> Row:
        """What the progress bar shows of an evaluation."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """End what runs beside the training, however that ended."""

    def hand_over(self) -> None:
        """Write what a finished run leaves besides its folder; all ranks come here."""
        return None

    def run(self) -> None:
        """Train to the job's last step; evaluate, log and save in between.

        Raises:
            Preempted: If the run was told to end; a checkpoint of the step it had reached is on the disk.
        """
        done, last = self.keeper.step * self.units_a_step, self.job.last_step * self.units_a_step
        try:
            with progress(last, done, self.unit, "training", self.ranks.is_main) as self.bar:
                self._train()
        except Preempted as signal:
            raise self.keeper.leave(str(signal)) from None
        finally:
            self.close()
        model = whole_model(self.job.learner.plain)
        if self.session is not None:
            self._finish(self.session, model)
        self.hand_over()

    def _train(self) -> None:
        job, keeper = self.job, self.keeper
        keeper.have_checkpoint_to_roll_back_to()
        if keeper.evaluation_due or (keeper.step >= job.last_step and not self._is_evaluated()):
            self._evaluate_and_save()
        while keeper.step < job.last_step:
            began = time.perf_counter()
            try:
                self.take_steps(keeper.step)
            except NonFiniteWeight as error:  # met by a refresh of the decays, between two looks
                raise NonFiniteError(str(error)) from error
            finally:
                self.train_seconds += time.perf_counter() - began
            self._evaluate_and_save()

    def _is_evaluated(self) -> bool:
        """Whether the log's last row is of the step that has been reached."""
        session, step = self.session, self.keeper.step
        return self.ranks.from_main(lambda: session is not None and session.last_evaluation() == step)

    def after_step(self, step: int, loss: Tensor | None) -> bool:
        """Take note of a step, and save where it is time; returns whether the run ends with it."""
        ends, evaluates = step == self.job.last_step, self.evaluates_after(step)
        self.keeper.count(step, loss, evaluation_due=evaluates)
        self.bar.update(self.units_a_step)
        if self.session is not None and loss is not None and step % self.options.log_interval == 0:
            lr, base = self._rates()
            points = {"training/loss": loss.item(), "training/lr": lr, "training/weight_decay": base}
            self.session.curves.scalars(step, points)
            self.bar.set_postfix(loss=f"{points['training/loss']:.3f}", refresh=False)
        every = self.options.checkpoint_every
        if every and step % every == 0 and not ends and not evaluates:
            self.keeper.save()
        self.told.check()
        return ends

    def _evaluate_and_save(self) -> None:
        """Evaluate, log and save. A run that ends before its next evaluation is saved as it was before this one."""
        keeper = self.keeper
        keeper.require_finite()
        before = None if keeper.evaluation_due else keeper.state()
        lr, base = self._rates()
        row: Row = {"step": keeper.step, **self.facts(keeper.step), "lr": lr, "weight_decay": base}
        row |= {"bad_steps": keeper.bad_steps} | applied_decay(self.job.decay) | self.evaluate()
        row |= {"train_loss": keeper.mean_loss()}  # last: a run told to end while it evaluates keeps its sums
        keeper.evaluation_due = False
        if self.session is not None:
            self.note_best(row, self.session)
            self.session.log_evaluation(row | {"seconds": round(self.session.seconds, 3)})
            tell_evaluation(self.bar, keeper.step, self.shown(row))
        keeper.save(before)

    def _rates(self) -> tuple[float, float]:
        """Learning rate and base decay of the step just taken."""
        schedules, step = self.job.schedules, self.keeper.step
        return schedules.lr_at(step - 1), schedules.weight_decay_at(step - 1)

    def _own_state(self) -> Row:
        return {"train_seconds": self.train_seconds, "decay_seconds": self.decay_seconds} | self.state()

    @property
    def decay_seconds(self) -> float:
        """Seconds that training waited for spectra and assignments."""
        return self._decay_seconds_before + self.job.decay.seconds

    def _finish(self, session: Session, model: nn.Module) -> None:
        log = runfolder.read_rows(session.folder / runfolder.LOG)
        ledger = runfolder.read_rows(session.folder / runfolder.LEDGER)
        decay, trained = self.job.decay, self.keeper.step * self.samples_a_step
        how: dict[str, Any] = vars(decay.measuring) | decay.selection
        records = analyze(model, **how)
        summary = self.summary(session, log) | {
            "train_loss": log[-1].get("train_loss") if log else None,
            "bad_steps": self.keeper.bad_steps,
            "parameters": sum(p.numel() for p in self.job.learner.plain.parameters()),
            "seconds": round(session.seconds, 3),
            "samples_per_second": round(trained / self.train_seconds, 3) if self.train_seconds else None,
            "decay_seconds": round(self.decay_seconds, 3),
            "alpha_by_role": mean_alphas(records),
        }
        with print_style():
            session.finish(summary, self._figures(records, log, ledger))
        self.show(summary, ledger)
        say(f"\nrun folder: {session.folder}")

    def _figures(self, records: SpectrumRecords, log: Sequence[Row], ledger: Sequence[Row]) -> dict[str, Any]:
        """Figures of the run by name."""
        decay = self.job.decay
        drawn = {"spectra": spectra_by_role(spectra_of(records)), "alpha_by_depth": alpha_by_depth(records)}
        if log:
            drawn["training"] = self.curves(log)
        if ledger:
            drawn["decay_over_time"] = decay_over_time(ledger, decay.metric)
        if any(row["module"] != ALL for row in ledger):  # not of a kind with one decay for all
            drawn["decay_by_depth"] = decay_by_depth(ledger, decay.metric)
        return drawn


def whole_model(plain: nn.Module) -> nn.Module:
    """The model, or modules with its whole weights where they are sharded; all ranks come here."""
    if not any(is_sharded(p) for p in plain.parameters()):
        return plain
    return skeleton({name: tensor.cpu() for name, tensor in whole(plain.state_dict()).items()})


def mean_alphas(records: Sequence[SpectrumRecord]) -> dict[str, float]:
    """The mean alpha of each role's modules, for roles that have one."""
    by_role: dict[str, list[float]] = {}
    for record in records:
        if record.alpha is not None:
            by_role.setdefault(record.role, []).append(record.alpha)
    return {role: sum(alphas) / len(alphas) for role, alphas in by_role.items()}


def applied_decay(decay: DecaySchedule) -> Row:
    """Smallest, largest and mean applied decay, weighted by parameters, and the norm of the weights.

    All are over what is decayed at all; all ranks must call.
    """
    groups = [g for g in decay.optimizer.param_groups if g["static_multiplier"] > 0]
    sizes = [sum(p.numel() for p in g["params"]) for g in groups]
    decays = [effective_decay(g) for g in groups]
    mean = sum(s * d for s, d in zip(sizes, decays, strict=True)) / sum(sizes) if groups else 0.0
    weights = [p.detach() for g in groups for p in g["params"]]
    return {
        "weight_decay_mean": mean,
        "weight_decay_min": min(decays, default=0.0),
        "weight_decay_max": max(decays, default=0.0),
        "weight_norm": float(power_sums(weights, 2).sum().sqrt()) if weights else 0.0,
    }
