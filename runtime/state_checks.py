"""Validates the types, shapes and counts in a checkpoint's training state before it is loaded."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Optimizer states with the shape of the weight, in torch's and timm's optimizers. A fused kernel reads as many entries
# as the weight has, even if a state has fewer.
PER_ENTRY = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq momentum_buffer square_avg grad_avg acc_delta sum exp_inf prev step_size".split()
)


class Unfit(ValueError):
    """A training state is invalid; the message says why."""


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


ENTRIES: dict[str, Callable[[Any], bool]] = {
    "optimizer": lambda v: isinstance(v, dict) and isinstance(v.get("state"), dict)
    and isinstance(v.get("param_groups"), list) and all(isinstance(group, dict) for group in v["param_groups"]),
    "scaler": lambda v: isinstance(v, dict),
    "random": lambda v: isinstance(v, list) and bool(v) and all(isinstance(item, dict) for item in v),
    "step": _count,
    "bad_steps": _count,
    "loss_steps": _count,
    "evaluation_due": lambda v: isinstance(v, bool),
    "loss_sums": lambda v: isinstance(v, list) and all(isinstance(item, float | int) for item in v),
    "rows": lambda v: isinstance(v, dict) and all(isinstance(k, str) and _count(n) for k, n in v.items()),
    "best": lambda v: isinstance(v, dict) and set(v) <= {"best", "best_ema"}
    and all(isinstance(e, dict) and _finite(e.get("value")) and _count(e.get("step")) for e in v.values()),
    "seconds": _finite,
    "train_seconds": _finite,
    "decay_seconds": _finite,
    "wandb_id": lambda v: v is None or isinstance(v, str),
    "streams": lambda v: isinstance(v, list) and bool(v) and all(isinstance(item, dict) for item in v),
}  # fmt: skip
NEEDED = ("optimizer", "scaler", "random")


def check_state(state: Any, step: int) -> None:
    """Raise Unfit unless a training state has the entries that every run has, each with its type.

    Args:
        state: The value read from the file.
        step: The checkpoint's optimizer step, which must be the state's.
    """
    if not isinstance(state, dict):
        raise Unfit("is not a dict")
    for name in NEEDED:
        if name not in state:
            raise Unfit(f"has no {name!r}")
    for name, holds in ENTRIES.items():
        if name in state and not holds(state[name]):
            raise Unfit(f"has an invalid {name!r}")
    if state.get("step", step) != step:
        raise Unfit(f"is of step {state['step']}, not {step}")


def check_optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any], step: int) -> None:
    """Raise Unfit unless a saved state fits the optimizer: its groups, their numbers, and the shapes of tensors.

    Args:
        optimizer: The optimizer to load the state into.
        saved: Its state, checked by `check_state`, with whole tensors even if the weights are sharded.
        step: The optimizer step it was saved after.
    """
    groups = saved["param_groups"]
    averages = any("betas" in group or group.get("momentum") for group in optimizer.param_groups)
    if step and averages and not saved["state"]:
        raise Unfit("has no averages of gradients")
    if len(groups) != len(optimizer.param_groups):
        raise Unfit(f"has {len(groups)} parameter groups, the optimizer {len(optimizer.param_groups)}")
    for group, saved_group in zip(optimizer.param_groups, groups, strict=True):
        indices = saved_group.get("params")
        if not isinstance(indices, list) or len(indices) != len(group["params"]):
            raise Unfit("a parameter group has a different number of weights")
        for name, value in group.items():
            saved_value = saved_group.get(name, value)
            if _finite(value) and not (_finite(saved_value) or isinstance(saved_value, Tensor)):
                raise Unfit(f"{name} of a parameter group is {saved_value!r}, not a number")
        for index, p in zip(indices, group["params"], strict=True):
            _check_entries(saved["state"].get(index, {}), p)


def _check_entries(entries: Any, p: Tensor) -> None:
    if not isinstance(entries, dict):
        raise Unfit("the state of a weight is not a dict")
    for name, value in entries.items():
        if name == "step" and not (_finite(value) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise Unfit("a weight's step is not a number")
        if name not in PER_ENTRY or value is None:
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise Unfit(f"{name} of a weight is not a tensor")
        if value.shape != p.shape:
            shapes = f"{tuple(value.shape)}, the weight {tuple(p.shape)}"
            raise Unfit(f"{name} of a weight has the shape {shapes}")
        if not value.is_floating_point():
            raise Unfit(f"{name} of a weight has the type {value.dtype}")
