"""The decay log of a run: one row per module and refresh, and one per module and audit, as plain values."""

import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from alphadecay.analysis import SpectrumRecord
from alphadecay.groups import ALL, Group, effective_decay
from alphadecay.roles import role_of
from alphadecay.sharing import is_sharded, power_sums
from alphadecay.writer import DecayWriter

Row = Mapping[str, Any]


def refresh_rows(schedule: DecayWriter) -> list[dict[str, Any]]:
    """One row per module with its decay from this refresh on, and its score (None: the strategy has no scores).

    Keys: step (optimizer steps taken before), measured_step (steps taken when the weights were measured), kind (the
    strategy), module, role, score, multiplier, weight_decay, weight_norm (Frobenius norm of the weight), audit (None;
    see `audit_rows`), note (why a module keeps its base decay), static_multiplier if it is not 1. A strategy with one
    multiplier for all modules writes one row, for "(all)".
    """
    records = {record.name: record for record in schedule.records}
    common = {"step": schedule.step, "measured_step": schedule.measured_at, "kind": schedule.strategy}
    if schedule.same_for_all:
        return [common | _row_for_all(schedule, schedule.optimizer.param_groups)]
    rows = []
    for group in schedule.own_groups:
        if is_lazy(group["params"][0]):
            continue
        record = records.get(group["decay_name"])
        norm, note = _norm(group["params"][0].detach(), record), record.note if record else ""
        rows.append(common | row_of(group, schedule.scores.get(group["decay_name"]), norm, None, note))
    return rows + [common | row for row in _rows_of_members(schedule, records)]


def _rows_of_members(schedule: DecayWriter, records: Mapping[str, SpectrumRecord]) -> list[dict[str, Any]]:
    """The rows of modules that share a group."""
    weights = schedule.weights
    rows = []
    for group in schedule.optimizer.param_groups:
        for name in group.get("decay_members", ()):
            record, own = records.get(name), group | {"decay_name": name}
            norm = _norm(weights[name].detach(), record) if name in weights else None
            rows.append(row_of(own, schedule.scores.get(name), norm, None, record.note if record else ""))
    return rows


class DecayLog:
    """A file of JSON lines to which each refresh of a schedule is appended; only the process with rank 0 writes.

    Args:
        path: Path of the file; missing folders are made.
        append: Append to an existing file. The first refresh replaces lines of its own step and of later ones.

    Raises:
        ValueError: If the file exists and `append` is not set, or if it cannot be written.
    """

    def __init__(self, path: str | PathLike[str], append: bool = False) -> None:
        self.path, self._kept, self._started = Path(path), dict[int, list[str]](), False
        if not _writes_here():
            return
        if self.path.exists() and not append:
            raise ValueError(f"{self.path} exists already: take another name, or append=True to append to it")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+") as file:
                file.seek(0)
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        whole_lines = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        for number, line in enumerate(whole_lines.splitlines(), 1):
            step = parsed_row(line, f"{self.path}, line {number}", {"step": int})["step"]
            self._kept.setdefault(step, []).append(line)

    def write(self, schedule: DecayWriter) -> None:
        """Append the rows of a refresh; all ranks must call this."""
        rows = refresh_rows(schedule)
        if not _writes_here():
            return
        if not self._started:
            earlier = [line for step, lines in self._kept.items() if step < schedule.step for line in lines]
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text("".join(f"{line}\n" for line in earlier))
            os.replace(part, self.path)
            self._kept, self._started = {}, True
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def parsed_row(line: str, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a line of a decay log; ValueError, which names `where`, unless it is JSON with these keys and types."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    for key, expected in types.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), expected) or isinstance(row[key], bool):
            raise ValueError(f"{where}: not a row of a decay log: it has no {key}")
    return row


def _writes_here() -> bool:
    """Whether this process writes the file: it is the only one, or has rank 0."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_rank() != 0)


def refreshes(rows: Sequence[Row]) -> list[Row]:
    """The rows of a decay log without those of audits, which assign no decay."""
    return [row for row in rows if row.get("audit") is None]


def row_of(
    group: Group, score: float | None, weight_norm: float | None, audit: Mapping[str, Any] | None, note: str
) -> dict[str, Any]:
    """A module's row without the keys step, measured_step and kind; its static multiplier is there if it is not 1."""
    static = {} if (value := group["static_multiplier"]) == 1 else {"static_multiplier": value}
    return static | {
        "module": group["decay_name"],
        "role": role_of(group["decay_name"]),
        "score": score,
        "multiplier": group["decay_multiplier"],
        "weight_decay": effective_decay(group),
        "weight_norm": weight_norm,
        "audit": audit,
        "note": note,
    }


def _row_for_all(schedule: DecayWriter, groups: Sequence[Group]) -> dict[str, Any]:
    """The row of a strategy with one multiplier for all modules."""
    decayed = min(groups, key=lambda group: abs(group["static_multiplier"] - 1))  # the first with 1, if any has it
    weights = [p.detach() for group in groups for p in group["params"] if not is_lazy(p)]
    sharded = any(is_sharded(weight) for weight in weights)
    return {
        "module": ALL,
        "role": "",
        "score": schedule.scores.get(ALL),
        "multiplier": decayed["decay_multiplier"],
        "weight_decay": effective_decay(decayed),
        "weight_norm": None if sharded else float(power_sums(weights, 2).sum().sqrt()),
        "audit": None,
        "note": "",
    }


def _norm(weight: Tensor, record: SpectrumRecord | None) -> float | None:
    """Frobenius norm of a weight of any shape; for a sharded weight the last measured norm.

    Computing the norm of a sharded weight needs all ranks, but not all ranks call this function.
    """
    if is_sharded(weight):
        return record.frobenius_norm if record else None
    return float(power_sums([weight], 2).sqrt())
