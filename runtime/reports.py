"""Reports of both trainers: metrics, decays by role, parameter groups, the applied decay."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import nn

from alphadecay.decay_log import refreshes
from alphadecay.groups import Group, effective_decay
from alphadecay.names import Decision, decide, names_of
from alphadecay.records import SpectrumRecord
from alphadecay.schedule import DecaySchedule
from alphadecay.sharing import power_sums
from runtime.by_name import matches_of, why_named
from runtime.decay_options import DecayOptions
from runtime.metrics import Metric
from runtime.runfolder import Row
from runtime.tables import say, table


def metrics_table(values: Row, metrics: Sequence[Metric]) -> str:
    """A table with one line for the raw weights, and one for the EMA weights if they were evaluated."""
    rows = [
        [label, *(values.get(metric.name + suffix) for metric in metrics)]
        for label, suffix in (("raw weights", ""), ("EMA weights", "_ema"))
        if metrics[0].name + suffix in values
    ]
    return table(["", *(metric.column for metric in metrics)], rows)


def show_decay_by_role(decay_log: Sequence[Row], score: str) -> None:
    """Print the mean score and decay of each role at the last refresh, if there was one."""
    assigned = refreshes(decay_log)
    if assigned:
        last = [row for row in assigned if row["step"] == assigned[-1]["step"]]
        say(f"\ndecay by role at step {last[0]['step']} (means over depth):")
        say(table(["role", "modules", score.replace("_", " "), "weight decay", "of base"], means_by_role(last)))


def means_by_role(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """One row per role: its name, number of modules, and the means of score, decay and decay over base decay."""
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(row["role"], []).append(row)
    means = []
    for role, members in by_role.items():
        scores = [row["score"] for row in members if row["score"] is not None]
        decay = fmean(row["weight_decay"] for row in members)
        of_base = fmean(row["multiplier"] * row.get("static_multiplier", 1.0) for row in members)
        means.append([role or "all modules", len(members), fmean(scores) if scores else None, decay, of_base])
    return means


def show_groups(plain: nn.Module, decay: DecaySchedule, options: DecayOptions, freeze: Sequence[str]) -> None:
    """Print every parameter with its group, shape, learning-rate scale, decay since the last refresh, and reason.

    Below the table is what each word of the options that name parameters matches; `freeze` are those of --freeze.
    """
    names = names_of(plain)
    records = {r.name: r for r in decay.records}
    reasons = {id(m.weight): m.reason for m in decay.matrices}
    rows = []
    for group in decay.optimizer.param_groups:
        record = records.get(group["decay_name"])
        for p in group["params"]:
            decision = decide(names[id(p)], options.multipliers, options.decay_only)
            why = _why(group, record, reasons.get(id(p), ""), decision)
            shape = "x".join(map(str, p.shape)) or "scalar"
            scale = group.get("lr_scale", 1.0)
            rows.append([names[id(p)][0], group["decay_name"], shape, scale, effective_decay(group), why])
    say(table(["parameter", "group", "shape", "lr scale", "decay", "why"], rows))
    frozen = sum(not p.requires_grad for p in plain.parameters())
    groups = len(decay.optimizer.param_groups)
    say(f"\n{len(rows)} trainable parameters in {groups} groups, each in exactly one; {frozen} frozen")
    for line in matches_of(options, freeze, plain):
        say(line)


def _why(group: Group, record: SpectrumRecord | None, reason: str, decision: Decision | None) -> str:
    """Why a parameter of a group has its decay; `reason` is why it is skipped, `decision` what its names decide."""
    note = (record.note if record else "") or reason
    alpha, multiplier = record.alpha if record else None, group["decay_multiplier"]
    if decision is not None:
        details = note if alpha is None else f"alpha {alpha:.3f}: {multiplier:.3f} x that"
        return why_named(decision) + (f"; {details}" if details and decision.static else "")
    if alpha is not None:
        return f"alpha {alpha:.3f}: {multiplier:.3f} x base"
    return (note or "base") if group["static_multiplier"] else "norm, bias, position or token"


def mean_alphas(records: Sequence[SpectrumRecord]) -> dict[str, float]:
    """The mean alpha of each role's modules, for roles whose modules have an alpha."""
    by_role: dict[str, list[float]] = {}
    for record in records:
        if record.alpha is not None:
            by_role.setdefault(record.role, []).append(record.alpha)
    return {role: sum(alphas) / len(alphas) for role, alphas in by_role.items()}


def applied_decay(decay: DecaySchedule) -> Row:
    """Smallest, largest and mean applied decay, weighted by parameters, and the norm of the weights.

    They cover the parameter groups that are decayed. All ranks must call this.
    """
    groups = [g for g in decay.optimizer.param_groups if g["static_multiplier"] > 0]
    sizes = [sum(p.numel() for p in g["params"]) for g in groups]
    decays = [effective_decay(g) for g in groups]
    mean = sum(s * d for s, d in zip(sizes, decays, strict=True)) / sum(sizes) if groups else 0.0
    weights = [p.detach() for g in groups for p in g["params"]]
    return {
        "weight_decay_mean": mean,
        "weight_decay_min": min(decays, default=0.0),
        "weight_decay_max": max(decays, default=0.0),
        "weight_norm": float(power_sums(weights, 2).sum().sqrt()) if weights else 0.0,
    }
