"""Parameter groups that carry their own decay: made for a model, or split from an optimizer's.

Every group holds plain values, so that `optimizer.state_dict()` alone carries the decay:

    decay_name          module whose weight it is, or a label in parentheses for the rest
    base_weight_decay   what decay schedules write
    static_multiplier   1, or 0 for what is excluded from decay
    decay_multiplier    what an adaptive kind writes
    decay_step          optimizer steps taken
    decay_as            only where it is: module whose multiplier holds here too
    decay_members       only where it is: modules that share the group, which has the mean of their multipliers
    decay_kind          the kind of decay that wrote the multiplier; empty before its first refresh
    decay_measured      only in saved states: score and measures of the last refresh, as plain values
    weight_decay        base x static x adaptive; written by `alphadecay.schedule` alone
"""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from alphadecay.matrices import MIN_EIGENVALUES, Matrix, find_matrices, plain_name, unwrap

Group = dict[str, Any]

ALL = "(all)"  # the name of what holds for every module alike
POSITION_PARTS = (
    "pos_embed",
    "position_embed",
    "absolute_pos",
    "relative_position",
    "rel_pos",
    "wpe",
    "pos_emb",
)
TOKEN_ENDINGS = ("_token", "_tokens")


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.1,
    *,
    norm_bias: bool = False,
    batchnorm: bool = False,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
) -> list[Group]:
    """Groups for any torch optimizer, every trainable parameter in exactly one.

    Each weight matrix that takes part (see `alphadecay.analyze`) has a group of its own; the other decayed
    parameters share one, and those without decay (norms, biases, position and class tokens, what the model's
    `no_weight_decay()` names) another.

    Args:
        model: Any module, wrapped or not.
        weight_decay: The base decay, at least 0.
        norm_bias: Decay norms, biases, position and class tokens too, as the published program does.
        batchnorm: With `norm_bias`, decay a BatchNorm2d as the convolution whose name has "conv" for its "bn", as the
            published program does.
        exclude: Globs over module names that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": they get groups of their own as well.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.

    Returns:
        Plain dicts: params, weight_decay, decay_name (the module, or a label in parentheses) and what else
        `alphadecay.groups` describes; matrices first, in the model's order. Options such as lr may be added.

    Raises:
        ValueError: If the decay is negative or not finite, or the model has nothing to train; or as `analyze` for
            what it selects by.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 10))
        >>> groups = alphadecay.param_groups(model, weight_decay=0.1)
        >>> [(group["decay_name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('0', 1, 0.1), ('(other)', 1, 0.1), ('(no decay)', 4, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be a number of at least 0, got {weight_decay}")
    own = {id(m.weight): m.name for m in find_matrices(model, exclude, min_eigenvalues, include) if not m.reason}
    undecayed = set() if norm_bias else _undecayed_names(unwrap(model))
    pairs = _batchnorm_pairs(unwrap(model)) if norm_bias and batchnorm else {}
    labels = {f"(batch norm of {name})": name for name in own.values()}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in own.values()}
    for name, parameter in unwrap(model).named_parameters():
        if parameter.requires_grad:
            label = f"(batch norm of {pairs.get(name)})"
            rest = label if label in labels else "(no decay)" if name in undecayed else "(other)"
            members.setdefault(own.get(id(parameter), rest), []).append(parameter)
    if not members:
        raise ValueError(f"{type(unwrap(model)).__name__} has no trainable parameter")
    order = sorted(members, key=lambda name: (name.startswith("("), name == "(no decay)"))  # stable: matrices first
    groups = [_group(members[name], name, weight_decay, 0.0 if name == "(no decay)" else 1.0) for name in order]
    for group in groups:
        if group["decay_name"] in labels:
            group["decay_as"] = labels[group["decay_name"]]
    return groups


def _group(parameters: list[nn.Parameter], name: str, base: float, static_multiplier: float = 1.0) -> Group:
    return {
        "params": parameters,
        "weight_decay": base * static_multiplier,
        "decay_name": name,
        "base_weight_decay": base,
        "static_multiplier": static_multiplier,
        "decay_multiplier": 1.0,
        "decay_step": 0,
        "decay_kind": "",
    }


def _batchnorm_pairs(model: nn.Module) -> dict[str, str]:
    """Parameters of batch norms, and the name of the convolution of like name that each belongs to."""
    modules = dict(model.named_modules())
    pairs: dict[str, str] = {}
    for name, module in modules.items():
        head, _, leaf = name.rpartition(".")
        conv = f"{head}.{leaf.replace('bn', 'conv')}".lstrip(".")
        if isinstance(module, nn.BatchNorm2d) and conv != name and isinstance(modules.get(conv), nn.Conv2d):
            pairs |= {f"{name}.{each}": plain_name(conv) for each, _ in module.named_parameters(recurse=False)}
    return pairs


OWN_KEYS = frozenset(_group([], "", 0.0))  # of a group of this module


def effective_decay(group: Group) -> float:
    """The composition rule: base x static multiplier x adaptive multiplier."""
    return group["base_weight_decay"] * group["static_multiplier"] * group["decay_multiplier"]


def _undecayed_names(model: nn.Module) -> set[str]:
    """Names of norms, biases, position and class tokens, and what the model's `no_weight_decay()` lists."""
    declared = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    names = set()
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        position = any(part in plain for part in POSITION_PARTS)
        token = plain.endswith(TOKEN_ENDINGS)
        if parameter.ndim < 2 or plain.endswith("bias") or position or token or plain in declared:
            names.add(name)
    return names


def split_groups(optimizer: Optimizer, matrices: Iterable[Matrix]) -> None:
    """Give each matrix that takes part, or may later, a group of its own, in place; the rest stays where it was.

    A new group has all options of the one it comes from, and the state of its parameter is kept, so that the
    optimizer computes the same as before. An optimizer that draws random numbers draws them parameter by parameter:
    there, parameters keep their order, at the price of more groups for the rest.

    Raises:
        ValueError: If the optimizer takes no weight decay, holds none of the matrices, was built before
            `split_qkv` or `merge_qkv`, or a learning-rate scheduler is attached and groups would have to be split.
            Nothing is changed then.
    """
    matrices = list(matrices)
    by_id = {id(m.weight): m for m in matrices if m.may_take_part}
    _check_holds_some(optimizer, matrices)
    _check_holds_no_other(optimizer, matrices)
    if any("weight_decay" not in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} has no weight_decay in its groups; it takes none")
    draws = any(isinstance(value, torch.Generator | random.Random) for value in vars(optimizer).values())
    split = [_parts(group["params"], by_id, draws) for group in optimizer.param_groups]
    if any(len(parts) > 1 for parts in split) and has_scheduler(optimizer):
        raise ValueError(
            "build AlphaDecay before the scheduler: it has to split the optimizer's groups "
            "(if there is no scheduler, a loaded state brought 'initial_lr': delete it from each group)"
        )
    groups: list[Group] = []
    for group, parts, rest in zip(optimizer.param_groups, split, _rest_labels(optimizer), strict=True):
        labels = _labels(group, parts, by_id, rest)
        pieces = [group] if len(parts) == 1 else [_part(group, *each) for each in zip(parts, labels, strict=True)]
        groups += [_labelled(piece, label) for piece, label in zip(pieces, labels, strict=True)]
    optimizer.param_groups[:] = groups  # in place: wrappers share this list


def label_added_groups(optimizer: Optimizer, matrices: Iterable[Matrix]) -> None:
    """Label groups that were added since `split_groups` without splitting them: a scheduler counts groups.

    One that holds more than a matrix lists the matrices in it as its members.
    """
    by_id = {id(m.weight): m for m in matrices if m.may_take_part}
    for group, rest in zip(optimizer.param_groups, _rest_labels(optimizer), strict=True):
        if "decay_name" in group:
            continue
        members = [by_id[id(p)].name for p in group["params"] if id(p) in by_id]
        alone = len(members) == len(group["params"]) == 1
        _labelled(group, members[0] if alone else rest)
        if members and not alone:
            group["decay_members"] = members


def _rest_labels(optimizer: Optimizer) -> list[str]:
    """For each group the label of what is no matrix with a group of its own."""
    later = any("decay_name" in group for group in optimizer.param_groups)
    number = len({group["decay_name"] for group in optimizer.param_groups if _was_added(group)}) if later else -1
    labels = []
    for group in optimizer.param_groups:
        number += "decay_name" not in group
        labels.append(group.get("decay_name", f"(added group {number})" if later else f"(rest of group {number})"))
    return labels


def _was_added(group: Group) -> bool:
    return group.get("decay_name", "").startswith("(added group")


def _parts(parameters: list[nn.Parameter], by_id: dict[int, Matrix], in_order: bool) -> list[list[int]]:
    """Positions in a group, by the groups it becomes: each matrix alone, the others together or as they come."""
    alone = [[position] for position, p in enumerate(parameters) if id(p) in by_id]
    rest = [position for position, p in enumerate(parameters) if id(p) not in by_id]
    if not in_order:
        return [*alone, rest] if rest or not alone else alone
    runs: list[list[int]] = []
    for position in rest:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return sorted([*alone, *runs])


def _labels(group: Group, parts: list[list[int]], by_id: dict[int, Matrix], rest: str) -> list[str]:
    """Names of a group's parts: the matrix', or the group's own for the others, numbered where they are several."""
    labels, rests = [], 0
    for part in parts:
        matrix = by_id.get(id(group["params"][part[0]])) if part else None
        if matrix:
            labels.append(matrix.name)
            continue
        rests += 1
        label = group.get("decay_name", rest)
        labels.append(label if rests == 1 else f"{label.rstrip(')')}, part {rests})")
    return labels


def _part(group: Group, positions: list[int], label: str) -> Group:
    """A group of some parameters with their names and all options; a tensor (lr) is not shared with other parts."""
    options = {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in group.items()}
    options.pop("decay_members", None)
    per_parameter = {key: [group[key][i] for i in positions] for key in ("params", "param_names") if key in group}
    own_name = {"name": f"{group['name']}: {label}"} if "name" in group else {}  # loggers want names to be unique
    return options | per_parameter | own_name


def _labelled(group: Group, name: str) -> Group:
    """The group with the keys of this module; a group that has them keeps its base and multipliers."""
    for key, value in _group([], name, float(group["weight_decay"])).items():
        group.setdefault(key, value)
    group["decay_name"] = name
    group.setdefault("name", name)  # by which Lightning's LearningRateMonitor calls a group
    return group


def _check_holds_some(optimizer: Optimizer, matrices: list[Matrix]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    taking_part = [m for m in matrices if not m.reason]
    if taking_part and not any(id(m.weight) in held for m in matrices if m.may_take_part):
        raise ValueError(f"the optimizer holds none of the model's weight matrices ({taking_part[0].name}, ...)")


def _check_holds_no_other(optimizer: Optimizer, matrices: list[Matrix]) -> None:
    """Raise ValueError if the optimizer lacks q, k, v or the fused qkv, and holds what they were before."""
    held = {id(p): p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p)}
    known = {id(m.weight) for m in matrices}
    outside = {p.numel() for key, p in held.items() if p.ndim == 2 and key not in known}
    for m in matrices:
        size = math.prod(m.shape)
        if not m.reason and id(m.weight) not in held and outside & {3 * size, size // 3}:
            raise ValueError(
                f"the optimizer lacks {m.name} and holds a weight that is no longer the model's: call split_qkv "
                "(or merge_qkv) before building the optimizer"
            )


def has_scheduler(optimizer: Optimizer) -> bool:
    """Learning-rate schedulers of torch and timm note the initial rate in every group, and never take it back."""
    return any("initial_lr" in group for group in optimizer.param_groups)
