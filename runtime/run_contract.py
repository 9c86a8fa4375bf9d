"""The contract of a run: everything that must not change when the run resumes. Each checkpoint stores it.

The contract has the options declared with `fixed=CATEGORY`, and facts that are not options, such as the number of
processes, the data's fingerprint and the libraries. --allow_changed names options, facts or categories that may differ.
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

FACT_CATEGORIES = {
    "world_size": "world_size",
    "data": "data",
    "tokenizer": "data",
    "architecture": "model",
    "threads": "threads",
    "device": "machine",
    "machine": "machine",
    **dict.fromkeys(("torch", *VERSIONS), "libraries"),
}

Contract = dict[str, dict[str, Any]]  # "options" and "facts", each by name; plain JSON


class Fixed(NamedTuple):
    """An option that must not change when a run resumes."""

    category: str  # such as "augmentation"
    default: Any


class Change(NamedTuple):
    """A difference between the contracts of a checkpoint and of the run that resumes from it."""

    category: str
    name: str  # of the option or fact
    before: Any
    now: Any


def fixed_options(classes: Sequence[type]) -> dict[str, Fixed]:
    """The options of dataclasses that are declared as fixed, by name."""
    fixed = {}
    for cls in classes:
        for option_field in fields(cls):
            category = option_field.metadata["fixed"]
            category = getattr(cls, "FIXED", "") if category is None else category
            if category:
                fixed[option_field.name] = Fixed(category, option_field.default)
    return fixed


def facts_of(ranks: Ranks, data: str) -> dict[str, Any]:
    """The facts that results depend on besides the options.

    Args:
        ranks: The processes and their device.
        data: Fingerprint of the data, hexadecimal; the facts have its first 16 digits.
    """
    device = ranks.device
    facts = {"world_size": ranks.count, "data": data[:16], "device": device.type, "machine": machine(device)}
    facts["threads"] = torch.get_num_threads()  # with a GPU too: small spectra, and those of --decay_lag, are the CPU's
    return facts | library_versions()


def machine(device: torch.device) -> str:
    """The model of the GPU, or the model of the CPU and the instruction set that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def contract_of(options: Mapping[str, Any], facts: Mapping[str, Any], fixed: Iterable[str]) -> Contract:
    """The contract for a checkpoint, from all options, the facts and the names of fixed options; in JSON's types."""
    return json.loads(json.dumps({"options": {name: options[name] for name in fixed}, "facts": dict(facts)}))


def contract_changes(before: Mapping[str, Any], now: Contract, fixed: Mapping[str, Fixed]) -> list[Change]:
    """The differences between two contracts, options first.

    An option that is not in the checkpoint is newer than it: it counts as unchanged if it has its default value. A fact
    that is not in the checkpoint counts as changed, except two that were not recorded before: the threads of a run on a
    GPU, and the tokenizer, which is part of `data`. If the checkpoint has no options, they are not compared.
    """
    changes = []
    options_before = before.get("options", now["options"])
    for name, value in now["options"].items():
        category, default = fixed[name]
        saved = options_before.get(name, list(default) if isinstance(default, tuple) else default)
        if saved != value:
            changes.append(Change(category, name, saved, value))
    facts_before = {"tokenizer": now["facts"].get("tokenizer"), **before.get("facts", {})}
    if facts_before.get("device") == "cuda":
        facts_before.setdefault("threads", now["facts"].get("threads"))
    for name, value in now["facts"].items():
        if name not in facts_before or facts_before[name] != value:
            changes.append(Change(FACT_CATEGORIES[name], name, facts_before.get(name), value))
    return changes


def check_names(allowed: Sequence[str], fixed: Mapping[str, Fixed]) -> None:
    """Raise UserError for a name in --allow_changed that is not a category, fixed option or fact."""
    categories = sorted({option.category for option in fixed.values()} | set(FACT_CATEGORIES.values()))
    known = list(dict.fromkeys([*categories, *fixed, *FACT_CATEGORIES]))
    for name in allowed:
        if name not in known:
            hint = f" ({close})" if (close := did_you_mean(name, known)) else ""
            raise UserError(f"--allow_changed {name}: unknown{hint}; known are {', '.join(known)}")


def check_unchanged(
    checkpoint: Checkpoint | None, now: Contract, fixed: Mapping[str, Fixed], allowed: Sequence[str], ranks: Ranks
) -> None:
    """Refuse to resume from a checkpoint whose contract differs; all ranks must call this.

    Only the main process compares, because it alone knows the data's fingerprint; it also prints allowed differences.
    Nothing is written.

    Raises:
        UserError: If anything differs whose name and category are not in `allowed`; with a table of it.
    """
    if checkpoint is None:
        return
    refused: list[Change] = []
    if ranks.is_main:
        changes = contract_changes(checkpoint.contract(), now, fixed)
        refused = [change for change in changes if change.category not in allowed and change.name not in allowed]
        if changes and not refused:
            _say_allowed(changes)
    refused = ranks.gather(refused)[0]
    if refused:
        raise UserError(_refusal(refused, checkpoint), details=change_table(refused))


def change_table(changes: Sequence[Change]) -> str:
    """Changes as a table for the terminal."""
    rows = [(c.category, c.name, _shown(c.before, c.name), _shown(c.now, c.name)) for c in changes]
    return table(("category", "name", "in the checkpoint", "now"), rows)


def _shown(value: Any, name: str) -> str:
    """A value in full, unlike other numbers in tables, so that different values look different."""
    if value is None and name in FACT_CATEGORIES:
        return "unknown"
    if value in (None, "", []):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _refusal(refused: Sequence[Change], checkpoint: Checkpoint) -> str:
    names = ", ".join(change.name for change in refused)
    count = "1 difference" if len(refused) == 1 else f"{len(refused)} differences"
    threads = next((change.before for change in refused if change.name == "threads" and change.before), None)
    restore = f"; OMP_NUM_THREADS={threads} restores the threads" if threads else ""
    return (
        f"--resume {checkpoint.path}: {count} from the checkpoint: {names}{restore}; "
        "to resume anyway, give --allow_changed NAME..."
    )


def _say_allowed(changes: Sequence[Change]) -> None:
    names = ", ".join(change.name for change in changes)
    say(change_table(changes))
    say(f"resuming with changes (--allow_changed): {names}; results can differ from those of the run before")
