"""Parameter groups that carry their own decay: made for a model, or split from an optimizer's groups.

Every group holds plain values, so that `optimizer.state_dict()` alone carries the decay:

    decay_name          module whose weight the group holds, or a label for other groups
    decay_group         "module" (the weight of that module alone), "no decay" (parameters excluded from decay),
                        "added" (parameters added later, by add_param_group) or "rest"
    base_weight_decay   the base decay; a schedule of the weight decay writes it
    static_multiplier   1, 0 for parameters excluded from decay, or what the parameters' names decide
    decay_multiplier    the multiplier of the strategy
    decay_step          optimizer steps taken
    decay_params        with decay by name, except for one module: the names of the parameters
    decay_as            in some groups: the module whose multiplier this group has too
    decay_members       in some groups: modules that share the group, which has the mean of their multipliers
    decay_kind          the strategy that wrote the multiplier; empty before its first refresh
    decay_next          with lag: a multiplier that is measured and not written yet, its score and measures
    decay_measured      only in saved states: score and measures of the last refresh, as plain values
    weight_decay        base x static x adaptive multiplier; only `alphadecay.writer` writes it
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from alphadecay.matrices import LAZY, MIN_EIGENVALUES, Matrix, find_matrices, plain_name, unwrap
from alphadecay.names import Decision, Multipliers, check_names, decide, names_of

Group = dict[str, Any]

MODULE, REST, NO_DECAY, ADDED = "module", "rest", "no decay", "added"  # values of decay_group
ALL = "(all)"  # stands for all modules where they have one multiplier
POSITION_PARTS = ("pos_embed", "position_embed", "absolute_pos", "relative_position", "rel_pos", "wpe", "pos_emb")
TOKEN_ENDINGS = ("_token", "_tokens")


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.1,
    *,
    norm_bias: bool = False,
    batchnorm: bool = False,
    multipliers: Multipliers | None = None,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
) -> list[Group]:
    """Groups for any torch optimizer, with every trainable parameter in exactly one group.

    Each weight matrix that `alphadecay.analyze` does not skip has a group of its own. The other decayed parameters
    share one group, and parameters without decay (norms, biases, position and class tokens, and names in the model's
    `no_weight_decay()`) share another. `multipliers` and `only` decide by name instead; the names are those of
    `named_parameters()` without parts that wrappers add, a tied parameter has all its names, and parts of a split qkv
    are named as in blocks.0.attn.q.weight.

    Args:
        model: Any module, wrapped or not.
        weight_decay: The base decay, at least 0.
        norm_bias: Decay norms, biases, position and class tokens too, as the published program does.
        batchnorm: With `norm_bias`, give a BatchNorm2d the multiplier of the convolution whose name has "conv" in place
            of its "bn", as the published program does.
        multipliers: Glob over names -> static multiplier, at least 0 and finite: the decay of these parameters is
            it x the base decay, with 0 none. The first glob that matches decides, also for norms and biases. Parameters
            with the same static multiplier share a group, except matrices with a group of their own.
        only: Parts of names, such as "attn": a parameter that no glob matches is decayed if its name contains one of
            them, also if it is a norm or bias, and else not. Empty: the rule above.
        exclude: Globs of modules that get no group of their own, such as "blocks.0.*".
        include: Any of "stem", "head" and "frozen": these get groups of their own too.
        min_eigenvalues: Matrices with fewer eigenvalues get no group of their own; at least 1.

    Returns:
        Plain dicts with params, weight_decay, decay_name (the module, or a label in parentheses) and the other keys
        that `alphadecay.groups` describes; matrices first, in the model's order. Options such as lr may be added.

    Raises:
        ValueError: If the decay is negative or not finite, if the model has no trainable parameter, if `analyze`
            refuses `exclude`, `include` or `min_eigenvalues`, or if a static multiplier is impossible or a name in
            `multipliers` or `only` matches no parameter; the message names it.

    Example:
        >>> import torch, alphadecay
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 10))
        >>> groups = alphadecay.param_groups(model, weight_decay=0.1)
        >>> [(group["decay_name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('0', 1, 0.1), ('(other)', 1, 0.1), ('(no decay)', 4, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
        >>> groups = alphadecay.param_groups(model, weight_decay=0.1, multipliers={"0.*": 0.5}, only=["2."])
        >>> [(group["decay_name"], len(group["params"]), group["weight_decay"]) for group in groups]
        [('0', 1, 0.05), ('(other, x0.5)', 1, 0.05), ('(other)', 2, 0.1), ('(no decay)', 2, 0.0)]
    """
    if not isinstance(weight_decay, int | float) or not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be a number of at least 0, got {weight_decay!r}")
    matrices = find_matrices(model, exclude, min_eigenvalues, include)
    own = {id(m.weight): m.name for m in matrices if m.reason in ("", LAZY)}
    check_names(multipliers := multipliers or {}, only, model)
    names = names_of(model)
    decided = {key: decide(each, multipliers, only) for key, each in names.items()}
    members = _members(unwrap(model), own, norm_bias, batchnorm, decided)
    order = {name: position for position, name in enumerate(own.values())}
    contents = (MODULE, REST, NO_DECAY)
    groups = []
    for place in sorted(members, key=lambda place: (contents.index(place.holds), order.get(place.name, 0))):
        group = new_group(members[place], place.name, place.holds, weight_decay, place.static)
        if (multipliers or only) and place.holds != MODULE:
            group["decay_params"] = [names[id(p)][0] for p in members[place]]
        groups.append(group | {"decay_as": place.decay_as} if place.decay_as else group)
    return groups


class Place(NamedTuple):
    """The group of a parameter."""

    holds: str  # decay_group
    name: str  # decay_name
    static: float  # static_multiplier
    decay_as: str = ""  # decay_as, if any


def _members(
    model: nn.Module, own: Mapping[int, str], norm_bias: bool, batchnorm: bool, decided: Mapping[int, Decision | None]
) -> dict[Place, list[nn.Parameter]]:
    """The trainable parameters by place."""
    undecayed = set() if norm_bias else _undecayed_names(model)
    pairs = _batchnorm_pairs(model) if norm_bias and batchnorm else {}
    pairs = {name: conv for name, conv in pairs.items() if conv in own.values()}
    members: dict[Place, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decision = decided[id(parameter)]
            if decision is None and name in undecayed:
                place = Place(NO_DECAY, "(no decay)", 0.0)
            else:
                place = _place(own.get(id(parameter), ""), pairs.get(name, ""), decision.static if decision else 1.0)
            members.setdefault(place, []).append(parameter)
    if not members:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    return members


def _place(module: str, conv: str, static: float) -> Place:
    """The place of a parameter with this static multiplier: a matrix' of its own, a batch norm's of its convolution."""
    if module:
        return Place(MODULE, module, static)
    if static == 0:
        return Place(NO_DECAY, "(no decay)", 0.0)
    label = f"batch norm of {conv}" if conv else "other"
    return Place(REST, f"({label})" if static == 1 else f"({label}, x{shortest(static)})", static, conv)


def shortest(number: float) -> str:
    """A number in few characters, if these mean exactly the same number, else in full."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def new_group(
    parameters: list[nn.Parameter], name: str, holds: str, base: float, static_multiplier: float = 1.0
) -> Group:
    """A group before any refresh; `name` and `holds` become its decay_name and decay_group."""
    return {
        "params": parameters,
        "weight_decay": base * static_multiplier,
        "decay_name": name,
        "decay_group": holds,
        "base_weight_decay": base,
        "static_multiplier": static_multiplier,
        "decay_multiplier": 1.0,
        "decay_step": 0,
        "decay_kind": "",
    }


def _batchnorm_pairs(model: nn.Module) -> dict[str, str]:
    """Names of batch norms' parameters -> name of the convolution: the same name with "conv" in place of "bn"."""
    modules = dict(model.named_modules())
    pairs: dict[str, str] = {}
    for name, module in modules.items():
        parent, _, own_name = name.rpartition(".")
        conv = f"{parent}.{own_name.replace('bn', 'conv')}".lstrip(".")
        if isinstance(module, nn.BatchNorm2d) and conv != name and isinstance(modules.get(conv), nn.Conv2d):
            pairs |= {f"{name}.{leaf}": plain_name(conv) for leaf, _ in module.named_parameters(recurse=False)}
    return pairs


OWN_KEYS = frozenset(new_group([], "", REST, 0.0))  # keys of every group


def is_module(group: Group) -> bool:
    """Whether a group holds one module's weight and nothing else."""
    return group.get("decay_group") == MODULE


def effective_decay(group: Group) -> float:
    """The decay of a group: base decay x static multiplier x adaptive multiplier.

    Raises:
        ValueError: If a schedule wrote a base decay that is not a finite number of at least 0.
    """
    base = group["base_weight_decay"]
    if not isinstance(base, Real) or not 0 <= base < float("inf"):  # type: ignore[operator]
        name = group["decay_name"]
        raise ValueError(f"base_weight_decay of {name} must be a finite number of at least 0, got {base!r}")
    return base * group["static_multiplier"] * group["decay_multiplier"]


def multiplier_of(group: Group, multipliers: Mapping[str, float], matrices: Iterable[Matrix]) -> float:
    """The multiplier of a group: its module's, or the mean over its member modules, weighted by parameters."""
    members = group.get("decay_members")
    if not members or group["decay_name"] in multipliers:
        return multipliers.get(group["decay_as"] if "decay_as" in group else group["decay_name"], 1.0)
    sizes = {m.name: m.weight.numel() for m in matrices if m.name in members and not m.reason}
    total = sum(sizes.values())
    if len(distinct := {multipliers.get(name, 1.0) for name in sizes}) == 1:
        return distinct.pop()
    return sum(size * multipliers.get(name, 1.0) for name, size in sizes.items()) / total if total else 1.0


def shared_multipliers(groups: Iterable[Group]) -> dict[str, float]:
    """Module name -> multiplier, of modules that share a group."""
    return {name: group["decay_multiplier"] for group in groups for name in group.get("decay_members", ())}


def _undecayed_names(model: nn.Module) -> set[str]:
    """Names of norms, biases, position and class tokens, and of parameters in the model's `no_weight_decay()`."""
    declared = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    names = set()
    for module_name, module in model.named_modules():
        norm = "Norm" in type(module).__name__
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}".lstrip(".")
            plain = plain_name(name)
            position = any(part in plain for part in POSITION_PARTS)
            token = plain.endswith(TOKEN_ENDINGS)
            short = not is_lazy(parameter) and parameter.ndim < 2
            if norm or short or plain.endswith("bias") or position or token or plain in declared:
                names.add(name)
    return names
