"""What an optimizer's saved state must have in common with the optimizer, and what it says of the last refresh."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from alphadecay.analysis import SpectrumRecord
from alphadecay.groups import Group

MEASURED = "decay_measured"  # the key of a group under which a saved state has score and measures


def checked_state(
    groups: Sequence[Group], state: dict[str, Any], strategy: str, takes_over: bool
) -> dict[str, Any] | None:
    """The state to be loaded in place of the one given, if not that one.

    Args:
        groups: The optimizer's.
        state: A state dict.
        strategy: Of the decay that is attached.
        takes_over: Whether the state of another kind may be loaded; it then counts as not refreshed.

    Raises:
        ValueError: If the state is of other groups, or of another kind of decay; it says what to do.
    """
    ours = [(g.get("decay_name"), len(g["params"])) for g in groups]
    theirs = [(g.get("decay_name"), len(g["params"])) for g in state["param_groups"]]
    if ours != theirs:
        raise ValueError(_mismatch(ours, theirs))
    others = {g.get("decay_kind", strategy) for g in state["param_groups"]} - {strategy, ""}
    if not others:
        return None
    if not takes_over:
        raise ValueError(
            f"this optimizer state was saved under {', '.join(sorted(others))} decay, and {strategy} decay is "
            "attached. Attach the kind that saved it; or set `takes_over = True` on the attached one before "
            "loading, to go on with it from here."
        )
    return state | {"param_groups": [group | {"decay_kind": ""} for group in state["param_groups"]]}


def _mismatch(ours: list[tuple[str | None, int]], theirs: list[tuple[str | None, int]]) -> str:
    if all(name is None for name, _ in theirs):
        return (
            "this optimizer state has no decay names in its groups: it was saved without alphadecay. "
            "Load it into the optimizer before constructing AlphaDecay or UniformDecay."
        )
    different = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
    where = f"group {different[0][0]!r} was saved where {different[1][0]!r} is now" if different else "some lack"
    return (
        f"this optimizer state has {len(theirs)} groups, the optimizer {len(ours)}; {where}. Build the optimizer "
        "and the decay schedule as in the run that saved it: same model, same groups, same order."
    )


def note_measured(
    groups: Sequence[Group], records: Sequence[SpectrumRecord], scores: Mapping[str, float], measured_at: int
) -> None:
    """Put what the last refresh found into the groups, as plain values, for the state that is saved."""
    by_name = {record.name: record for record in records}
    for group in groups:
        if (record := by_name.get(group["decay_name"])) is not None:
            group[MEASURED] = {"at": measured_at, "score": scores.get(record.name), "record": asdict(record)}


def take_measured(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Take that out of the groups again: by module, empty where there is none."""
    return {group["decay_name"]: group.pop(MEASURED) for group in groups if MEASURED in group}
