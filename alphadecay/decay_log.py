"""The decay log of a run: one row a module and refresh, and one a module and audit, as plain values."""

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
    """What each module's decay is from this refresh on, and the score behind it (None: the kind has none).

    Keys: step (optimizer steps taken before), measured_step (those taken when the weights were measured), kind (of
    decay), module, role, score, multiplier, weight_decay, weight_norm (Frobenius norm of the weight), audit (None: see
    `audit_rows`), note (why a module keeps its base decay). A kind with one multiplier for all writes one row, for
    "(all)".
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
    """Rows of modules that share a group."""
    weights = schedule.weights
    rows = []
    for group in schedule.optimizer.param_groups:
        for name in group.get("decay_members", ()):
            record, own = records.get(name), group | {"decay_name": name}
            norm = _norm(weights[name].detach(), record) if name in weights else None
            rows.append(row_of(own, schedule.scores.get(name), norm, None, record.note if record else ""))
    return rows


class DecayLog:
    """A file of lines of JSON to which each refresh of a schedule is added; only the first of several processes writes.

    Args:
        path: Of the file; folders on the way are made.
        append: Go on with a file that is there. Its lines from the first refresh's step on are replaced.

    Raises:
        ValueError: If the file is there and `append` is not set, or it cannot be written.
    """

    def __init__(self, path: str | PathLike[str], append: bool = False) -> None:
        self.path, self._kept, self._begun = Path(path), dict[int, list[str]](), False
        if not _writes_here():
            return
        if self.path.exists() and not append:
            raise ValueError(f"{self.path} is there already: take another name, or append=True to go on with it")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+") as file:
                file.seek(0)
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        whole = text[: text.rfind("\n") + 1]  # a last line may have been cut by a kill
        for number, line in enumerate(whole.splitlines(), 1):
            step = parsed_row(line, f"{self.path}, line {number}", {"step": int})["step"]
            self._kept.setdefault(step, []).append(line)

    def write(self, schedule: DecayWriter) -> None:
        """Add the rows of a refresh; all ranks must call."""
        rows = refresh_rows(schedule)
        if not _writes_here():
            return
        if not self._begun:
            before = [line for step, lines in self._kept.items() if step < schedule.step for line in lines]
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text("".join(f"{line}\n" for line in before))
            os.replace(part, self.path)
            self._kept, self._begun = {}, True
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def parsed_row(line: str, where: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a decay log; ValueError, which names the place, unless it is JSON with these keys of these kinds."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON ({error})") from error
    for key, kind in kinds.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), kind) or isinstance(row[key], bool):
            raise ValueError(f"{where}: no row of a decay log, it has no {key}")
    return row


def _writes_here() -> bool:
    """Whether this process is the one that writes: the first of several."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_rank() != 0)


def refreshes(rows: Sequence[Row]) -> list[Row]:
    """The rows of a decay log that say what decays were assigned: those of audits assign nothing."""
    return [row for row in rows if row.get("audit") is None]


def row_of(
    group: Group, score: float | None, weight_norm: float | None, audit: Mapping[str, Any] | None, note: str
) -> dict[str, Any]:
    """A module's row from its name on."""
    return {
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
    decayed = next((group for group in groups if group["static_multiplier"]), groups[0])
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
    """The norm of a weight; of a sharded one as it was measured, as only some ranks may ask."""
    if is_sharded(weight):
        return record.frobenius_norm if record else None
    return float(power_sums([weight], 2).sqrt())
