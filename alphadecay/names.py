"""Decay by name: every name of a parameter, and the static multiplier that globs or parts of names give it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import NamedTuple

from torch import nn

from alphadecay.matrices import part_name, part_names, plain_name, unwrap

Multipliers = Mapping[str, float]  # glob -> static multiplier, in the order in which globs are tried


class Decision(NamedTuple):
    """What a parameter's names say about its decay."""

    static: float  # its static multiplier
    glob: str = ""  # the glob that decides
    part: str = ""  # without a glob: the part of a name that decides; "": no part occurs in its names


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter by its id, the one that `named_parameters` gives first; several if it is tied.

    They have no parts that wrappers add. Parts of a split qkv have names such as blocks.0.attn.q.weight.
    """
    model = unwrap(model)
    modules = model.named_modules(remove_duplicate=False)
    parts = {name: found for name, module in modules if (found := part_names(module))}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, _, own_name = name.rpartition(".")
        if owner in parts:
            name = f"{part_name(owner, own_name, parts[owner])}.weight"
        names.setdefault(id(parameter), []).append(plain_name(name))
    return names


def fits(names: Iterable[str], glob: str) -> bool:
    """Whether a glob matches any of a parameter's names; capital letters count."""
    return any(fnmatchcase(name, glob) for name in names)


def occurs(part: str, names: Iterable[str]) -> bool:
    """Whether any of a parameter's names contains a part."""
    return any(part in name for name in names)


def decide(names: Collection[str], multipliers: Multipliers, only: Sequence[str]) -> Decision | None:
    """What decides a parameter's static multiplier; None: the rule for norms, biases, positions and tokens.

    Args:
        names: All names of the parameter.
        multipliers: The first glob that matches decides.
        only: Without such a glob: 1 if any of these occurs in a name, else 0. Empty: None is returned.
    """
    for glob, static in multipliers.items():
        if fits(names, glob):
            return Decision(float(static), glob=glob)
    if not only:
        return None
    part = next((part for part in only if occurs(part, names)), "")
    return Decision(1.0 if part else 0.0, part=part)


def check_names(multipliers: Multipliers, only: Sequence[str], model: nn.Module) -> None:
    """Raise ValueError, which names it, for an argument of `param_groups` that is impossible or matches nothing."""
    if not isinstance(multipliers, Mapping):
        raise ValueError(f"multipliers={multipliers!r}: give a mapping, such as {{'*.mlp.*': 0.5}}")
    if isinstance(only, str) or not isinstance(only, Collection):
        raise ValueError(f"only={only!r}: give a list of parts of names, such as ['attn']")
    names = names_of(model).values()
    for glob, static in multipliers.items():
        if isinstance(static, bool) or not isinstance(static, Real) or not 0 <= static < float("inf"):
            raise ValueError(f"multipliers: {glob!r} has {static!r}, which is not a finite number of at least 0")
        if not isinstance(glob, str) or not any(fits(each, glob) for each in names):
            raise ValueError(f"multipliers: {glob!r} matches no parameter of {type(unwrap(model)).__name__}")
    for part in only:
        if not isinstance(part, str) or not part or not any(occurs(part, each) for each in names):
            raise ValueError(f"only: {part!r} occurs in no name of a parameter of {type(unwrap(model)).__name__}")
