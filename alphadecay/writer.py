"""The only writer of `weight_decay` in an optimizer: when it acts and where it writes, without the maths."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from alphadecay.analysis import Measuring, SpectrumRecord, record_without_measures
from alphadecay.groups import Group, effective_decay, is_module, multiplier_of, shared_multipliers
from alphadecay.matrices import Matrix, whole_number
from alphadecay.membership import Membership
from alphadecay.records import SpectrumRecords
from alphadecay.saved_state import checked_state, note_measured, note_refreshed, take_measured, take_refreshed
from alphadecay.splitting import take_written
from alphadecay.step_hooks import StepHooks, chain_of, innermost, refuse_second
from alphadecay.wording import description, no_base_decay, overwritten


class DecayWriter(ABC):
    """Keeps weight_decay = base x static x adaptive multiplier in every group; base class of `DecaySchedule`."""

    strategy = kind = ""
    metric = "score"
    adaptive = True
    same_for_all = False
    takes_over = False
    measuring = Measuring()

    def __init__(
        self, model: nn.Module, optimizer: Any, interval: int, ranking: str, selection: dict[str, Any]
    ) -> None:
        self.interval, self.model = whole_number("interval", interval, "optimizer steps"), model
        self.selection, self.optimizer = selection, innermost(optimizer)
        refuse_second(self.optimizer)
        self._check_optimizer()
        self.records = SpectrumRecords()
        self.scores: dict[str, float] = {}
        self.measured_at = 0
        self.seconds = 0.0
        self._membership = Membership(model, self.optimizer, self.selection, ranking)
        take_written(self.optimizer.param_groups)
        self._warned: set[str] = set()
        self._adapted_then = self._membership.adapted  # at the last refresh
        for group in self.optimizer.param_groups:  # another strategy was attached before and detached
            if group["decay_kind"] != self.strategy:
                group["decay_kind"] = ""
        self._written: list[float] | None = [group["weight_decay"] for group in self.optimizer.param_groups]
        wrappers = [outer for outer in chain_of(optimizer) if outer is not self.optimizer]
        self._hooks: StepHooks | None = StepHooks(self.optimizer, self, wrappers)
        matrices = [m for m in self._membership.matrices if m.may_be_adapted]
        if matrices and all(m.reason for m in matrices):
            first = matrices[0]
            self._warn_once("none yet", f"no weight matrix can be adapted yet ({first.name}: {first.reason})")

    @abstractmethod
    def _check_optimizer(self) -> None:
        """Raise ValueError if the optimizer does not support this decay; called before its groups are changed."""

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.optimizer.param_groups[0]["decay_step"]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weight of each matrix of the model by name, skipped ones included."""
        return {m.name: m.weight for m in self._membership.matrices}

    @property
    def statics(self) -> dict[str, float]:
        """The static multiplier of each module that has its own group, or shares one."""
        return self._membership.statics

    @property
    def matrices(self) -> list[Matrix]:
        """Every weight matrix of the model as it is now; skipped ones have a reason."""
        self._find_members()
        return self._membership.matrices

    @property
    def next_refresh(self) -> int | None:
        """The step, counted from 0, before which the next refresh is due; None: never."""
        return -(-self.step // self.interval) * self.interval if self._wrote_multipliers else self.step

    @property
    def multipliers(self) -> dict[str, float]:
        """The adaptive multiplier of each module that has its own group, or shares a group that was added later."""
        own = {group["decay_name"]: group["decay_multiplier"] for group in self.own_groups}
        return own | shared_multipliers(self.optimizer.param_groups)

    @property
    def own_groups(self) -> list[Group]:
        """The groups that hold only the weight of one module."""
        self._find_members()
        return [group for group in self.optimizer.param_groups if is_module(group)]

    def __repr__(self) -> str:
        return description(self)

    def refresh(self) -> None:
        """Measure now and write the new decays; the schedule calls it when a refresh is due."""
        began = time.perf_counter()
        self._find_members()
        self.measured_at = self.step
        records, multipliers = self._measure()
        self._adapted_then = self._membership.adapted
        self._took(records, multipliers, began)

    def _took(self, records: Sequence[SpectrumRecord], multipliers: Mapping[str, float], began: float) -> None:
        """Store the records and write the multipliers of a refresh that began at that time."""
        notes = self._membership.notes()
        self.records = SpectrumRecords(replace(r, note=r.note or notes.get(r.name, "")) for r in records)
        for group in self.optimizer.param_groups:
            group["decay_multiplier"] = multiplier_of(group, multipliers, self._membership.matrices)
            group["decay_kind"] = self.strategy
        self._write()
        self.seconds += time.perf_counter() - began
        self._refreshed()

    @abstractmethod
    def _refreshed(self) -> None:
        """Called after the multipliers of a refresh were written."""

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        if self._hooks is None:
            return
        self._find_members()
        self._hooks.remove()
        self._hooks = None
        self._write()
        for group in self.optimizer.param_groups:
            group["decay_kind"] = ""  # a schedule that is attached later refreshes first

    @abstractmethod
    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        """The records, and multipliers by module name; other modules get 1."""

    @property
    def _wrote_multipliers(self) -> bool:
        """Whether this strategy wrote the multipliers; assumed of old states, which lack this key."""
        return self.optimizer.param_groups[0].get("decay_kind", self.strategy) == self.strategy

    def before_step(self) -> None:
        """Refresh if due, and write the decays; called by the optimizer's hooks."""
        self.loaded()
        self._find_members()
        groups, step = self.optimizer.param_groups, self.step
        if self._written is not None and len(self._written) == len(groups):
            self._warn_once("overwritten", overwritten(groups, self._written))
        self._warn_once("learning rate", self._membership.rate_set_alone())
        self._act(step)
        self._write()
        if self.adaptive:
            self._warn_once("no decay", no_base_decay(groups, type(self).__name__))
        for group in groups:
            group["decay_step"] = step + 1

    @abstractmethod
    def after_step(self) -> None:
        """Act after the step; called by the optimizer's hooks."""

    @property
    def _due(self) -> bool:
        """Whether other matrices are adapted than at the last refresh, before which a saved state may lie."""
        return self._membership.adapted != self._adapted_then

    def _act(self, step: int) -> None:
        """Refresh before this step if a refresh is due."""
        if step % self.interval == 0 or not self._wrote_multipliers or self._due:
            self.refresh()

    def _find_members(self) -> None:
        """Update the matrices if any was added, unfrozen, initialised or pruned since the last step."""
        if self._membership.changed():
            self._membership.update()
            self._written = None

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Refuse a state with other groups or another strategy; called by the optimizer's hooks."""
        self._find_members()
        checked = checked_state(self.optimizer.param_groups, state, self.strategy, self.takes_over)
        self.records, self.scores, self._written = SpectrumRecords(), {}, None
        return checked

    def loaded(self) -> None:
        """Restore from a loaded state what the last refresh saw: adapted matrices, records and scores."""
        refreshed = take_refreshed(self.optimizer.param_groups)
        if refreshed:
            self.measured_at, self._adapted_then = refreshed["at"], (refreshed["adapted"], refreshed["elsewhere"])
        measured = take_measured(self.optimizer.param_groups)
        if not measured:
            return
        self.measured_at = next(iter(measured.values()))["at"]
        self.scores = {name: values["score"] for name, values in measured.items() if values["score"] is not None}
        self.records = self._records({name: values["record"] for name, values in measured.items()})

    def _records(self, measured: Mapping[str, Mapping[str, Any]]) -> SpectrumRecords:
        """Records of all matrices, from plain values by name; without measures if a matrix has none."""
        return SpectrumRecords(
            SpectrumRecord(**measured[m.name]) if m.name in measured else record_without_measures(m, m.reason)
            for m in self._membership.matrices
        )

    def settle(self) -> None:
        """Store what the last refresh measured in the groups, before the state is saved."""
        self._find_members()
        note_measured(self.optimizer.param_groups, self.records, self.scores, self.measured_at)
        note_refreshed(self.optimizer.param_groups, self.measured_at, self._adapted_then)

    def saved(self) -> None:
        """Remove it from the groups after the state was saved."""
        take_measured(self.optimizer.param_groups)
        take_refreshed(self.optimizer.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """The state of copies and pickles."""
        self.settle()
        self.saved()
        return dict(vars(self))

    def _warn_once(self, topic: str, sentence: str) -> None:
        if sentence and topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(sentence, stacklevel=2)

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self._decay_of(group)
        self._written = [group["weight_decay"] for group in self.optimizer.param_groups]

    def _decay_of(self, group: Group) -> float:
        """The weight_decay that the optimizer gets for a group."""
        return effective_decay(group)
