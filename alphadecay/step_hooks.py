"""When an optimizer takes a step: once for each, whatever subclass, wrapper or closure calls what."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

KEY = "alphadecay"  # under which hooks stand with torch's, which are numbered
STEP_WRAPPER = Optimizer.profile_hook_step(lambda *_: None).__code__  # torch's, which calls the hooks of a step


class Schedule(Protocol):
    """What acts at the steps of an optimizer."""

    def before_step(self) -> None:
        """The gradients are there; the step is taken next."""

    def after_step(self) -> None:
        """The step was taken."""

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The state dict that is to be loaded; returns what to load in its place, if anything."""

    def loaded(self) -> None:
        """The state dict was loaded."""

    def settle(self) -> None:
        """The state dict is to be made, or a copy of the optimizer."""

    def saved(self) -> None:
        """The state dict was made."""


class StepHooks:
    """Calls a schedule before and after each step of an optimizer, and before its state is saved or loaded.

    A step that is given a closure runs it first: only then are the gradients there (Lightning). Where `step` of a
    subclass calls that of its parent, torch may call the hooks of both: the inner call counts for nothing. A step that
    GradScaler lets a fused optimizer skip is none. torch drops hooks from copies and pickles of an optimizer; these
    stay, with a copy of the schedule that steers the copy.

    Args:
        optimizer: The innermost one.
        schedule: What acts.
        wrappers: Of the optimizer; those that are optimizers load and save its state without its hooks.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, wrappers: Sequence[Any] = ()) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self._depth = 0
        self.wrappers = [each for each in wrappers if "_optimizer_state_dict_pre_hooks" in vars(each)]
        for name, hook in self._hooks().items():
            vars(optimizer)[name][KEY] = hook
        for wrapper in self.wrappers:  # which may load and save without the optimizer's own hooks
            for name, hook in self._state_hooks().items():
                vars(wrapper)[name][KEY] = hook
        optimizer.__getstate__ = self._state_of_copies  # type: ignore[method-assign]
        _fill_caches()

    def _hooks(self) -> dict[str, Callable[..., Any]]:
        return {
            "_optimizer_step_pre_hooks": self._on_step,
            "_optimizer_step_post_hooks": self._after_step,
        } | self._state_hooks()

    def _state_hooks(self) -> dict[str, Callable[..., Any]]:
        return {
            "_optimizer_load_state_dict_pre_hooks": self._before_loading,
            "_optimizer_load_state_dict_post_hooks": self._after_loading,
            "_optimizer_state_dict_pre_hooks": self._before_saving,
            "_optimizer_state_dict_post_hooks": self._after_saving,
        }

    def remove(self) -> None:
        """Call nothing any more."""
        for each in (self.optimizer, *self.wrappers):
            for name in self._hooks():
                vars(each)[name].pop(KEY, None)
        vars(self.optimizer).pop("__getstate__", None)

    def _state_of_copies(self) -> dict[str, Any]:
        """What copies and pickles of the optimizer are made from: torch's, and the hooks, which bring the schedule."""
        self.schedule.settle()
        self.schedule.saved()
        hooks = {name: OrderedDict({KEY: hook}) for name, hook in self._hooks().items()}
        return type(self.optimizer).__getstate__(self.optimizer) | hooks | {"__getstate__": self._state_of_copies}

    # torch.compile is not to trace what follows: it changes from step to step.

    @torch._disable_dynamo
    def _on_step(self, _: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Act before the step, or in its closure."""
        if self._depth and not is_nested(self.optimizer):
            self._depth = 0  # the step before raised
        self._depth += 1
        if self._depth > 1:
            return None
        given = "closure" if "closure" in options else 1
        closure = options.get("closure") if given == "closure" else (args[1] if len(args) > 1 else None)
        if not callable(closure) or isinstance(closure, nn.Module):
            self._before()
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
                self._before()
            return loss

        return acting

    def _before(self) -> None:
        if not (will_be_skipped(self.optimizer) or is_trial(self.optimizer)):
            self.schedule.before_step()

    @torch._disable_dynamo
    def _after_step(self, *_: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self.schedule.after_step()
        _fill_caches()

    def _before_loading(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        return self.schedule.check_state(state)

    def _after_loading(self, _: Optimizer) -> None:
        self.schedule.loaded()

    def _before_saving(self, _: Optimizer) -> None:
        self.schedule.settle()

    def _after_saving(self, *_: Any) -> None:
        self.schedule.saved()


def _fill_caches() -> None:
    """Make what torch makes at the beginning of each step: a compiled step would follow Python's typing into it, twenty
    frames deep, where its caches do not hold the result.
    """
    torch.autograd.profiler.record_function("")


def acting_on(optimizer: Any) -> Schedule | None:
    """What acts at the steps of an optimizer, wrapped or not; None if nothing does."""
    for each in chain_of(optimizer):
        hook = getattr(each, "_optimizer_step_pre_hooks", {}).get(KEY)
        if hook is not None:
            found: Schedule = hook.__self__.schedule
            return found
    return None


def refuse_second(optimizer: Optimizer) -> None:
    """Raise ValueError if a decay schedule acts on the optimizer; it is named."""
    if (other := acting_on(optimizer)) is not None:
        raise ValueError(
            f"{type(other).__name__} acts on this {type(optimizer).__name__} already: call its detach() first "
            "(alphadecay.attached(optimizer) is that schedule)"
        )


def chain_of(optimizer: Any) -> Iterator[Any]:
    """An optimizer and those it wraps, from the outside in: timm's Lookahead, SAM, Accelerate's and Lightning's.

    Wrapped is what stands in an attribute, is an optimizer, and holds all parameters of the wrapper's.
    """
    while optimizer is not None:
        yield optimizer
        inner = [each for each in getattr(optimizer, "__dict__", {}).values() if isinstance(each, Optimizer)]
        optimizer = next((each for each in inner if each is not optimizer and _holds_all(optimizer, each)), None)


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer that really steps, inside all wrappers: they never call its hooks, or on other occasions.

    Raises:
        ValueError: If it is no torch optimizer, or ZeroRedundancyOptimizer.
    """
    inner = optimizer
    for inner in chain_of(optimizer):
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(inner).__mro__):
            raise ValueError(
                "ZeroRedundancyOptimizer keeps groups of its own on each rank; FSDP2 shards the state instead"
            )
    if not isinstance(inner, Optimizer):
        raise ValueError(f"{type(inner).__name__} is no torch optimizer; pass the one that it wraps")
    return inner


def _holds_all(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", None)
    if groups is None:
        return True
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    return all(id(p) in held for group in groups for p in group["params"])


def is_nested(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks are called was called by a step of the same optimizer."""
    frame, found = sys._getframe(1), 0
    while frame is not None and found < 2:
        code = frame.f_code  # compiled, its code is another, but of the same name and file
        if (code.co_name, code.co_filename) == (STEP_WRAPPER.co_name, STEP_WRAPPER.co_filename):
            found += frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return found > 1


def is_trial(optimizer: Optimizer) -> bool:
    """Whether torch's distributed checkpoints take a step, at learning rate 0, for the optimizer to make its state."""
    if any(isinstance(rate := group.get("lr", 1), torch.Tensor) or rate for group in optimizer.param_groups):
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_init_optim_state":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler lets a fused optimizer skip this step: it then still calls `step`, and the hooks."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())
