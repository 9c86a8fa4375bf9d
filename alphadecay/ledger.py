"""The ledger of a run: one row a module and refresh, as plain values."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from alphadecay.analysis import SpectrumRecord
from alphadecay.baselines import ALL
from alphadecay.groups import Group, effective_decay
from alphadecay.roles import role_of
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import is_sharded, power_sums


def ledger_rows(schedule: DecaySchedule) -> list[dict[str, Any]]:
    """What each module's decay is from this refresh on, and the score behind it (None: the kind has none).

    Keys: step (optimizer steps taken before), measured_step (those taken when the weights were measured), kind (of
    decay), module, role, score, multiplier, weight_decay, weight_norm (Frobenius norm of the weight), audit (None: not
    taken), note (why a module keeps its base decay). A kind with one multiplier for all writes one row, for "(all)".
    """
    records = {record.name: record for record in schedule.records}
    common = {"step": schedule.step, "measured_step": schedule.measured_at, "kind": schedule.kind}
    groups = schedule.optimizer.param_groups
    if schedule.same_for_all:
        return [common | _row_for_all(schedule, groups)]
    rows = []
    for group in groups:
        name = group["decay_name"]
        if name.startswith("("):
            continue
        record = records.get(name)
        rows.append(
            common
            | {
                "module": name,
                "role": role_of(name),
                "score": schedule.scores.get(name),
                "multiplier": group["decay_multiplier"],
                "weight_decay": effective_decay(group),
                "weight_norm": _norm(group["params"][0].detach(), record),
                "audit": None,
                "note": record.note if record else "",
            }
        )
    return rows


def _row_for_all(schedule: DecaySchedule, groups: Sequence[Group]) -> dict[str, Any]:
    decayed = next((group for group in groups if group["static_multiplier"]), groups[0])
    weights = [p.detach() for group in groups for p in group["params"]]
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
    return float(weight.norm())
