"""Call a schedule once per optimizer step, although subclasses, wrappers and closures call each other's steps."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

KEY = "alphadecay"  # of our hooks in torch's dicts of hooks, whose other keys are numbers
STEP_WRAPPER = Optimizer.profile_hook_step(lambda *_: None).__code__  # torch's wrapper of `step`, which calls the hooks


class Schedule(Protocol):
    """Acts at the steps of an optimizer."""

    def before_step(self) -> None:
        """Called before the step, when gradients are computed."""

    def after_step(self) -> None:
        """Called after the step."""

    def check_state(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Called with a state dict before it is loaded; returns the state to load instead, or None."""

    def loaded(self) -> None:
        """Called after the state dict was loaded."""

    def settle(self) -> None:
        """Called before a state dict or a copy of the optimizer is made."""

    def saved(self) -> None:
        """Called after it was made."""


class StepHooks:
    """Calls a schedule before and after each step of an optimizer, and when its state is saved or loaded.

    If a step gets a closure (Lightning), the closure runs first, because it computes the gradients. If `step` of a
    subclass calls its parent's, torch may call the hooks of both; the inner calls are ignored, and so is a step that
    GradScaler makes a fused optimizer skip. torch drops hooks from copies and pickles of an optimizer; these hooks
    remain, with a copy of the schedule that acts on the copy.

    Args:
        optimizer: The innermost optimizer.
        schedule: The schedule to call.
        wrappers: The optimizer's wrappers. Those that are optimizers load and save its state without its hooks.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, wrappers: Sequence[Any] = ()) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self._depth = 0
        self.wrappers = [wrapper for wrapper in wrappers if "_optimizer_state_dict_pre_hooks" in vars(wrapper)]
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
        """Remove all hooks."""
        for optimizer in (self.optimizer, *self.wrappers):
            for name in self._hooks():
                vars(optimizer)[name].pop(KEY, None)
        vars(self.optimizer).pop("__getstate__", None)

    def _state_of_copies(self) -> dict[str, Any]:
        """The state of copies and pickles of the optimizer: torch's, and the hooks, which include the schedule."""
        self.schedule.settle()
        self.schedule.saved()
        hooks = {name: OrderedDict({KEY: hook}) for name, hook in self._hooks().items()}
        return type(self.optimizer).__getstate__(self.optimizer) | hooks | {"__getstate__": self._state_of_copies}

    # torch.compile must not trace these methods: what they do changes from step to step.

    @torch._disable_dynamo
    def _on_step(self, _: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call the schedule before the step, or after its closure; returns the arguments of `step` if they change."""
        if self._depth and not is_nested(self.optimizer):
            self._depth = 0  # the previous step raised an exception
        self._depth += 1
        if self._depth > 1:
            return None
        by_name = "closure" in options
        closure = options["closure"] if by_name else (args[1] if len(args) > 1 else None)
        if not callable(closure) or isinstance(closure, nn.Module):
            self._before()
            return None
        wrapped = self._wrapped(closure)
        if by_name:
            return args, options | {"closure": wrapped}
        return (args[0], wrapped, *args[2:]), options

    def _wrapped(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure that calls the schedule after its first call; optimizers read decays only after that."""
        due = True

        def wrapped() -> Any:
            nonlocal due
            loss = closure()
            if due:
                due = False
                self._before()
            return loss

        return wrapped

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
    """Create a profiler record, as torch does at the start of each step, so that caches of Python's typing hold its
    types; without them torch.compile would trace twenty frames into `typing`.
    """
    torch.autograd.profiler.record_function("")


def acting_on(optimizer: Any) -> Schedule | None:
    """The schedule that acts at the steps of an optimizer, wrapped or not; None if there is none."""
    for wrapped in chain_of(optimizer):
        hook = getattr(wrapped, "_optimizer_step_pre_hooks", {}).get(KEY)
        if hook is not None:
            schedule: Schedule = hook.__self__.schedule
            return schedule
    return None


def refuse_second(optimizer: Optimizer) -> None:
    """Raise ValueError, with the schedule's type, if a decay schedule acts on the optimizer already."""
    if (other := acting_on(optimizer)) is not None:
        raise ValueError(
            f"{type(other).__name__} acts on this {type(optimizer).__name__} already: call its detach() first "
            "(alphadecay.attached(optimizer) is that schedule)"
        )


def chain_of(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and those it wraps, outermost first: timm's Lookahead, SAM, Accelerate's and Lightning's.

    An attribute is the wrapped optimizer if it is an optimizer and holds all parameters of the wrapper.
    """
    while optimizer is not None:
        yield optimizer
        inner = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
        optimizer = next((other for other in inner if other is not optimizer and _holds_all(optimizer, other)), None)


def innermost(optimizer: Any) -> Optimizer:
    """The wrapped optimizer; wrappers do not call its step hooks, or call them at other times.

    Raises:
        ValueError: If it is not a torch optimizer, or is a ZeroRedundancyOptimizer.
    """
    inner = optimizer
    for inner in chain_of(optimizer):
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(inner).__mro__):
            raise ValueError(
                "ZeroRedundancyOptimizer keeps groups of its own on each rank; FSDP2 shards the state instead"
            )
    if not isinstance(inner, Optimizer):
        raise ValueError(f"{type(inner).__name__} is not a torch optimizer; pass the optimizer that it wraps")
    return inner


def _holds_all(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", None)
    if groups is None:
        return True
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    return all(id(p) in held for group in groups for p in group["params"])


def is_nested(optimizer: Optimizer) -> bool:
    """Whether the current step of an optimizer was called by another step of the same optimizer."""
    frame, steps = sys._getframe(1), 0
    while frame is not None and steps < 2:
        code = frame.f_code  # a compiled wrapper has other code, but of the same name and file
        if (code.co_name, code.co_filename) == (STEP_WRAPPER.co_name, STEP_WRAPPER.co_filename):
            steps += frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return steps > 1


def is_trial(optimizer: Optimizer) -> bool:
    """Whether torch's distributed checkpoints take this step, at learning rate 0, to make the optimizer's state."""
    if any(isinstance(rate := group.get("lr", 1), torch.Tensor) or rate for group in optimizer.param_groups):
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_init_optim_state":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether GradScaler makes a fused optimizer skip this step; it still calls `step` and its hooks."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())
