"""Copies of an optimizer, to see what a step would do without taking it."""

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
TOLERANCE = 0.05  # of the decay of a trial's last step: orders of decay and update differ by less
UNTRIED = Exception  # optimizers that cannot step on a copy raise all kinds
VARYING = OWN_KEYS | {
    "param_names", "lr", "initial_lr", "lr_scale", "name", "decay_next", "decay_members", "decay_measured",
}  # fmt: skip


def twin_of(optimizer: Optimizer) -> Optimizer:
    """A copy with weights, gradients and state of its own and without hooks; its step is the optimizer's next one.

    Random generators are copied as they stand, so that the optimizer's own draws stay what they are; where a step
    draws from torch's global ones, take it within `own_randomness`.
    """
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if is_lazy(p):  # no optimizer touches it yet
                memo[id(p)] = p
                continue
            memo[id(p)] = nn.Parameter(p.detach().clone(), p.requires_grad)
            if p.grad is not None:
                memo[id(p)].grad = p.grad.detach().clone()
    return _copied(optimizer, vars(optimizer), memo)


@contextmanager
def own_randomness(optimizer: Optimizer) -> Iterator[None]:
    """Let what is random here draw what it would draw next, and leave torch's global generators as they were."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"]}
    kinds = {device.type for device in devices if device.type != "cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in kinds:
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        yield


def without_decay(optimizer: Optimizer) -> Optimizer:
    """A copy that has taken the next step with all decays 0.

    Raises:
        ValueError: If the optimizer can take no step on a copy: it needs a closure, or second derivatives.
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
    """What a decay would change in the next step if nothing was rounded, from two steps in float64.

    Args:
        optimizer: As it is before the step.
        group: One of its groups, with one parameter that has a gradient.
        decay: The group's weight_decay for that step.

    Returns:
        The change, as the parameter is shaped and sharded, in float64. Of an optimizer that cannot step in float64:
        - learning rate x decay x weight.
    """
    p = group["params"][0]
    found = []
    try:
        for each in (decay, 0.0):
            twin, own = _alone_in_float64(optimizer, group, each)
            with own_randomness(optimizer):
                twin.step()
            found.append(own.detach())
    except UNTRIED:
        return p.detach().to(torch.float64).mul_(-float(group["lr"]) * decay)
    return found[0] - found[1]


def _alone_in_float64(optimizer: Optimizer, group: Group, decay: float) -> tuple[Optimizer, nn.Parameter]:
    """A copy of an optimizer that holds one parameter of it, whose tensors of several entries are in float64."""
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
    """Empty if each of the optimizer's groups decays weights by learning rate x decay x weight, and by nothing else.

    Tried out: three steps on a small random matrix with and without decay, in copies. An optimizer that cannot be
    tried like that (it needs a closure, or second derivatives) counts as one that does not; the text says why.
    """
    seen: list[Group] = []
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key not in VARYING}
        if options not in seen:
            seen.append(options)
            try:
                with own_randomness(optimizer):
                    decoupled = _decouples(optimizer, group)
            except UNTRIED as error:
                return f"takes no step on a copy: {' '.join(str(error).split())}"
            if not decoupled:
                return "does not (with these options)"
    return ""


def _decouples(optimizer: Optimizer, group: Group) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (
        torch.randn(8, 6, generator=generator, dtype=torch.float32, device="cpu") for _ in range(TRIAL_STEPS + 1)
    )
    like = group["params"][0]
    path: dict[float, list[Tensor]] = {TRIAL_DECAY: [], 0.0: []}
    for decay, weights in path.items():
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
    with_decay, without = path[TRIAL_DECAY], path[0.0]
    decayed = (with_decay[-1] - without[-1]) - (with_decay[-2] - without[-2])
    expected = -TRIAL_LR * TRIAL_DECAY * with_decay[-2]
    return bool((decayed - expected).norm() <= TOLERANCE * expected.norm())


def _copied(optimizer: Optimizer, attributes: dict[str, Any], memo: dict[int, Any]) -> Optimizer:
    """An optimizer of the same class with copies of attributes; hooks and a wrapped `step` stay behind."""
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
    for name in ("found_inf", "grad_scale"):  # of a GradScaler; read, not written
        if name in attributes:
            vars(twin)[name] = attributes[name]
    return twin
