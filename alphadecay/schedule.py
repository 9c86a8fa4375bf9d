"""The one writer of `weight_decay` in an optimizer: when it acts and where it writes; the maths is elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from alphadecay.analysis import Measuring, SpectrumRecord
from alphadecay.entries import EntryDecay
from alphadecay.groups import Group, effective_decay, innermost, split_groups
from alphadecay.matrices import find_matrices
from alphadecay.twins import decouples_decay


class StepWatcher(Protocol):
    """Looks at steps as they are taken, and changes nothing; see `DecaySchedule.watchers`."""

    def before_update(self, step: int) -> None:
        """The decays are written and the gradients there; `step` optimizer steps were taken before."""

    def after_update(self) -> None:
        """The step was taken and all decay applied."""


class DecaySchedule(ABC):
    """Keep weight_decay = base x static multiplier x adaptive multiplier in every group of an optimizer.

    Attaches to the optimizer's step: before the first step and every `interval` optimizer steps the multipliers
    are refreshed, and before each step the product is written. Schedules of decay write a group's
    `base_weight_decay`, never its `weight_decay`, which is overwritten. A step that is given a closure runs it first:
    only then are the gradients there. All state is in the groups: to resume, construct, then load the optimizer's
    state dict.

    Args:
        cautious: Decay only entries that the update does not push away from zero (cautious weight decay, arXiv
            2510.12402). Groups then have weight_decay 0, and the decay is applied after the optimizer's step.

    Attributes:
        kind: What the groups call this kind of decay.
        metric: What its scores are.
        same_for_all: Whether all modules have the same multiplier.
        by_entry: Whether entries of one weight are decayed by different amounts, beyond `cautious`.
        takes_over: Whether a state of another kind may be loaded; the next step then refreshes. Set it before loading.
        records: What the last refresh measured; empty before the first one.
        measured_at: The step before which the weights were as it measured them.
        scores: What it ranked the modules by.
        measuring: How spectra are measured, where they are.
        seconds: Wall-clock time spent in refreshes by this object.
        on_refresh: Called with this object after each refresh, before the step is taken.
        watchers: Told before and after each step that is not skipped; `alphadecay.DecayAudit` is one.
    """

    kind = ""
    metric = "score"
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
        cautious: bool = False,
        on_refresh: Callable[["DecaySchedule"], None] | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1 optimizer step, got {interval}")
        self.model, self.interval, self.on_refresh = model, interval, on_refresh
        self.selection: dict[str, Any] = {"exclude": tuple(exclude), "include": tuple(include)}
        self.optimizer: Optimizer = innermost(optimizer)
        self.records: list[SpectrumRecord] = []
        self.scores: dict[str, float] = {}
        self.measured_at = 0
        self.seconds = 0.0
        self.watchers: list[StepWatcher] = []
        matrices = find_matrices(model, **self.selection)
        if all(m.reason for m in matrices):
            listed = "; ".join(f"{m.name}: {m.reason}" for m in matrices[:5]) or "it has no weight matrix"
            raise ValueError(f"no weight matrix of {type(model).__name__} takes part ({listed})")
        self.cautious = cautious
        self._entries = EntryDecay(cautious, self.by_entry) if cautious or self.by_entry else None
        if self._entries and not decouples_decay(self.optimizer):
            kind = "cautious" if cautious else self.kind
            raise ValueError(
                f"{kind} decay needs an optimizer that decays weights by learning rate x decay x weight, such as "
                f"AdamW; {type(self.optimizer).__name__} does not (with these options)"
            )
        split_groups(self.optimizer, matrices)
        for group in self.optimizer.param_groups:  # another kind was attached before and detached
            if group["decay_kind"] != self.kind:
                group["decay_kind"] = ""
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._on_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_load_state_dict_pre_hook(self._check_state),
        ]

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.optimizer.param_groups[0]["decay_step"]

    @property
    def multipliers(self) -> dict[str, float]:
        """The adaptive multiplier of each module that has a group of its own."""
        return {group["decay_name"]: group["decay_multiplier"] for group in self.own_groups}

    @property
    def own_groups(self) -> list[Group]:
        """The groups that hold one module's weight and nothing else."""
        return [group for group in self.optimizer.param_groups if not group["decay_name"].startswith("(")]

    def refresh(self) -> None:
        """Measure now and write the new decays; called by itself when due."""
        began = time.perf_counter()
        self.measured_at = self.step
        self.records, multipliers = self._measure()
        self._take(multipliers)
        self.seconds += time.perf_counter() - began
        if self.on_refresh is not None:
            self.on_refresh(self)

    def _take(self, multipliers: Mapping[str, float]) -> None:
        for group in self.optimizer.param_groups:
            group["decay_multiplier"] = multipliers.get(group.get("decay_as", group["decay_name"]), 1.0)
            group["decay_kind"] = self.kind
        self._write()

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._entries = [], None
        self._write()

    @abstractmethod
    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        """Records, and the multiplier by module name; modules left out get 1."""

    @property
    def _wrote_multipliers(self) -> bool:
        """Whether they are this kind's; states from before kinds were noted count as such."""
        return self.optimizer.param_groups[0].get("decay_kind", self.kind) == self.kind

    def _on_step(self, _: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Act before the step, or in its closure: gradients exist only after that (Lightning)."""
        given = "closure" if "closure" in options else 1
        closure = options.get("closure") if given == "closure" else (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._before_step()
            return None
        acting = self._acting_closure(closure)
        if given == "closure":
            return args, options | {"closure": acting}
        return (args[0], acting, *args[2:]), options

    def _acting_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, after whose first call the decays are written; optimizers read them only then."""
        due = True

        def acting() -> Any:
            nonlocal due
            loss = closure()
            if due:
                due = False
                self._before_step()
            return loss

        return acting

    def _before_step(self) -> None:
        if _will_be_skipped(self.optimizer):
            return
        step = self.step
        self._act(step)
        self._write()
        for group in self.optimizer.param_groups:
            group["decay_step"] = step + 1
        if self._entries:
            self._entries.remember(self.optimizer.param_groups)
        for watcher in self.watchers:
            watcher.before_update(step)

    def _after_step(self, *_: Any) -> None:
        if self._entries:
            self._entries.apply(self.optimizer)
        for watcher in self.watchers:
            watcher.after_update()

    def _act(self, step: int) -> None:
        """Refresh before step `step` if it is time."""
        if step % self.interval == 0 or not self._wrote_multipliers:
            self.refresh()

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.0 if self._entries else effective_decay(group)

    def _check_state(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        ours = [(g["decay_name"], len(g["params"])) for g in self.optimizer.param_groups]
        theirs = [(g.get("decay_name"), len(g["params"])) for g in state["param_groups"]]
        if ours != theirs:
            raise ValueError(_mismatch(ours, theirs))
        others = {g.get("decay_kind", self.kind) for g in state["param_groups"]} - {self.kind, ""}
        if not others:
            return None
        if not self.takes_over:
            raise ValueError(
                f"this optimizer state was saved under {', '.join(sorted(others))} decay, and {self.kind} decay is "
                "attached. Attach the kind that saved it; or set `takes_over = True` on the attached one before "
                "loading, to go on with it from here."
            )
        return state | {"param_groups": [group | {"decay_kind": ""} for group in state["param_groups"]]}


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler lets a fused optimizer skip this step: it then still calls `step`, and the hooks."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _mismatch(ours: list[tuple[str, int]], theirs: list[tuple[str | None, int]]) -> str:
    if all(name is None for name, _ in theirs):
        return (
            "this optimizer state has no decay names in its groups: it was saved without alphadecay. "
            "Load it into the optimizer before constructing AlphaDecay or UniformDecay."
        )
    different = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
    where = f"group {different[0][0]!r} was saved where {different[1][0]!r} is now" if different else "some lack"
    return (
        f"this optimizer state has {len(theirs)} groups, the optimizer {len(ours)}; {where}. Build the optimizer "
        "and the decay schedule as in the run that saved it: same model, same groups, same order."
    )
