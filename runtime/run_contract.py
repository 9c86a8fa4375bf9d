"""What a run cannot change when it goes on: a checkpoint holds it, and a resumption that differs is refused.

It is called the contract: the options that are declared with `fixed=ROOM`, and facts that no option states, such
as the number of processes, the data's fingerprint and the libraries. --allow_changed names what may differ.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runtime.checkpoints import Checkpoint
from runtime.errors import UserError, did_you_mean
from runtime.processes import Ranks
from runtime.runfolder import VERSIONS, library_versions
from runtime.tables import say, table

FACT_ROOMS = {
    "world_size": "world_size",
    "data": "data",
    "architecture": "model",
    "threads": "threads",
    "device": "machine",
    "machine": "machine",
    **dict.fromkeys(("torch", *VERSIONS), "libraries"),
}

Contract = dict[str, dict[str, Any]]  # "options" and "facts", each by name; plain JSON


class Fixed(NamedTuple):
    """An option that a run cannot change when it goes on."""

    room: str  # what it belongs to, such as "augmentation"
    default: Any


class Change(NamedTuple):
    """Something that is not as it was."""

    room: str
    name: str  # of the option or fact
    before: Any
    now: Any


def fixed_options(classes: Sequence[type]) -> dict[str, Fixed]:
    """The options of dataclasses that are declared as fixed, by name."""
    found = {}
    for cls in classes:
        for each in fields(cls):
            room = each.metadata["fixed"]
            room = getattr(cls, "FIXED", "") if room is None else room
            if room:
                found[each.name] = Fixed(room, each.default)
    return found


def facts_of(ranks: Ranks, data: str) -> dict[str, Any]:
    """What results depend on besides the options.

    Args:
        ranks: The processes and their device.
        data: Fingerprint of the data, hexadecimal; 16 digits of it are kept.
    """
    device = ranks.device
    found = {"world_size": ranks.count, "data": data[:16], "device": device.type, "machine": machine(device)}
    if device.type == "cpu":  # on a GPU it changes no result
        found["threads"] = torch.get_num_threads()
    return found | library_versions()


def machine(device: torch.device) -> str:
    """The model of the GPU, or that of the CPU with the instruction set torch uses there."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def contract_of(options: Mapping[str, Any], facts: Mapping[str, Any], fixed: Iterable[str]) -> Contract:
    """What a checkpoint notes: the fixed ones of all options, and the facts; as JSON gives them back."""
    return json.loads(json.dumps({"options": {name: options[name] for name in fixed}, "facts": dict(facts)}))


def changes(before: Mapping[str, Any], now: Contract, fixed: Mapping[str, Fixed]) -> list[Change]:
    """What is not as it was, options first.

    An option that the checkpoint does not know is newer than it and counts as its default then; a fact it does not
    know counts as changed. Of a checkpoint that notes no options at all nothing is said about them.
    """
    found = []
    options_before = before.get("options", now["options"])
    for name, value in now["options"].items():
        room, default = fixed[name]
        was = options_before.get(name, list(default) if isinstance(default, tuple) else default)
        if was != value:
            found.append(Change(room, name, was, value))
    facts_before = before.get("facts", {})
    for name, value in now["facts"].items():
        if name not in facts_before or facts_before[name] != value:
            found.append(Change(FACT_ROOMS[name], name, facts_before.get(name), value))
    return found


def check_names(allowed: Sequence[str], fixed: Mapping[str, Fixed]) -> None:
    """Raise UserError for a name in --allow_changed that is none of a room, a fixed option or a fact."""
    rooms = sorted({each.room for each in fixed.values()} | set(FACT_ROOMS.values()))
    known = list(dict.fromkeys([*rooms, *fixed, *FACT_ROOMS]))
    for name in allowed:
        if name not in known:
            hint = f" ({close})" if (close := did_you_mean(name, known)) else ""
            raise UserError(f"--allow_changed {name}: unknown{hint}; known are {', '.join(known)}")


def check_unchanged(
    checkpoint: Checkpoint | None, now: Contract, fixed: Mapping[str, Fixed], allowed: Sequence[str], ranks: Ranks
) -> None:
    """Refuse to go on from a checkpoint of a run that was otherwise; all ranks must call this.

    The first rank compares and the others follow it, since it alone knows the data's fingerprint. What is allowed
    to differ it prints. Nothing is written.

    Raises:
        UserError: If anything differs that `allowed` names neither itself nor by its room; with a table of it.
    """
    if checkpoint is None:
        return
    refused: list[Change] = []
    if ranks.is_main:
        found = changes(checkpoint.contract(), now, fixed)
        refused = [each for each in found if each.room not in allowed and each.name not in allowed]
        if found and not refused:
            _say_allowed(found)
    refused = ranks.gather(refused)[0]
    if refused:
        raise UserError(_refusal(refused, checkpoint), details=change_table(refused))


def change_table(found: Sequence[Change]) -> str:
    """Changes as a table for the terminal."""
    rows = [(each.room, each.name, _shown(each.before, each.name), _shown(each.now, each.name)) for each in found]
    return table(("room", "what", "in the checkpoint", "now"), rows)


def _shown(value: Any, name: str) -> str:
    """In full, unlike other numbers in tables: what differs must be seen to differ."""
    if value is None and name in FACT_ROOMS:
        return "unknown"
    if value in (None, "", []):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _refusal(refused: Sequence[Change], checkpoint: Checkpoint) -> str:
    names = ", ".join(each.name for each in refused)
    things = "1 thing is" if len(refused) == 1 else f"{len(refused)} things are"
    threads = next((each.before for each in refused if each.name == "threads" and each.before), None)
    back = f"; OMP_NUM_THREADS={threads} gives the threads back" if threads else ""
    return (
        f"--resume {checkpoint.path}: {things} not as in the checkpoint: {names}{back}; "
        "--allow_changed NAME... goes on all the same"
    )


def _say_allowed(found: Sequence[Change]) -> None:
    names = ", ".join(each.name for each in found)
    say(change_table(found))
    say(f"going on although changed (--allow_changed): {names}; from here on it is not the run that was stopped")
