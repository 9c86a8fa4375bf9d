"""Check that a saved state fits the optimizer, and store the last refresh's measurements in it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alphadecay.analysis import SpectrumRecord
from alphadecay.groups import Group

REFRESHED = "decay_refreshed"
MEASURED = "decay_measured"  # key of a saved group: its module's score and record at the last refresh


def checked_state(
    groups: Sequence[Group], state: dict[str, Any], strategy: str, takes_over: bool
) -> dict[str, Any] | None:
    """Check a state dict before it is loaded; returns the state to load instead, or None to load it as it is.

    Args:
        groups: The optimizer's groups.
        state: The state dict.
        strategy: Name of the attached strategy.
        takes_over: Whether the state of another strategy may be loaded; its groups are then marked as not refreshed.
            Whatever the strategy, the optimizer's groups then keep their static multipliers.

    Raises:
        ValueError: If the state has other groups or another strategy; the message says what to do.
    """
    current = [(g.get("decay_name"), len(g["params"])) for g in groups]
    saved = [(g.get("decay_name"), len(g["params"])) for g in state["param_groups"]]
    if current != saved:
        raise ValueError(_mismatch(current, saved))
    pairs = list(zip(groups, state["param_groups"], strict=True))
    for own, other in pairs:
        names = own.get("decay_params"), other.get("decay_params")
        if None not in names and names[0] != names[1]:
            raise ValueError(
                f"the group {own['decay_name']!r} of this optimizer state holds other parameters than now: decay by "
                "name must be as in the run that saved it, except for the multipliers of matrices"
            )
    other_strategies = {g.get("decay_kind", strategy) for g in state["param_groups"]} - {strategy, ""}
    if takes_over:
        forgotten = {"decay_kind": ""} if other_strategies else {}
        kept = [other | forgotten | {"static_multiplier": own["static_multiplier"]} for own, other in pairs]
        return state | {"param_groups": kept}
    if other_strategies:
        raise ValueError(
            f"this optimizer state was saved with the strategy {', '.join(sorted(other_strategies))}, but {strategy} "
            "is attached. Attach the strategy that saved it; or set `takes_over = True` on the attached one before "
            "loading, to continue with that one."
        )
    return None


def _mismatch(current: list[tuple[str | None, int]], saved: list[tuple[str | None, int]]) -> str:
    if all(name is None for name, _ in saved):
        return (
            "this optimizer state has no decay names in its groups: it was saved without alphadecay. "
            "Load it into the optimizer before constructing AlphaDecay or UniformDecay."
        )
    different = next((pair for pair in zip(saved, current, strict=False) if pair[0] != pair[1]), None)
    where = f"group {different[0][0]!r} was saved where {different[1][0]!r} is now" if different else "some are missing"
    return (
        f"this optimizer state has {len(saved)} groups, the optimizer {len(current)}; {where}. Build the optimizer "
        "and the decay schedule as in the run that saved it: same model, same groups, same order."
    )


def note_measured(
    groups: Sequence[Group], records: Sequence[SpectrumRecord], scores: Mapping[str, float], measured_at: int
) -> None:
    """Store what the last refresh measured in the groups, as plain values, before the state is saved."""
    by_name = {record.name: record for record in records}
    for group in groups:
        if (record := by_name.get(group["decay_name"])) is not None:
            group[MEASURED] = {"at": measured_at, "score": scores.get(record.name), "record": asdict(record)}


def take_measured(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Remove these measurements from the groups; returns them by module."""
    return {group["decay_name"]: group.pop(MEASURED) for group in groups if MEASURED in group}


def note_refreshed(groups: Sequence[Group], measured_at: int, adapted: tuple[list[str], list[str]]) -> None:
    """Store in the first group when the last refresh measured which matrices, before the state is saved."""
    names, elsewhere = adapted
    groups[0][REFRESHED] = {"at": measured_at, "adapted": names, "elsewhere": elsewhere}


def take_refreshed(groups: Sequence[Group]) -> dict[str, Any]:
    """Remove that from the groups; returns it, or an empty dict if it is not there, as in older states."""
    return next((taken for group in groups if (taken := group.pop(REFRESHED, None)) is not None), {})
