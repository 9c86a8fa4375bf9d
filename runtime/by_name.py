"""Options that name parameters: which of them are frozen, which decay differently, and which names match none."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from alphadecay.groups import shortest
from alphadecay.names import Decision, fits, names_of, occurs
from runtime.decay_options import DecayOptions
from runtime.errors import UserError, did_you_mean


def freeze(model: nn.Module, globs: Sequence[str]) -> None:
    """Exclude parameters from training if any of their names matches any of the globs. Buffers still change.

    Raises:
        UserError: If a glob matches no parameter, or no parameter would be trained.
    """
    names = names_of(model)
    for glob in globs:
        if not any(fits(each, glob) for each in names.values()):
            raise UserError(f"--freeze {glob or repr(glob)}: matches no parameter{_close(glob, names.values())}")
    for parameter in model.parameters():
        if any(fits(names[id(parameter)], glob) for glob in globs):
            parameter.requires_grad_(False)
    if globs and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--freeze {' '.join(globs)}: matches every parameter, so none would be trained")


def named_decays(decay: DecayOptions, model: nn.Module) -> dict[str, Any]:
    """The arguments of `alphadecay.param_groups` that decide decay by name.

    Raises:
        UserError: If a glob or name matches no parameter.
    """
    multipliers, names = decay.multipliers, names_of(model).values()
    for word, glob in zip(decay.decay_multiplier, multipliers, strict=True):
        if not any(fits(each, glob) for each in names):
            raise UserError(f"--decay_multiplier {word}: matches no parameter{_close(glob, names)}")
    for part in decay.decay_only:
        if not any(occurs(part, each) for each in names):
            raise UserError(f"--decay_only {part}: occurs in no name of a parameter{_close(part, names)}")
    return {"multipliers": multipliers, "only": decay.decay_only}


def why_named(decision: Decision) -> str:
    """Which option and word decided the static multiplier of a parameter."""
    if decision.glob:
        number = shortest(decision.static)
        return f"--decay_multiplier {decision.glob}={number}: {number} x base"
    return f"--decay_only {decision.part}: named" if decision.part else "--decay_only: not named"


def matches_of(decay: DecayOptions, freeze: Sequence[str], model: nn.Module) -> list[str]:
    """One line per word of --decay_multiplier, --decay_only and --freeze: how much of the model it matches."""
    names, parameters = names_of(model), list(model.parameters())
    earlier: set[int] = set()
    lines = []
    for word, glob in zip(decay.decay_multiplier, decay.multipliers, strict=True):
        found = [p for p in parameters if fits(names[id(p)], glob)]
        taken = sum(id(p) in earlier for p in found)
        lines.append(f"--decay_multiplier {word}: {_amount(found)}{f', {taken} by an earlier glob' if taken else ''}")
        earlier |= {id(p) for p in found}
    for part in decay.decay_only:
        lines.append(f"--decay_only {part}: {_amount([p for p in parameters if occurs(part, names[id(p)])])}")
    for glob in freeze:
        lines.append(f"--freeze {glob}: {_amount([p for p in parameters if fits(names[id(p)], glob)])}")
    return lines


def _amount(found: Sequence[nn.Parameter]) -> str:
    frozen = sum(not p.requires_grad for p in found)
    text = f"{len(found)} tensor{'s' * (len(found) != 1)}, {sum(p.numel() for p in found)} parameters"
    return f"{text}, {frozen} frozen" if frozen else text


def _close(typed: str, names: Iterable[Sequence[str]]) -> str:
    """A question in parentheses that suggests a near name; "" if there is none.

    A whole name if that is meant, else the part that is similar to one that no name has.
    """
    known = [name for each in names for name in each]
    if any(typed in name for name in known):  # a glob must match the whole name
        return f" (did you mean '*{typed}*'?)"
    parts = dict.fromkeys(part for name in known for part in [*name.split("."), *re.split("[._]", name)])
    wrong = [part for part in typed.split(".") if part.strip("*") not in parts]
    near = (did_you_mean(part.strip("*"), parts) for part in wrong)
    hint = next(filter(None, near), "") or did_you_mean(typed, known)
    return f" ({hint})" if hint else ""
