"""The description of a decay schedule, and warnings about decays that its user probably does not want."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from alphadecay.groups import Group

NEAR, FEWEST = 0.02, 4  # share of the range that counts as at a bound; fewest modules for a warning
NONE_DECAYED = "the static multiplier of every matrix that it would rank is 0"
FAR_OFF = 0.05  # largest share of the modules that may be away from the bound (but at least one)


def no_base_decay(groups: Sequence[Group], who: str) -> str:
    """A warning if no group has a base decay, else ""."""
    if any(group["base_weight_decay"] * group["static_multiplier"] for group in groups):
        return ""
    return (
        f"{who} has no effect: the base decay of every group is 0, which is the default of torch's Adam and SGD; "
        "give the optimizer a weight_decay, or set base_weight_decay in its groups"
    )


def overwritten(groups: Sequence[Group], written: Sequence[float]) -> str:
    """A warning if a group's weight_decay is not the value last written there, else ""."""
    for group, last_written in zip(groups, written, strict=True):
        if group["weight_decay"] != last_written:
            return (
                f"weight_decay of group {group['decay_name']} was set to {group['weight_decay']:g} by other code; the "
                f"decay schedule overwrites it at every step, last with {last_written:g}. To change the base decay, "
                "set group['base_weight_decay'], which is multiplied by each module's multiplier"
            )
    return ""


def far_off(scores: Mapping[str, float], multipliers: Mapping[str, float], metric: str) -> str:
    """A warning if a few scores are so far from the others that nearly all multipliers are at one bound, else "".

    Args:
        scores: By module.
        multipliers: By module, from a rule with a lowest and a highest multiplier.
        metric: Name of the metric that the scores are of.
    """
    if len(multipliers) < FEWEST:
        return ""
    low, high = min(multipliers.values()), max(multipliers.values())
    most = max(1, int(FAR_OFF * len(multipliers)))
    for bound in (low, high):
        off = [name for name, value in multipliers.items() if abs(value - bound) > NEAR * (high - low)]
        if 0 < len(off) <= most:
            others = [score for name, score in scores.items() if name not in off]
            ends = f"{min(others):.4g} to {max(others):.4g}"
            return (
                f"the {metric} of {off[0]} is {scores[off[0]]:.4g}, of the others {ends}; "
                f"{len(multipliers) - len(off)} of {len(multipliers)} modules get a multiplier close to {bound:.3g}; "
                f"exclude=[{off[0]!r}] skips it, rule='sqrt' or 'log2' has no such bounds"
            )
    return ""


def description(schedule: Any) -> str:
    """A decay schedule in one line: step, next refresh, range of the multipliers, and their mean by parameters."""
    optimizer = type(schedule.optimizer).__name__
    next_step = schedule.next_refresh
    when = "no more refreshes" if next_step is None else f"next refresh before step {next_step}"
    multipliers = schedule.multipliers
    if not multipliers or not any(group["decay_kind"] for group in schedule.own_groups):
        spread = f"{len(multipliers)} modules"
    else:
        weights = schedule.weights
        known = [name for name in multipliers if name in weights and not is_lazy(weights[name])]
        sizes = {name: weights[name].numel() * schedule.statics.get(name, 1.0) for name in known}
        mean = sum(size * multipliers[name] for name, size in sizes.items()) / (sum(sizes.values()) or 1)
        low, high = min(multipliers.values()), max(multipliers.values())
        spread = f"{len(multipliers)} modules x {low:.3g} to {high:.3g}, mean by parameters {mean:.3g}"
    return f"{type(schedule).__name__}({optimizer}, step {schedule.step}, {when}, {spread})"
