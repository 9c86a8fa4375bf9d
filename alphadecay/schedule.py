"""What all schedules of decay are: the writer of `weight_decay`, with what may be added to it."""

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
    """Looks at steps as they are taken, and changes nothing; see `DecaySchedule.watchers`."""

    def before_update(self, step: int) -> None:
        """The decays are written and the gradients there; `step` optimizer steps were taken before."""

    def after_update(self) -> None:
        """The step was taken and all decay applied."""


class DecaySchedule(DecayWriter):
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
        strategy: What the groups call this kind of decay; `kind`, as it was called before, is the same.
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
        ...     print(decay.strategy, decay.step)
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.UniformDecay(model, optimizer, on_refresh=told)
        >>> decay.refresh()
        uniform 0
        >>> decay
        UniformDecay(AdamW, step 0, next refresh before step 0, 2 modules x 1 to 1, mean by parameters 1)
    """

    by_entry = False

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass may say `kind`, as `strategy` was called before."""
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
        self._entries: EntryDecay | None = None  # applies the decay where no scalar of a group can
        selection = {"exclude": exclude, "include": include, "min_eigenvalues": min_eigenvalues}
        super().__init__(model, optimizer, interval, ranking, selection)

    def _check_optimizer(self) -> None:
        if not (self.cautious or self.by_entry):
            return
        what = "cautious" if self.cautious else self.strategy
        if self.cautious and any(p.is_complex() for group in self.optimizer.param_groups for p in group["params"]):
            raise ValueError("cautious decay compares signs, and complex weights have none")
        if why := why_coupled(self.optimizer):
            raise ValueError(
                f"{what} decay needs an optimizer that decays weights by learning rate x decay x weight, such as "
                f"AdamW; {type(self.optimizer).__name__} {why}"
            )
        self._entries = EntryDecay(self.cautious, self.by_entry)

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
        self._entries = None
        super().detach()

    def before_step(self) -> None:
        """Refresh if it is time, and write the decays; called by the optimizer's hooks."""
        super().before_step()
        if self._entries:
            self._entries.remember(self.optimizer.param_groups)
        for watcher in self.watchers:
            watcher.before_update(self.step - 1)

    def after_step(self) -> None:
        """Apply what decay the optimizer could not; called by its hooks."""
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
        """As the writer does; and groups say what is decayed apart."""
        super().settle()
        if self._entries:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = effective_decay(group)

    def saved(self) -> None:
        """The state was saved: live groups do not hold that."""
        super().saved()
        if self._entries:
            self._write()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which write no log."""
        return super().__getstate__() | {"_log": None}

    def _decay_of(self, group: Group) -> float:
        return 0.0 if self._entries else effective_decay(group)


def attached(optimizer: Any) -> DecaySchedule | None:
    """The decay schedule that acts on an optimizer, wrapped or not; None if there is none.

    Args:
        optimizer: A torch optimizer, or a wrapper of one.

    Returns:
        What `AlphaDecay`, `UniformDecay` or another schedule returned when it was constructed.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        >>> optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        >>> decay = alphadecay.AlphaDecay(model, optimizer)
        >>> alphadecay.attached(optimizer) is decay
        True
    """
    found = acting_on(optimizer)
    return found if isinstance(found, DecaySchedule) else None
