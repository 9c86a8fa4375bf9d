"""The base class of all decay schedules: the writer of `weight_decay`, its options, decay log and watchers."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Protocol

from torch import nn

from alphadecay.decay_log import DecayLog
from alphadecay.entries import EntryDecay
from alphadecay.groups import Group, effective_decay
from alphadecay.matrices import MIN_EIGENVALUES
from alphadecay.optimizer_copies import why_coupled
from alphadecay.step_hooks import acting_on
from alphadecay.writer import DecayWriter


class StepWatcher(Protocol):
    """Observes optimizer steps and changes nothing; see `DecaySchedule.watchers`."""

    def before_update(self, step: int) -> None:
        """Called before a step, with gradients computed and decays written; `step` steps were taken before it."""

    def after_update(self) -> None:
        """Called after the step, when all decay has been applied."""


class DecaySchedule(DecayWriter):
    """The base class of all decay schedules: keeps weight_decay = base x static x adaptive multiplier in every group.

    It attaches to the optimizer's step. Before the first step and every `interval` optimizer steps it refreshes the
    multipliers; before each step it writes the product. Schedules of the base decay must write a group's
    `base_weight_decay`, because `weight_decay` is overwritten. If a step gets a closure, the closure runs first,
    because it computes the gradients. All state is in the groups: to resume, construct the schedule, then load the
    optimizer's state dict. Copies and pickles of the optimizer or of this object include each other and the model.

    A subclass returns the multiplier of each module from `_measure`.

    Args:
        model: The model that the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`, wrapped or not; its groups are split if necessary.
        interval: Optimizer steps between refreshes, a whole number of at least 1.
        exclude: Globs over module names to skip, such as "blocks.0.*"; those modules keep their base decay.
        include: Any of "stem", "head" and "frozen", to adapt these too.
        min_eigenvalues: Matrices with fewer eigenvalues are skipped; at least 1.
        ranking: "optimizer": matrices that this optimizer does not hold are ignored. "model": their scores count when
            its own matrices are ranked.
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Groups then have weight_decay 0, and the decay is applied after the optimizer's step.
        on_refresh: Called with this object after each refresh, before the step is taken.

    Attributes:
        strategy: Name of the strategy, also stored in the groups; `kind` is its former name.
        metric: Name of the metric whose values are the scores.
        adaptive: Whether multipliers differ from 1.
        same_for_all: Whether all modules have the same multiplier.
        by_entry: Whether entries of one weight are decayed by different amounts, apart from `cautious`.
        takes_over: Whether the state of another strategy may be loaded; the next step then refreshes, and static
            multipliers are not those of the state. Set it before loading.
        records: What the last refresh measured: one `SpectrumRecord` per matrix. Empty before the first refresh.
        measured_at: Optimizer steps taken before the last refresh measured the weights.
        scores: The score of each module at the last refresh, by name.
        measuring: How spectra are measured, if the strategy measures them.
        seconds: Wall-clock time that refreshes by this object took.
        watchers: Objects that are called before and after each step that is not skipped, such as
            `alphadecay.DecayAudit`.

    Raises:
        ValueError: For impossible values, a model in which no matrix is or can be adapted, an optimizer without
            weight decay or with another schedule attached, or groups that would have to be split under a
            learning-rate scheduler.

    Example:
        >>> import torch, alphadecay
        >>> def report(decay: alphadecay.DecaySchedule) -> None:
        ...     print(decay.strategy, decay.step)
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.UniformDecay(model, optimizer, on_refresh=report)
        >>> decay.refresh()
        uniform 0
        >>> decay
        UniformDecay(AdamW, step 0, next refresh before step 0, 2 modules x 1 to 1, mean by parameters 1)
    """

    by_entry = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a subclass set `strategy` or `kind`, its former name."""
        super().__init_subclass__(**options)
        cls.strategy = cls.kind = vars(cls).get("strategy", vars(cls).get("kind", cls.strategy))

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
        if on_refresh is not None and not callable(on_refresh):
            raise ValueError(f"on_refresh must be callable, got {on_refresh!r}")
        self.cautious, self.on_refresh = cautious, on_refresh
        self.watchers: list[StepWatcher] = []
        self._log: DecayLog | None = None
        self._entries: EntryDecay | None = None  # applies decay that differs between the entries of a weight
        selection = {"exclude": exclude, "include": include, "min_eigenvalues": min_eigenvalues}
        super().__init__(model, optimizer, interval, ranking, selection)

    def _check_optimizer(self) -> None:
        if not (self.cautious or self.by_entry):
            return
        name = "cautious" if self.cautious else self.strategy
        if self.cautious and any(p.is_complex() for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError("cautious decay compares signs, and complex weights have none")
        if why := why_coupled(self.optimizer):
            raise ValueError(
                f"{name} decay needs an optimizer that decays weights by learning rate x decay x weight, such as "
                f"AdamW; {type(self.optimizer).__name__} {why}"
            )
        self._entries = EntryDecay(self.cautious, self.by_entry)

    def log_to(self, path: str | PathLike[str], append: bool = False) -> None:
        """Write every refresh from now on to a file, as lines of JSON: the decay log that `Replay` reads.

        Args:
            path: The file. In a distributed run only rank 0 writes it.
            append: Continue an existing file: its lines from the first refresh's step on are replaced.

        Raises:
            ValueError: If the file exists and `append` is False, or it cannot be written.
        """
        self._log = DecayLog(path, append)

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        self._entries = None
        super().detach()

    def before_step(self) -> None:
        """Refresh if due, and write the decays; called by the optimizer's hooks."""
        super().before_step()
        if self._entries:
            self._entries.remember(self.optimizer.param_groups)
        for watcher in self.watchers:
            watcher.before_update(self.step - 1)

    def after_step(self) -> None:
        """Apply the decay that the optimizer could not apply; called by its hooks."""
        if self._entries:
            self._entries.apply(self.optimizer)
        for watcher in self.watchers:
            watcher.after_update()

    def _refreshed(self) -> None:
        if self._log is not None:
            self._log.write(self)
        if self.on_refresh is not None:
            self.on_refresh(self)

    def settle(self) -> None:
        """Prepare the groups for saving; with decay per entry, `weight_decay` then holds the decay that acts."""
        super().settle()
        if self._entries:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = effective_decay(group)

    def saved(self) -> None:
        """Undo `settle` after the state was saved."""
        super().saved()
        if self._entries:
            self._write()

    def __getstate__(self) -> dict[str, Any]:
        """The state of copies and pickles, which write no decay log."""
        return super().__getstate__() | {"_log": None}

    def _decay_of(self, group: Group) -> float:
        return 0.0 if self._entries else effective_decay(group)


def attached(optimizer: Any) -> DecaySchedule | None:
    """The decay schedule that acts on an optimizer, wrapped or not; None if there is none.

    Args:
        optimizer: A torch optimizer, or a wrapper of one.

    Returns:
        The `AlphaDecay`, `UniformDecay` or other schedule that was constructed with the optimizer.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.AlphaDecay(model, optimizer)
        >>> alphadecay.attached(optimizer) is decay
        True
    """
    schedule = acting_on(optimizer)
    return schedule if isinstance(schedule, DecaySchedule) else None
