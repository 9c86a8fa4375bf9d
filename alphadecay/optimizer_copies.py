"""Copies of an optimizer, to try a step without taking it."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from alphadecay.groups import OWN_KEYS, Group

TRIAL_LR, TRIAL_DECAY, TRIAL_STEPS = 7.3e-4, 0.5, 3
TOLERANCE = 0.05  # relative, for a trial's last decay; whether decay comes before or after the update changes it less
NO_STEP = "cannot take a step on a copy"
UNTRIED = Exception  # an optimizer that cannot step on a copy may raise any exception
VARYING = OWN_KEYS | {
    "param_names", "lr", "initial_lr", "lr_scale", "name", "decay_next", "decay_members", "decay_measured",
}  # fmt: skip


def twin_of(optimizer: Optimizer) -> Optimizer:
    """A copy with its own weights, gradients and state and without hooks; its step equals the optimizer's next step.

    Random generators are copied with their states, so the copy does not change what the optimizer draws. If a step
    draws from torch's global generators, take it within `own_randomness`.
    """
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if is_lazy(p):  # optimizers skip it until it is initialised
                memo[id(p)] = p
                continue
            memo[id(p)] = nn.Parameter(p.detach().clone(), p.requires_grad)
            if p.grad is not None:
                memo[id(p)].grad = p.grad.detach().clone()
    return _copied(optimizer, vars(optimizer), memo)


@contextmanager
def own_randomness(optimizer: Optimizer) -> Iterator[None]:
    """Draw the next numbers of torch's global generators in this context, and restore the generators after it."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    device_types = {device.type for device in devices if device.type != "cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device_type in device_types:
            indices = [device.index or 0 for device in devices if device.type == device_type]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=device_type))
        yield


def without_decay(optimizer: Optimizer) -> Optimizer:
    """A copy that has taken the next step with all decays 0.

    Raises:
        ValueError: If the optimizer cannot take a step on a copy: it needs a closure, or second derivatives.
    """
    twin = twin_of(optimizer)
    for group in twin.param_groups:
        group["weight_decay"] = 0.0
    try:
        with own_randomness(optimizer):
            twin.step()
    except UNTRIED as error:
        name = type(optimizer).__name__
        raise ValueError(f"{name} cannot take a step on a copy, so its decay cannot be audited: {error}") from error
    return twin


def unrounded_decay(optimizer: Optimizer, group: Group, decay: float) -> Tensor:
    """The change that decay would make in the next step without rounding: the difference of two steps in float64.

    Args:
        optimizer: The optimizer before the step.
        group: One of its groups, with one parameter that has a gradient.
        decay: The group's weight_decay for that step.

    Returns:
        The change, float64, in the parameter's shape and sharding. If the optimizer cannot step in float64:
        -learning rate x decay x weight.
    """
    p = group["params"][0]
    weights = []
    try:
        for trial_decay in (decay, 0.0):
            twin, own = _alone_in_float64(optimizer, group, trial_decay)
            with own_randomness(optimizer):
                twin.step()
            weights.append(own.detach())
    except UNTRIED:
        return p.detach().to(torch.float64).mul_(-float(group["lr"]) * decay)
    return weights[0] - weights[1]


def _alone_in_float64(optimizer: Optimizer, group: Group, decay: float) -> tuple[Optimizer, nn.Parameter]:
    """A copy of an optimizer with only this group's parameter; the weight and its state, but no scalars, in float64."""
    p = group["params"][0]
    own = nn.Parameter(p.detach().to(torch.float64, copy=True))
    own.grad = p.grad.detach().to(torch.float64, copy=True)
    memo: dict[int, Any] = {id(p): own}
    state = {p: optimizer.state[p]} if p in optimizer.state else {}
    for value in state.get(p, {}).values():
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
            memo[id(value)] = value.to(torch.float64, copy=True)
    alone = vars(optimizer) | {"param_groups": [{**group, "weight_decay": decay}], "state": defaultdict(dict, state)}
    return _copied(optimizer, alone, memo), own


def why_coupled(optimizer: Optimizer) -> str:
    """Empty if every group decays weights by learning rate x decay x weight alone; else a predicate: "does not ...".

    Tests copies of the optimizer: three steps on a small random matrix, with and without decay. An optimizer that
    cannot step on a copy (it needs a closure, or second derivatives) is not accepted; the predicate holds its error.
    """
    tried: list[Group] = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in VARYING}
        if options not in tried:
            tried.append(options)
            try:
                with own_randomness(optimizer):
                    decoupled = _decouples(optimizer, group)
            except UNTRIED as error:
                return f"{NO_STEP}: {' '.join(str(error).split())}"
            if not decoupled:
                return "does not (with these options)"
    return ""


def _decouples(optimizer: Optimizer, group: Group) -> bool:
    """Whether a group with these options decays a small random matrix by learning rate x decay x weight."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (
        torch.randn(8, 6, generator=generator, dtype=torch.float32, device="cpu") for _ in range(TRIAL_STEPS + 1)
    )
    like = group["params"][0]
    trials: dict[float, list[Tensor]] = {TRIAL_DECAY: [], 0.0: []}  # decay -> the weight after each step
    for decay, weights in trials.items():
        p = nn.Parameter(weight.to(like.device, torch.float32, copy=True))
        lr = torch.full_like(group["lr"], TRIAL_LR) if isinstance(group["lr"], Tensor) else TRIAL_LR
        names = {"param_names": ["trial"]} if "param_names" in group else {}
        own = {**group, "params": [p], "lr": lr, "weight_decay": decay, **names}
        alone = vars(optimizer) | {"param_groups": [own], "state": defaultdict(dict)}
        trial = _copied(optimizer, alone, {id(p): p})
        for gradient in gradients:
            p.grad = gradient.to(like.device, copy=True)
            trial.step()
            weights.append(p.detach().clone())
    with_decay, without = trials[TRIAL_DECAY], trials[0.0]
    decayed = (with_decay[-1] - without[-1]) - (with_decay[-2] - without[-2])
    expected = -TRIAL_LR * TRIAL_DECAY * with_decay[-2]
    return bool((decayed - expected).norm() <= TOLERANCE * expected.norm())


def _copied(optimizer: Optimizer, attributes: dict[str, Any], memo: dict[int, Any]) -> Optimizer:
    """An optimizer of the same class with copies of the attributes, but without hooks and a wrapped `step`."""
    twin = object.__new__(type(optimizer))
    for name, value in attributes.items():
        if name in ("step", "__getstate__", "found_inf", "grad_scale"):
            continue
        if "hooks" in name:
            value = OrderedDict()
        if isinstance(value, torch.Generator):
            generator = torch.Generator(value.device)
            generator.set_state(value.get_state())
            memo[id(value)] = generator
        vars(twin)[name] = copy.deepcopy(value, memo)
    for name in ("found_inf", "grad_scale"):  # GradScaler's; a step reads them and does not write
        if name in attributes:
            vars(twin)[name] = attributes[name]
    return twin
