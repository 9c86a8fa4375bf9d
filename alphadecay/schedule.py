"""The one writer of `weight_decay` in an optimizer: when it acts and where it writes; the maths is elsewhere."""

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from alphadecay.analysis import Measuring, SpectrumRecord, record_without_measures
from alphadecay.entries import EntryDecay
from alphadecay.groups import Group, effective_decay, is_module, multiplier_of, shared_multipliers
from alphadecay.ledger import DecayLog
from alphadecay.matrices import MIN_EIGENVALUES, Matrix, whole_number
from alphadecay.membership import Membership
from alphadecay.records import SpectrumRecords
from alphadecay.saved_state import checked_state, note_measured, take_measured
from alphadecay.splitting import take_written
from alphadecay.step_hooks import StepHooks, chain_of, innermost, refuse_second
from alphadecay.twins import why_coupled
from alphadecay.wording import description, no_base_decay, overwritten


class StepWatcher(Protocol):
    """Looks at steps as they are taken, and changes nothing; see `DecaySchedule.watchers`."""

    def before_update(self, step: int) -> None:
        """The decays are written and the gradients there; `step` optimizer steps were taken before."""

    def after_update(self) -> None:
        """The step was taken and all decay applied."""


class DecaySchedule(ABC):
    """What all schedules of decay are: they keep weight_decay = base x static x adaptive multiplier in every group.

    Attaches to the optimizer's step: before the first step and every `interval` optimizer steps the multipliers
    are refreshed, and before each step the product is written. Schedules of the base decay write a group's
    `base_weight_decay`, never its `weight_decay`, which is overwritten. A step that is given a closure runs it first:
    only then are the gradients there. All state is in the groups: to resume, construct, then load the optimizer's
    state dict. Copies and pickles of the optimizer or of this object bring each other, and the model, along.

    A subclass says in `_measure` which multiplier each module gets.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split where needed.
        interval: Optimizer steps between refreshes, a whole number of at least 1.
        exclude: Globs over module names that stay out and keep their base decay, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": they take part as well.
        min_eigenvalues: Matrices with fewer eigenvalues stay out; at least 1.
        ranking: "optimizer": matrices that this optimizer does not hold take no part. "model": they count among the
            others' scores.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Groups then have weight_decay 0, and the decay is applied after the optimizer's step.
        on_refresh: Called with this object after each refresh, before the step is taken.

    Attributes:
        kind: What the groups call this kind of decay.
        metric: What its scores are.
        adaptive: Whether multipliers differ from 1.
        same_for_all: Whether all modules have the same multiplier.
        by_entry: Whether entries of one weight are decayed by different amounts, beyond `cautious`.
        takes_over: Whether a state of another kind may be loaded; the next step then refreshes. Set it before loading.
        records: What the last refresh measured, one `SpectrumRecord` a matrix; empty before the first one.
        measured_at: The step before which the weights were as it measured them.
        scores: What it ranked the modules by, by name.
        measuring: How spectra are measured, where they are.
        seconds: Wall-clock time spent in refreshes by this object.
        watchers: Told before and after each step that is not skipped; `alphadecay.DecayAudit` is one.

    Raises:
        ValueError: For impossible values, a model in which no matrix takes part or can, an optimizer without weight
            decay or on which another schedule acts, or groups that would have to be split under a learning-rate
            scheduler.

    Example:
        >>> import torch, alphadecay
        >>> def told(decay: alphadecay.DecaySchedule) -> None:
        ...     print(decay.kind, decay.step)
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.UniformDecay(model, optimizer, on_refresh=told)
        >>> decay.refresh()
        uniform 0
        >>> decay
        UniformDecay(AdamW, step 0, next refresh before step 0, 2 modules x 1 to 1, mean by parameters 1)
    """

    kind = ""
    metric = "score"
    adaptive = True
    same_for_all = False
    by_entry = False
    takes_over = False
    measuring = Measuring()

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        interval: int = 500,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        min_eigenvalues: int = MIN_EIGENVALUES,
        ranking: str = "optimizer",
        cautious: bool = False,
        on_refresh: Callable[["DecaySchedule"], None] | None = None,
    ) -> None:
        self.interval = whole_number("interval", interval, "optimizer steps")
        if on_refresh is not None and not callable(on_refresh):
            raise ValueError(f"on_refresh must be callable, got {on_refresh!r}")
        self.model, self.on_refresh = model, on_refresh
        self.selection = {"exclude": exclude, "include": include, "min_eigenvalues": min_eigenvalues}
        self.optimizer: Optimizer = innermost(optimizer)
        refuse_second(self.optimizer)
        self.records = SpectrumRecords()
        self.scores: dict[str, float] = {}
        self.measured_at = 0
        self.seconds = 0.0
        self.watchers: list[StepWatcher] = []
        self.cautious = cautious
        self._entries = self._entry_decay()
        self._membership = Membership(model, self.optimizer, self.selection, ranking)
        take_written(self.optimizer.param_groups)
        self._log: DecayLog | None = None
        self._said: set[str] = set()
        self._due = False
        for group in self.optimizer.param_groups:  # another kind was attached before and detached
            if group["decay_kind"] != self.kind:
                group["decay_kind"] = ""
        self._written: list[float] | None = [group["weight_decay"] for group in self.optimizer.param_groups]
        wrappers = [each for each in chain_of(optimizer) if each is not self.optimizer]
        self._hooks: StepHooks | None = StepHooks(self.optimizer, self, wrappers)
        waiting = [m for m in self._membership.matrices if m.may_take_part]
        if all(m.reason for m in waiting):
            self._warn_once("none yet", f"no weight matrix takes part yet ({waiting[0].name}: {waiting[0].reason})")

    def _entry_decay(self) -> EntryDecay | None:
        """What applies the decay where no scalar of a group can."""
        if not (self.cautious or self.by_entry):
            return None
        kind = "cautious" if self.cautious else self.kind
        if self.cautious and any(p.is_complex() for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError("cautious decay compares signs, and complex weights have none")
        if why := why_coupled(self.optimizer):
            raise ValueError(
                f"{kind} decay needs an optimizer that decays weights by learning rate x decay x weight, such as "
                f"AdamW; {type(self.optimizer).__name__} {why}"
            )
        return EntryDecay(self.cautious, self.by_entry)

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
            group["decay_kind"] = self.kind
        self._write()
        self.seconds += time.perf_counter() - began
        if self._log is not None:
            self._log.write(self)
        if self.on_refresh is not None:
            self.on_refresh(self)

    def log_to(self, path: str | PathLike[str], append: bool = False) -> None:
        """Write every refresh from now on to a file, as lines of JSON: the log that `Replay` reads.

        Args:
            path: Of the file. With several processes only the first of the group of all writes.
            append: Go on with a file that is there: its lines from the first refresh's step on are replaced.

        Raises:
            ValueError: If the file is there and `append` is not set, or it cannot be written.
        """
        self._log = DecayLog(path, append)

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        if self._hooks is None:
            return
        self._find_members()
        self._hooks.remove()
        self._hooks, self._entries = None, None
        self._write()
        for group in self.optimizer.param_groups:
            group["decay_kind"] = ""  # whoever is attached next refreshes first

    @abstractmethod
    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        """Records, and the multiplier by module name; modules left out get 1."""

    @property
    def _wrote_multipliers(self) -> bool:
        """Whether they are this kind's; states from before kinds were noted count as such."""
        return self.optimizer.param_groups[0].get("decay_kind", self.kind) == self.kind

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
        if self._entries:
            self._entries.remember(groups)
        for watcher in self.watchers:
            watcher.before_update(step)

    def after_step(self) -> None:
        """Apply what decay the optimizer could not; called by its hooks."""
        if self._entries:
            self._entries.apply(self.optimizer)
        for watcher in self.watchers:
            watcher.after_update()

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
        checked = checked_state(self.optimizer.param_groups, state, self.kind, self.takes_over)
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
        """Note in the groups, for a state that is saved, what the last refresh found and what is decayed apart."""
        self._find_members()
        if self._entries:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = effective_decay(group)
        note_measured(self.optimizer.param_groups, self.records, self.scores, self.measured_at)

    def saved(self) -> None:
        """The state was saved: live groups do not hold that."""
        take_measured(self.optimizer.param_groups)
        if self._entries:
            self._write()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which write no log."""
        self.settle()
        self.saved()
        return vars(self) | {"_log": None}

    def _warn_once(self, what: str, sentence: str) -> None:
        if sentence and what not in self._said:
            self._said.add(what)
            warnings.warn(sentence, stacklevel=2)

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.0 if self._entries else effective_decay(group)
        self._written = [group["weight_decay"] for group in self.optimizer.param_groups]
