"""The ledger of a run: one row a module and refresh, as plain values."""

from typing import Any

from torch import Tensor

from alphadecay.analysis import SpectrumRecord
from alphadecay.roles import role_of
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import is_sharded


def ledger_rows(schedule: DecaySchedule) -> list[dict[str, Any]]:
    """What each module's decay is from this refresh on, and the score behind it (None: the kind has none).

    Keys: step (optimizer steps taken before), measured_step (those taken when the weights were measured), module,
    role, score, multiplier, weight_decay, weight_norm (Frobenius norm of the weight), audit (None: not taken), note
    (why a module keeps its base decay).
    """
    records = {record.name: record for record in schedule.records}
    rows = []
    for group in schedule.optimizer.param_groups:
        name = group["decay_name"]
        if name.startswith("("):
            continue
        record = records.get(name)
        rows.append(
            {
                "step": schedule.step,
                "measured_step": schedule.measured_at,
                "module": name,
                "role": role_of(name),
                "score": schedule.scores.get(name),
                "multiplier": group["decay_multiplier"],
                "weight_decay": group["weight_decay"],
                "weight_norm": _norm(group["params"][0].detach(), record),
                "audit": None,
                "note": record.note if record else "",
            }
        )
    return rows


def _norm(weight: Tensor, record: SpectrumRecord | None) -> float | None:
    """The norm of a weight; of a sharded one as it was measured, as only some ranks may ask."""
    if is_sharded(weight):
        return record.frobenius_norm if record else None
    return float(weight.norm())
