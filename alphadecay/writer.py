"""The one writer of `weight_decay` in an optimizer: when it acts and where it writes; the maths is elsewhere."""

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
from alphadecay.saved_state import checked_state, note_measured, take_measured
from alphadecay.splitting import take_written
from alphadecay.step_hooks import StepHooks, chain_of, innermost, refuse_second
from alphadecay.wording import description, no_base_decay, overwritten


class DecayWriter(ABC):
    """Keeps weight_decay = base x static x adaptive multiplier in every group; see `DecaySchedule`, its public half."""

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
        self._said: set[str] = set()
        self._due = False
        for group in self.optimizer.param_groups:  # another strategy was attached before and detached
            if group["decay_kind"] != self.strategy:
                group["decay_kind"] = ""
        self._written: list[float] | None = [group["weight_decay"] for group in self.optimizer.param_groups]
        wrappers = [each for each in chain_of(optimizer) if each is not self.optimizer]
        self._hooks: StepHooks | None = StepHooks(self.optimizer, self, wrappers)
        waiting = [m for m in self._membership.matrices if m.may_be_adapted]
        if all(m.reason for m in waiting):
            self._warn_once("none yet", f"no weight matrix can be adapted yet ({waiting[0].name}: {waiting[0].reason})")

    @abstractmethod
    def _check_optimizer(self) -> None:
        """Raise ValueError if the optimizer will not do; its groups are as they were given."""

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.optimizer.param_groups[0]["decay_step"]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weight of each matrix of the model by name, also of those that take no part."""
        return {m.name: m.weight for m in self._membership.matrices}

    @property
    def matrices(self) -> list[Matrix]:
        """Every weight matrix of the model as it is now; those that take no part with the reason."""
        self._find_members()
        return self._membership.matrices

    @property
    def next_refresh(self) -> int | None:
        """Before which step, counted from 0, the next refresh is due by itself; None: never."""
        return -(-self.step // self.interval) * self.interval if self._wrote_multipliers else self.step

    @property
    def multipliers(self) -> dict[str, float]:
        """The adaptive multiplier of each module that has a group of its own, or shares one that was added."""
        own = {group["decay_name"]: group["decay_multiplier"] for group in self.own_groups}
        return own | shared_multipliers(self.optimizer.param_groups)

    @property
    def own_groups(self) -> list[Group]:
        """The groups that hold one module's weight and nothing else."""
        self._find_members()
        return [group for group in self.optimizer.param_groups if is_module(group)]

    def __repr__(self) -> str:
        return description(self)

    def refresh(self) -> None:
        """Measure now and write the new decays; called by itself when due."""
        began = time.perf_counter()
        self._find_members()
        self.measured_at = self.step
        records, multipliers = self._measure()
        self._due = False
        self._took(records, multipliers, began)

    def _took(self, records: Sequence[SpectrumRecord], multipliers: Mapping[str, float], began: float) -> None:
        """Write what was measured, and tell of it."""
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
        """The multipliers of a refresh are written."""

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        if self._hooks is None:
            return
        self._find_members()
        self._hooks.remove()
        self._hooks = None
        self._write()
        for group in self.optimizer.param_groups:
            group["decay_kind"] = ""  # whoever is attached next refreshes first

    @abstractmethod
    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        """Records, and the multiplier by module name; modules left out get 1."""

    @property
    def _wrote_multipliers(self) -> bool:
        """Whether they are this strategy's; states from before that was noted count as such."""
        return self.optimizer.param_groups[0].get("decay_kind", self.strategy) == self.strategy

    def before_step(self) -> None:
        """Refresh if it is time, and write the decays; called by the optimizer's hooks."""
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
        """The step was taken; called by the optimizer's hooks."""

    def _act(self, step: int) -> None:
        """Refresh before step `step` if it is time."""
        if step % self.interval == 0 or not self._wrote_multipliers or self._due:
            self.refresh()

    def _find_members(self) -> None:
        """Take in what was added, unfrozen, initialised or pruned since the last step; a refresh is due then."""
        if self._membership.changed():
            self._due |= self._membership.update()
            self._written = None

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Refuse a state of other groups or another kind of decay; called by the optimizer's hooks."""
        self._find_members()
        checked = checked_state(self.optimizer.param_groups, state, self.strategy, self.takes_over)
        self.records, self.scores, self._written = SpectrumRecords(), {}, None
        return checked

    def loaded(self) -> None:
        """Take over what a loaded state says of its last refresh."""
        measured = take_measured(self.optimizer.param_groups)
        if not measured:
            return
        self.measured_at = next(iter(measured.values()))["at"]
        self.scores = {name: each["score"] for name, each in measured.items() if each["score"] is not None}
        self.records = self._records({name: each["record"] for name, each in measured.items()})

    def _records(self, measured: Mapping[str, Mapping[str, Any]]) -> SpectrumRecords:
        """Records of all matrices: those of plain values where there are some."""
        return SpectrumRecords(
            SpectrumRecord(**measured[m.name]) if m.name in measured else record_without_measures(m, m.reason)
            for m in self._membership.matrices
        )

    def settle(self) -> None:
        """Note in the groups, for a state that is saved, what the last refresh found."""
        self._find_members()
        note_measured(self.optimizer.param_groups, self.records, self.scores, self.measured_at)

    def saved(self) -> None:
        """The state was saved: live groups do not hold that."""
        take_measured(self.optimizer.param_groups)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        self.settle()
        self.saved()
        return dict(vars(self))

    def _warn_once(self, what: str, sentence: str) -> None:
        if sentence and what not in self._said:
            self._said.add(what)
            warnings.warn(sentence, stacklevel=2)

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self._decay_of(group)
        self._written = [group["weight_decay"] for group in self.optimizer.param_groups]

    def _decay_of(self, group: Group) -> float:
        """What the optimizer is told to decay a group by."""
        return effective_decay(group)
