"""The ledger of a run: one row a module and refresh, as plain values."""

from typing import Any

from alphadecay.roles import role_of
from alphadecay.schedule import DecaySchedule


def ledger_rows(schedule: DecaySchedule) -> list[dict[str, Any]]:
    """What each module's decay is from this refresh on, and the score behind it (None: the kind has none).

    Keys: step (optimizer steps taken before), module, role, score, multiplier, weight_decay, weight_norm
    (Frobenius norm of the weight), audit (None: not taken), note (why a module keeps its base decay).
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
                "module": name,
                "role": role_of(name),
                "score": schedule.scores.get(name),
                "multiplier": group["decay_multiplier"],
                "weight_decay": group["weight_decay"],
                "weight_norm": float(group["params"][0].detach().norm()),
                "audit": None,
                "note": record.note if record else "",
            }
        )
    return rows
