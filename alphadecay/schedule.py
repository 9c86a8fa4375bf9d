"""The one writer of `weight_decay` in an optimizer: when it acts and where it writes; the maths is elsewhere."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from alphadecay.analysis import SCORES, Measuring, SpectrumRecord, analyze
from alphadecay.assign import assign
from alphadecay.groups import Group, innermost, split_groups
from alphadecay.matrices import find_matrices
from alphadecay.spectra import WindowShape


class DecaySchedule(ABC):
    """Keep weight_decay = base x static multiplier x adaptive multiplier in every group of an optimizer.

    Attaches to the optimizer's step: before the first step and every `interval` optimizer steps the multipliers
    are refreshed, and before each step the product is written. Schedules of decay write a group's
    `base_weight_decay`, never its `weight_decay`, which is overwritten. A step that is given a closure runs it first:
    only then are the gradients there. All state is in the groups: to resume, construct, then load the optimizer's
    state dict.

    Attributes:
        kind: What the groups call this kind of decay.
        takes_over: Whether a state of another kind may be loaded; the next step then refreshes. Set it before loading.
        records: What the last refresh measured; empty before the first one.
        scores: What it ranked the modules by.
        measuring: How spectra are measured, where they are.
        seconds: Wall-clock time spent in refreshes by this object.
        on_refresh: Called with this object after each refresh, before the step is taken.
    """

    kind = ""
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
        on_refresh: Callable[["DecaySchedule"], None] | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least 1 optimizer step, got {interval}")
        self.model, self.interval, self.on_refresh = model, interval, on_refresh
        self.selection: dict[str, Any] = {"exclude": tuple(exclude), "include": tuple(include)}
        self.optimizer: Optimizer = innermost(optimizer)
        self.records: list[SpectrumRecord] = []
        self.scores: dict[str, float] = {}
        self.seconds = 0.0
        matrices = find_matrices(model, **self.selection)
        if all(m.reason for m in matrices):
            listed = "; ".join(f"{m.name}: {m.reason}" for m in matrices[:5]) or "it has no weight matrix"
            raise ValueError(f"no weight matrix of {type(model).__name__} takes part ({listed})")
        split_groups(self.optimizer, matrices)
        for group in self.optimizer.param_groups:  # another kind was attached before and detached
            if group["decay_kind"] != self.kind:
                group["decay_kind"] = ""
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._on_step),
            self.optimizer.register_load_state_dict_pre_hook(self._check_state),
        ]

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.optimizer.param_groups[0]["decay_step"]

    @property
    def multipliers(self) -> dict[str, float]:
        """The adaptive multiplier of each module that has a group of its own."""
        groups = self.optimizer.param_groups
        return {g["decay_name"]: g["decay_multiplier"] for g in groups if not g["decay_name"].startswith("(")}

    def refresh(self) -> None:
        """Measure now and write the new decays; called by itself when due."""
        began = time.perf_counter()
        self.records, multipliers = self._measure()
        for group in self.optimizer.param_groups:
            group["decay_multiplier"] = multipliers.get(group["decay_name"], 1.0)
            group["decay_kind"] = self.kind
        self._write()
        self.seconds += time.perf_counter() - began
        if self.on_refresh is not None:
            self.on_refresh(self)

    def detach(self) -> None:
        """Stop acting on the optimizer; every group keeps the decay it has now."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

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
        if step % self.interval == 0 or not self._wrote_multipliers:
            self.refresh()
        self._write()
        for group in self.optimizer.param_groups:
            group["decay_step"] = step + 1

    def _write(self) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = effective_decay(group)

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


class UniformDecay(DecaySchedule):
    """The baseline: every module keeps its base decay, in the same groups and frame as the adaptive kinds."""

    kind = "uniform"

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        return [], {}


class AlphaDecay(DecaySchedule):
    """Weaker decay for modules whose spectrum has a heavier tail, refreshed every `interval` optimizer steps.

    Construct it after the optimizer and before any learning-rate scheduler; the training loop stays as it is.
    A matrix without a usable tail (all or half its eigenvalues zero) keeps its base decay and does not count
    among the others' minimum and maximum; its record's `note` says why. So does the only matrix of a model.

    Args:
        model: The model the optimizer trains, wrapped or not.
        optimizer: Any torch optimizer with `weight_decay`; groups are split where needed.
        interval: Optimizer steps between refreshes, at least 1. The first one comes before the first step.
        low: Smallest multiplier of the base decay.
        high: Largest multiplier of the base decay.
        rule, budget, control, seed: As in `alphadecay.assign`.
        metric: What scores a module; one of `alphadecay.analysis.SCORES`. Higher scores get more decay.
        fit, xmin_pos, window, filter_zeros, exclude, include: As in `alphadecay.analyze`.
        frozen: Keep the first assignment for ever.
        on_refresh: Called with this object after each refresh.
        process_group: As in `alphadecay.analyze`; all ranks of a distributed run by default.

    Raises:
        ValueError: For impossible values, a model in which no matrix takes part, an optimizer without weight
            decay, or groups that would have to be split under a learning-rate scheduler.

    Source: AlphaDecay (arXiv 2506.14562), algorithm 1. Unlike there, only the weight matrix of a module is
    adapted, not its bias, and what takes no part keeps its own group's decay.
    """

    kind = "alphadecay"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        interval: int = 500,
        low: float = 2 / 3,
        high: float = 3.0,
        *,
        rule: str = "linear",
        budget: str = "free",
        control: str | None = None,
        seed: int = 0,
        metric: str = "alpha",
        fit: str = "median",
        xmin_pos: float = 2.0,
        window: str | WindowShape | None = None,
        filter_zeros: bool = False,
        frozen: bool = False,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        on_refresh: Callable[[DecaySchedule], None] | None = None,
        process_group: Any = None,
    ) -> None:
        if metric not in SCORES:
            raise ValueError(f"metric={metric!r} is unknown; choose from {', '.join(SCORES)}")
        self.metric, self.frozen, self.process_group = metric, frozen, process_group
        self.measuring = Measuring(fit, xmin_pos, window, filter_zeros)
        self.assignment: dict[str, Any] = {
            "rule": rule, "low": low, "high": high, "budget": budget, "control": control, "seed": seed,
        }  # fmt: skip
        probe = {"a": 1.0, "b": 2.0}  # impossible settings are refused here, not at the first step
        assign(
            probe,
            blocks=dict.fromkeys(probe, ""),
            roles=dict.fromkeys(probe, ""),
            sizes=dict.fromkeys(probe, 1),
            **self.assignment,
        )
        super().__init__(model, optimizer, interval, exclude=exclude, include=include, on_refresh=on_refresh)

    def _measure(self) -> tuple[list[SpectrumRecord], dict[str, float]]:
        if self.frozen and self.step > 0 and self._wrote_multipliers:
            return self.records, self.multipliers
        group = self.process_group
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        records = analyze(self.model, **vars(self.measuring), **self.selection, process_group=group)
        records = _unscaled(records, self.optimizer)
        self.scores = {r.name: score for r in records if not r.note and (score := SCORES[self.metric](r)) is not None}
        if not self.scores and any(not r.note for r in records):
            why = f"no {self.metric} to score by: it needs a gradient" if "grad" in self.metric else "no score"
            return [r if r.note else replace(r, note=why) for r in records], {}
        if len(set(self.scores.values())) < 2:
            why = "the only matrix with a score" if len(self.scores) == 1 else "all scores are equal"
            return [replace(r, note=why) if r.name in self.scores else r for r in records], {}
        scored = [r for r in records if r.name in self.scores]
        multipliers = assign(
            self.scores,
            blocks={r.name: block_of(r.name) for r in scored},
            roles={r.name: r.role for r in scored},
            sizes={r.name: r.parameters for r in scored},
            **self.assignment,
        )
        return records, multipliers


def block_of(name: str) -> str:
    """The block a module belongs to: its name up to the last number, such as blocks.0."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""


def effective_decay(group: Group) -> float:
    """The composition rule: base x static multiplier x adaptive multiplier."""
    return group["base_weight_decay"] * group["static_multiplier"] * group["decay_multiplier"]


def _will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler lets a fused optimizer skip this step: it then still calls `step`, and the hooks."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _unscaled(records: list[SpectrumRecord], optimizer: Optimizer) -> list[SpectrumRecord]:
    """Gradients as they are: those that GradScaler leaves to a fused kernel to unscale are too large until then."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return records
    return [r if r.grad_norm is None else replace(r, grad_norm=r.grad_norm / float(scale)) for r in records]


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
