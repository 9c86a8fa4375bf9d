"""Copies of an optimizer, to try a step without taking it."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from alphadecay.groups import OWN_KEYS, Group

TRIAL_LR, TRIAL_DECAY, TRIAL_STEPS = 7.3e-4, 0.5, 3
TOLERANCE = 0.05  # relative, for a trial's last decay; whether decay comes before or after the update changes it less
FROM_SCALER = ("found_inf", "grad_scale")  # attributes that GradScaler sets for a step
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


def weights_without_decay(optimizer: Optimizer, groups: Sequence[Group], one_by_one: bool) -> list[Tensor]:
    """The weights of groups after the next step, if all decays were 0.

    Args:
        optimizer: The optimizer before the step.
        groups: Groups of it, each with one parameter.
        one_by_one: Copy one group at a time, which `steps_one_by_one` must allow; else the whole optimizer at once.

    Returns:
        A copy of each group's weight, in its shape, dtype and sharding.

    Raises:
        ValueError: If the optimizer cannot take a step on a copy: it needs a closure, or second derivatives.
    """
    try:
        with own_randomness(optimizer):
            if one_by_one:
                return [_stepped_alone(optimizer, group) for group in groups]
            twin = twin_of(optimizer)
            for group in twin.param_groups:
                group["weight_decay"] = 0.0
            twin.step()
    except UNTRIED as error:
        name = type(optimizer).__name__
        raise ValueError(f"{name} cannot take a step on a copy, so its decay cannot be audited: {error}") from error
    stepped = {group["decay_name"]: group["params"][0].detach() for group in twin.param_groups}
    return [stepped[group["decay_name"]] for group in groups]


def _stepped_alone(optimizer: Optimizer, group: Group) -> Tensor:
    twin, own = _alone(optimizer, group, 0.0)
    if own.grad is not None:
        twin.step()
    return own.detach()


def steps_one_by_one(optimizer: Optimizer) -> bool:
    """Whether each group's step depends on that group alone, bitwise, and draws no random numbers.

    Tests copies of the optimizer: three steps on small random matrices, together and each alone.
    """
    tried: list[Group] = []
    twice: list[Group] = []  # of each kind two groups
    try:
        for group in optimizer.param_groups:
            if (options := _options_of(group)) not in tried:
                tried.append(options)
                twice += [group, group]
        with own_randomness(optimizer):
            return _one_by_one(optimizer, twice)
    except UNTRIED:
        return False


def _one_by_one(optimizer: Optimizer, groups: Sequence[Group]) -> bool:
    """`steps_one_by_one` for groups with these options; draws from torch's generators."""
    generator = torch.Generator().manual_seed(0)
    shape = (TRIAL_STEPS + 1, 8, 6)  # weight and gradients
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for _ in groups]
    trial_groups = [
        _trial_group(group, values[0].to(group["params"][0].dtype)) for group, values in zip(groups, drawn, strict=True)
    ]
    together = _trial(optimizer, trial_groups)
    parameters = [group["params"][0] for group in together.param_groups]
    for step in range(1, TRIAL_STEPS + 1):
        for p, values in zip(parameters, drawn, strict=True):
            p.grad = values[step].to(p.device, p.dtype)
        alone, state = [], _random_states(parameters)
        for group in together.param_groups:
            twin, own = _alone(together, group, group["weight_decay"])
            twin.step()
            alone.append(_values_of(twin, own))
        together.step()
        if not _same(alone, [_values_of(together, p) for p in parameters]):
            return False
        if not _same(state, _random_states(parameters)):
            return False
    return not any(torch.equal(p.cpu(), values[0].to(p.dtype)) for p, values in zip(parameters, drawn, strict=True))


def _values_of(optimizer: Optimizer, p: nn.Parameter) -> list[Any]:
    """What a step changes for a parameter: its weight, its state, and its group's values."""
    (group,) = (group for group in optimizer.param_groups if any(each is p for each in group["params"]))
    options = {key: value for key, value in group.items() if key != "params"}
    return [p.detach(), dict(optimizer.state.get(p, {})), options]


def _random_states(parameters: Sequence[Tensor]) -> list[Tensor]:
    """States of torch's global generators of the CPU and of the devices of parameters (any shapes)."""
    devices = {p.device for p in parameters if p.device.type != "cpu"}
    return [torch.get_rng_state(), *(torch.get_device_module(each).get_rng_state(each) for each in devices)]


def _same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors (any shape and dtype) bitwise."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


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
            twin, own = _alone(optimizer, group, trial_decay, torch.float64)
            with own_randomness(optimizer):
                twin.step()
            weights.append(own.detach())
    except UNTRIED:
        return p.detach().to(torch.float64).mul_(-float(group["lr"]) * decay)
    return weights[0] - weights[1]


def _alone(
    optimizer: Optimizer, group: Group, decay: float, dtype: torch.dtype | None = None
) -> tuple[Optimizer, nn.Parameter]:
    """A copy of an optimizer with this decay and only this group's parameter, and the parameter.

    Args:
        dtype: Of the copied weight, its gradient and its state, but not of scalars; None: as they are.
    """
    p = group["params"][0]
    own = nn.Parameter(p.detach().to(dtype or p.dtype, copy=True))
    own.grad = None if p.grad is None else p.grad.detach().to(dtype or p.grad.dtype, copy=True)
    memo: dict[int, Any] = {id(p): own}
    state = {p: optimizer.state[p]} if p in optimizer.state else {}
    for value in state.get(p, {}).values():
        if dtype and isinstance(value, Tensor) and value.ndim and value.is_floating_point():
            memo[id(value)] = value.to(dtype, copy=True)
    alone = vars(optimizer) | {"param_groups": [{**group, "weight_decay": decay}], "state": defaultdict(dict, state)}
    return _copied(optimizer, alone, memo), own


def why_coupled(optimizer: Optimizer) -> str:
    """Empty if every group decays weights by learning rate x decay x weight alone; else a predicate: "does not ...".

    Tests copies of the optimizer: three steps on a small random matrix, with and without decay. An optimizer that
    cannot step on a copy (it needs a closure, or second derivatives) is not accepted; the predicate holds its error.
    """
    tried: list[Group] = []
    for group in optimizer.param_groups:
        options = _options_of(group)
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


def _options_of(group: Group) -> Group:
    """What a group sets for its optimizer's step besides parameters, learning rate and decay."""
    return {key: value for key, value in group.items() if key not in VARYING}


def _trial_group(group: Group, weight: Tensor) -> Group:
    """A group with these options, the learning rate of trials, and a copy of a weight (any shape) on its device."""
    p = nn.Parameter(weight.to(group["params"][0].device, copy=True))
    lr = torch.full_like(group["lr"], TRIAL_LR) if isinstance(group["lr"], Tensor) else TRIAL_LR
    names = {"param_names": ["trial"]} if "param_names" in group else {}
    return {**group, "params": [p], "lr": lr, **names}


def _trial(optimizer: Optimizer, groups: list[Group]) -> Optimizer:
    """A copy of an optimizer without state, and without an overflow, whose groups hold the parameters of these."""
    memo = {id(p): p for group in groups for p in group["params"]}
    attributes = {name: value for name, value in vars(optimizer).items() if name not in FROM_SCALER}
    return _copied(optimizer, attributes | {"param_groups": groups, "state": defaultdict(dict)}, memo)


def _decouples(optimizer: Optimizer, group: Group) -> bool:
    """Whether a group with these options decays a small random matrix by learning rate x decay x weight."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (
        torch.randn(8, 6, generator=generator, dtype=torch.float32, device="cpu") for _ in range(TRIAL_STEPS + 1)
    )
    like = group["params"][0]
    trials: dict[float, list[Tensor]] = {TRIAL_DECAY: [], 0.0: []}  # decay -> the weight after each step
    for decay, weights in trials.items():
        trial = _trial(optimizer, [_trial_group(group, weight) | {"weight_decay": decay}])
        (p,) = trial.param_groups[0]["params"]
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
        if name in ("step", "__getstate__", *FROM_SCALER):
            continue
        if "hooks" in name:
            value = OrderedDict()
        if isinstance(value, torch.Generator):
            generator = torch.Generator(value.device)
            generator.set_state(value.get_state())
            memo[id(value)] = generator
        vars(twin)[name] = copy.deepcopy(value, memo)
    for name in FROM_SCALER:  # a step reads them and does not write
        if name in attributes:
            vars(twin)[name] = attributes[name]
    return twin
