"""The tables of a report: cells with text and sort key, the same in HTML and Markdown."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.findings import Candidate, Finding, Tuned, mean_of, state_of
from comparison.results import Run
from comparison.statistics import (
    BETTER,
    NO_SEED,
    NOTHING,
    WORSE,
    Comparison,
    counted,
    fixed,
    number,
    p_value,
    seeds,
    short,
    signed,
    span,
    unit,
)


@dataclass(frozen=True)
class TableCell:
    """One cell. Rows are sorted by `key`; None comes last."""

    text: str
    key: float | str | None = None
    kind: str = ""  # CSS class in the page: good, bad or doubt


@dataclass(frozen=True)
class Table:
    """Rows with a header."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[TableCell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns have numbers; these are aligned to the right."""
        return [
            any(isinstance(row[i].key, float) for row in self.rows)
            and not any(isinstance(row[i].key, str) for row in self.rows)
            for i in range(len(self.header))
        ]


def text_cell(text: str, kind: str = "") -> TableCell:
    """A cell with text, sorted by that text."""
    return TableCell(text, text, kind)


def number_cell(value: float | None, shown: str) -> TableCell:
    """A cell with a number, sorted by its value; a dash if it is not finite."""
    finite = value is not None and math.isfinite(value)
    return TableCell(shown, float(value)) if finite and value is not None else TableCell(NOTHING)


def strategies_table(finding: Finding) -> Table:
    """One row per strategy, with its best candidate."""
    metric = finding.setting.metric
    published = any(t.best and t.best.published is not None for t in finding.tuned)
    header = [
        "Strategy", "Base decay", "Mean applied decay", "Seeds", f"Mean {metric.name}", "SD", "Worst", "Best",
        *(["Published"] if published else []), "Norm of weights", "Training loss",
    ]  # fmt: skip
    rows = [_strategy_row(tuned, finding, published) for tuned in finding.tuned]
    direction = "higher" if metric.higher_is_better else "lower"
    note = (
        f"Each strategy at its best point of the search. {metric.name}: {metric.label}, {direction} is better; mean "
        "and standard deviation (SD) over seeds. A star: the best value is at the edge of the search."
    )
    if published:
        note += f" Published: the value at the same point, from {finding.setting.published_from or 'the grid file'}."
    return Table("Strategies at their best", note, header, rows)


def _strategy_row(tuned: Tuned, finding: Finding, published: bool) -> list[TableCell]:
    best, decimals = tuned.best, finding.decimals
    if best is None:
        width = 10 if published else 9
        return [
            text_cell(tuned.strategy),
            text_cell("no run has finished", "doubt"),
            *[TableCell(NOTHING)] * (width - 1),
        ]
    values = list(best.values.values())
    last = [run.log[-1] if run.log else {} for run in best.finished]
    norm, loss = (mean_of([row.get(key) for row in last]) for key in ("weight_norm", "train_loss"))
    ends = (min(values), max(values)) if finding.setting.metric.higher_is_better else (max(values), min(values))
    return [
        text_cell(tuned.strategy), _candidate_cell(best, bool(tuned.edges)),
        number_cell(best.mean_decay, short(best.mean_decay)), _seeds_cell(best),
        number_cell(best.mean, fixed(best.mean, decimals)), number_cell(best.sd, fixed(best.sd, decimals)),
        *(number_cell(end, fixed(end, decimals)) for end in ends),
        *([number_cell(best.published, short(best.published))] if published else []),
        number_cell(norm, number(norm)), number_cell(loss, number(loss)),
    ]  # fmt: skip


def _candidate_cell(candidate: Candidate, edge: bool = False) -> TableCell:
    """The base decay and the other searched options."""
    others = [f"{name}={value}" for name, value in candidate.runs[0].spec.point if name != "weight_decay"]
    text = ", ".join([short(candidate.weight_decay), *others])
    return TableCell(text + (" *" if edge else ""), float(candidate.weight_decay), "doubt" if edge else "")


def _seeds_cell(candidate: Candidate) -> TableCell:
    """The number of finished seeds, and the states of the others."""
    others = ", ".join(f"{count} {state}" for state, count in candidate.states.items() if state != "finished")
    text = f"{len(candidate.values)} of {len(candidate.runs)}" + (f" ({others})" if others else "")
    return TableCell(text, float(len(candidate.values)), "" if candidate.complete else "doubt")


def comparisons_table(finding: Finding) -> Table:
    """The family of comparisons of a setting."""
    header = [
        "Comparison", "Verdict", "Difference", "95 % interval (t)", "95 % interval (bootstrap)", "Seeds", "p (t test)",
        "p (Holm)", "Detectable", "Seeds needed",
    ]  # fmt: skip
    measure = unit(finding.setting.metric) or finding.setting.metric.label
    family = len(finding.comparisons)
    note = (
        f"First minus second, each at its own best point of the search, paired by seed; in {measure}. Holm's "
        f"correction is over {counted(family, 'comparison')}. Detectable: the smallest true difference that this many "
        f"seeds show with 80 % power at level 0.05 / {family}, if the true spread equals the observed one. Seeds "
        "needed: the number that shows the observed difference with the same power and level."
    )
    return Table(
        "Tuned against tuned", note, header, [_comparison_row(c, finding.decimals) for c in finding.comparisons]
    )


def _comparison_row(comparison: Comparison, decimals: int) -> list[TableCell]:
    paired = comparison.paired
    kind = {BETTER: "good", WORSE: "bad"}.get(comparison.verdict, "doubt" if comparison.verdict == NO_SEED else "")
    needed = comparison.seeds_needed
    needed_text = seeds(needed).replace("more than", ">")
    low = paired.interval[0] if paired.interval else None
    bootstrap_low = paired.bootstrap[0] if paired.bootstrap else None
    return [
        text_cell(f"{paired.first} - {paired.second}"), text_cell(comparison.verdict, kind),
        number_cell(paired.mean, signed(paired.mean, decimals)), number_cell(low, span(paired.interval, decimals)),
        number_cell(bootstrap_low, span(paired.bootstrap, decimals)), number_cell(paired.count, str(paired.count)),
        number_cell(paired.p, p_value(paired.p)), number_cell(comparison.holm, p_value(comparison.holm)),
        number_cell(comparison.detectable, fixed(comparison.detectable, decimals)), number_cell(needed, needed_text),
    ]  # fmt: skip


def equal_table(finding: Finding) -> Table | None:
    """One row per pair of candidates of a strategy and the baseline with the same searched values; None without."""
    if not finding.equal:
        return None
    header = ["Strategy", "Base decay", "Seeds", "Difference", "95 % interval (t)", "p (t test)"]
    rows = []
    for equal in finding.equal:
        paired = equal.paired
        low = paired.interval[0] if paired.interval else None
        rows.append([
            text_cell(equal.candidate.strategy), _candidate_cell(equal.candidate),
            number_cell(paired.count, str(paired.count)),
            number_cell(paired.mean, signed(paired.mean, finding.decimals)),
            number_cell(low, span(paired.interval, finding.decimals)),
            number_cell(paired.p, p_value(paired.p)),
        ])  # fmt: skip
    note = (
        f"Strategy minus {finding.setting.baseline} at the same point of the search, paired by seed. For description "
        "only: the p values are not corrected, and the verdict does not use them."
    )
    return Table("At equal base decay", note, header, rows)


def candidates_table(finding: Finding) -> Table:
    """One row per candidate."""
    metric = finding.setting.metric
    candidates = [candidate for tuned in finding.tuned for candidate in tuned.candidates]
    published = any(candidate.published is not None for candidate in candidates)
    header = ["Strategy", "Base decay", "Mean applied decay", "Seeds", f"Mean {metric.name}", "SD"]
    header += ["Published", "Ours - published"] if published else []
    rows = []
    for c in candidates:
        row = [
            text_cell(c.strategy), _candidate_cell(c), number_cell(c.mean_decay, short(c.mean_decay)), _seeds_cell(c),
            number_cell(c.mean, fixed(c.mean, finding.decimals)), number_cell(c.sd, fixed(c.sd, finding.decimals)),
        ]  # fmt: skip
        if published:
            both = c.mean is not None and c.published is not None
            gap = c.mean - c.published if both else None  # type: ignore[operator]
            row += [number_cell(c.published, short(c.published)), number_cell(gap, signed(gap, finding.decimals))]
        rows.append(row)
    note = f"All points of the search that were run; {metric.label}."
    if published:
        note += f" Published values: from {finding.setting.published_from or 'the grid file'}."
    return Table("Every point of the search", note, header, rows)


def runs_table(runs: Sequence[Run], root: Path) -> Table:
    """One row per run."""
    header = ["Setting", "Strategy", "Point", "Seed", "State", "Value", "Seconds", "Folder"]
    rows = []
    for run in runs:
        spec, state, value, seconds = run.spec, state_of(run), run.value, run.summary.get("seconds")
        rows.append([
            text_cell(spec.setting.name), text_cell(spec.strategy),
            TableCell(spec.point_name, float(spec.weight_decay)), number_cell(spec.seed, str(spec.seed)),
            text_cell(state, "" if state == "finished" else "doubt"),
            number_cell(value, number(value)), number_cell(seconds, number(seconds, 3)),
            text_cell(str(run.folder.relative_to(root))),
        ])  # fmt: skip
    return Table("All runs", "", header, rows)


def counts(runs: Sequence[Run]) -> Mapping[str, int]:
    """The number of runs in each state, finished ones first."""
    return {"finished": 0} | Counter(map(state_of, runs))
