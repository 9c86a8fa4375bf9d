"""What a decay schedule says: of itself, and, once, when its decays are not what its user can have meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.parameter import is_lazy

from alphadecay.groups import Group

NEAR, FEWEST = 0.02, 4  # share of the range that counts as at a bound; modules from which on that says something
FAR_OFF = 0.05  # share of the modules, at least one, that may be elsewhere


def no_base_decay(groups: Sequence[Group], who: str) -> str:
    """A sentence if no group has a base decay."""
    if any(group["base_weight_decay"] * group["static_multiplier"] for group in groups):
        return ""
    return (
        f"{who} has nothing to spread: the base decay of every group is 0, which is the default of torch's Adam and "
        "SGD; give the optimizer a weight_decay, or write base_weight_decay into its groups"
    )


def overwritten(groups: Sequence[Group], written: Sequence[float]) -> str:
    """A sentence if a group's weight_decay is not what was last written there."""
    for group, ours in zip(groups, written, strict=True):
        if group["weight_decay"] != ours:
            return (
                f"weight_decay of group {group['decay_name']} was set to {group['weight_decay']:g} from outside; it is "
                f"overwritten at every step, with {ours:g} so far. A schedule of the base decay writes "
                "group['base_weight_decay'], which is multiplied with what each module is assigned"
            )
    return ""


def far_off(scores: Mapping[str, float], multipliers: Mapping[str, float], what: str) -> str:
    """A sentence if a few scores are so far from the others that nearly all multipliers sit at one bound.

    Args:
        scores: By module.
        multipliers: By module, as a rule onto a range made them.
        what: The scores are.
    """
    if len(multipliers) < FEWEST:
        return ""
    low, high = min(multipliers.values()), max(multipliers.values())
    most = max(1, int(FAR_OFF * len(multipliers)))
    for bound in (low, high):
        off = [name for name, each in multipliers.items() if abs(each - bound) > NEAR * (high - low)]
        if 0 < len(off) <= most:
            others = [score for name, score in scores.items() if name not in off]
            ends = f"{min(others):.4g} to {max(others):.4g}"
            return (
                f"the {what} of {off[0]} is {scores[off[0]]:.4g}, of the others {ends}; "
                f"{len(multipliers) - len(off)} of {len(multipliers)} modules get a multiplier next to {bound:.3g}; "
                f"exclude=[{off[0]!r}] leaves it out, rule='sqrt' or 'log2' has no such ends"
            )
    return ""


def description(schedule: Any) -> str:
    """A decay schedule in one line: step, next refresh, range of the multipliers and their mean by parameters."""
    optimizer = type(schedule.optimizer).__name__
    coming = schedule.next_refresh
    when = "no more refreshes" if coming is None else f"next refresh before step {coming}"
    multipliers = schedule.multipliers
    if not multipliers or not any(group["decay_kind"] for group in schedule.own_groups):
        spread = f"{len(multipliers)} modules"
    else:
        weights = schedule.weights
        sizes = {name: weights[name].numel() for name in multipliers if name in weights and not is_lazy(weights[name])}
        mean = sum(size * multipliers[name] for name, size in sizes.items()) / max(1, sum(sizes.values()))
        low, high = min(multipliers.values()), max(multipliers.values())
        spread = f"{len(multipliers)} modules x {low:.3g} to {high:.3g}, mean by parameters {mean:.3g}"
    return f"{type(schedule).__name__}({optimizer}, step {schedule.step}, {when}, {spread})"
