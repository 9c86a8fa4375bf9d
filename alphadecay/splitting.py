"""Give each weight matrix its own group in an optimizer, in place, and label all other groups."""

import math
import random
from collections.abc import Iterable, Sequence
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from alphadecay.groups import ADDED, MODULE, NO_DECAY, REST, Group, effective_decay, is_module, new_group
from alphadecay.matrices import Matrix, unwrap
from alphadecay.sharing import is_sharded


def split_groups(optimizer: Optimizer, matrices: Iterable[Matrix]) -> None:
    """Give each matrix that is adapted, or may be later, its own group, in place; other parameters keep their groups.

    A new group has all options of the group it was split from, and parameters keep their state, so that the optimizer
    computes the same as before. An optimizer that draws random numbers draws them parameter by parameter; then the
    parameters also keep their order, which takes more groups.

    Raises:
        ValueError: If the optimizer has no weight decay, holds none of the matrices, was built before `split_qkv` or
            `merge_qkv`, or a learning-rate scheduler is attached and groups would have to be split. The groups are
            then unchanged.
    """
    matrices = list(matrices)
    by_id = {id(m.weight): m for m in matrices if m.may_be_adapted}
    _check_holds_some(optimizer, matrices)
    _check_holds_no_other(optimizer, matrices)
    if any("weight_decay" not in group for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__} has no weight_decay in its groups: it does not support it")
    draws = any(isinstance(value, torch.Generator | random.Random) for value in vars(optimizer).values())
    split = [_parts(group["params"], by_id, draws) for group in optimizer.param_groups]
    if any(len(parts) > 1 for parts in split) and has_scheduler(optimizer):
        raise ValueError(
            "build AlphaDecay before the scheduler: it has to split the optimizer's groups "
            "(if there is no scheduler, 'initial_lr' is from a loaded state: delete it from each group)"
        )
    groups: list[Group] = []
    for group, parts, rest in zip(optimizer.param_groups, split, _rest_labels(optimizer), strict=True):
        labels = _labels(group, parts, by_id, *rest)
        pieces = (
            [group]
            if len(parts) == 1
            else [_part(group, part, name) for part, (name, _) in zip(parts, labels, strict=True)]
        )
        groups += [_labelled(piece, *label) for piece, label in zip(pieces, labels, strict=True)]
    optimizer.param_groups[:] = groups  # in place: wrappers share this list


def label_added_groups(optimizer: Optimizer, matrices: Iterable[Matrix]) -> None:
    """Label groups that were added after `split_groups`, without splitting them, because a scheduler counts groups.

    If a group holds a matrix and other parameters, `decay_members` lists the matrices in it.
    """
    by_id = {id(m.weight): m for m in matrices if m.may_be_adapted}
    for group, rest in zip(optimizer.param_groups, _rest_labels(optimizer), strict=True):
        if "decay_name" in group:
            continue
        members = [by_id[id(p)].name for p in group["params"] if id(p) in by_id]
        alone = len(members) == len(group["params"]) == 1
        _labelled(group, *((members[0], MODULE) if alone else rest))
        if members and not alone:
            group["decay_members"] = members


def label_replaced(groups: Sequence[Group], model: nn.Module) -> None:
    """Relabel groups whose weight is no longer in the model; another weight may have its name now."""
    present = {id(p) for p in unwrap(model).parameters()}
    for group in groups:
        if is_module(group) and not any(id(p) in present or is_sharded(p) for p in group["params"]):
            taken = {other.get("decay_name") for other in groups}
            labels = (f"({group['decay_name']}, replaced{f' {i}' if i else ''})" for i in count())
            group |= {"decay_name": next(label for label in labels if label not in taken), "decay_group": REST}


def note_old_groups(groups: Sequence[Group]) -> None:
    """Set `decay_group` in groups of old states, which lack it, from the beginnings of their labels."""
    for group in groups:
        if "decay_name" in group and "decay_group" not in group:
            label = group["decay_name"]
            contents = {"(no decay": NO_DECAY, "(added group": ADDED, "(": REST, "": MODULE}
            group["decay_group"] = next(content for start, content in contents.items() if label.startswith(start))


Label = tuple[str, str]  # decay_name and decay_group


def _rest_labels(optimizer: Optimizer) -> list[Label]:
    """The label that each group has, or gets for parameters that are not split off."""
    groups = optimizer.param_groups
    were_split = any("decay_name" in group for group in groups)
    number = len({group["decay_name"] for group in groups if group.get("decay_group") == ADDED}) if were_split else -1
    labels = []
    for group in groups:
        if "decay_name" in group:
            labels.append((group["decay_name"], group["decay_group"]))
            continue
        number += 1
        labels.append((f"(added group {number})", ADDED) if were_split else (f"(rest of group {number})", REST))
    return labels


def _parts(parameters: list[nn.Parameter], by_id: dict[int, Matrix], in_order: bool) -> list[list[int]]:
    """Positions of parameters in each new group: each matrix alone, the others together or, if in order, in runs."""
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


def _labels(group: Group, parts: list[list[int]], by_id: dict[int, Matrix], label: str, content: str) -> list[Label]:
    """Labels of a group's parts: the matrix' name, or the group's label, numbered if several parts have it."""
    labels, rests = [], 0
    for part in parts:
        matrix = by_id.get(id(group["params"][part[0]])) if part else None
        if matrix:
            labels.append((matrix.name, MODULE))
            continue
        rests += 1
        labels.append((label if rests == 1 else f"{label.rstrip(')')}, part {rests})", content))
    return labels


def _part(group: Group, positions: list[int], label: str) -> Group:
    """A group of the parameters at these positions, with all options; tensors (lr) are copied, not shared."""
    options = {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in group.items()}
    options.pop("decay_members", None)
    per_parameter = {key: [group[key][i] for i in positions] for key in ("params", "param_names") if key in group}
    own_name = {"name": f"{group['name']}: {label}"} if "name" in group else {}  # loggers want names to be unique
    return options | per_parameter | own_name


def take_written(groups: Sequence[Group]) -> None:
    """If a weight_decay was written after another schedule was detached, make it the base decay of its group."""
    for group in groups:
        if "decay_name" not in group or group["weight_decay"] == effective_decay(group):
            continue
        if group["weight_decay"] == 0 and group.get("decay_kind"):  # cautious decay, which is applied after the step
            continue
        group |= {"base_weight_decay": float(group["weight_decay"]), "static_multiplier": 1.0, "decay_multiplier": 1.0}


def _labelled(group: Group, name: str, content: str) -> Group:
    """The group with the keys of `new_group`; it keeps a base decay and multipliers that it has."""
    for key, value in new_group([], name, content, float(group["weight_decay"])).items():
        group.setdefault(key, value)
    group |= {"decay_name": name, "decay_group": content}
    group.setdefault("name", name)  # Lightning's LearningRateMonitor shows it
    return group


def _check_holds_some(optimizer: Optimizer, matrices: list[Matrix]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    adapted = [m for m in matrices if not m.reason]
    if adapted and not any(id(m.weight) in held for m in matrices if m.may_be_adapted):
        raise ValueError(f"the optimizer holds none of the model's weight matrices ({adapted[0].name}, ...)")


def _check_holds_no_other(optimizer: Optimizer, matrices: list[Matrix]) -> None:
    """Raise ValueError if the optimizer lacks q, k, v or the fused qkv, and holds the weights that they replaced."""
    held = {id(p): p for group in optimizer.param_groups for p in group["params"] if not is_lazy(p)}
    known = {id(m.weight) for m in matrices}
    outside = {p.numel() for key, p in held.items() if p.ndim == 2 and key not in known}
    for m in matrices:
        size = math.prod(m.shape)
        if not m.reason and id(m.weight) not in held and outside & {3 * size, size // 3}:
            raise ValueError(
                f"the optimizer lacks {m.name} and holds a weight that is no longer in the model: call split_qkv "
                "(or merge_qkv) before building the optimizer"
            )


def has_scheduler(optimizer: Optimizer) -> bool:
    """Whether groups have an initial rate: learning-rate schedulers of torch and timm add it and never remove it."""
    return any("initial_lr" in group for group in optimizer.param_groups)
