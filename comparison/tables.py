"""The tables of a report: cells with what they show and what they sort by, the same in HTML, Markdown and terminal."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.findings import Finding, Point, Tuned, mean_of, state_of
from comparison.results import Run
from comparison.statistics import (
    BETTER,
    NO_SEED,
    NOTHING,
    WORSE,
    Comparison,
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
    """One cell; `key` is what it sorts by, None at the end."""

    text: str
    key: float | str | None = None
    kind: str = ""  # a class of the page: good, bad or doubt


@dataclass(frozen=True)
class Table:
    """Rows under a header."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[TableCell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: they stand to the right."""
        return [
            any(isinstance(row[i].key, float) for row in self.rows)
            and not any(isinstance(row[i].key, str) for row in self.rows)
            for i in range(len(self.header))
        ]


def words(text: str, kind: str = "") -> TableCell:
    """Text, which sorts as it is."""
    return TableCell(text, text, kind)


def figure(value: float | None, shown: str) -> TableCell:
    """A number as it is shown; one that is not finite is shown as nothing."""
    finite = value is not None and math.isfinite(value)
    return TableCell(shown, float(value)) if finite and value is not None else TableCell(NOTHING)


def strategies_table(finding: Finding) -> Table:
    """Each strategy at its best point."""
    metric = finding.setting.metric
    published = any(t.best and t.best.published is not None for t in finding.tuned)
    header = [
        "Strategy", "Base decay", "Mean applied decay", "Seeds", f"Mean {metric.name}", "SD", "Worst", "Best",
        *(["Published"] if published else []), "Norm of weights", "Training loss",
    ]  # fmt: skip
    rows = [_strategy_row(each, finding, published) for each in finding.tuned]
    direction = "higher" if metric.higher_is_better else "lower"
    note = (
        f"Each strategy at its best point of the search. {metric.name}: {metric.label}, {direction} is better; mean "
        "and standard deviation (SD) over seeds. A star: the best value is at the edge of the search."
    )
    if published:
        note += f" Published: the figure at the same point, from {finding.setting.published_from or 'the grid file'}."
    return Table("Strategies at their best", note, header, rows)


def _strategy_row(tuned: Tuned, finding: Finding, published: bool) -> list[TableCell]:
    best, decimals = tuned.best, finding.decimals
    if best is None:
        width = 10 if published else 9
        return [words(tuned.strategy), words("no run has finished", "doubt"), *[TableCell(NOTHING)] * (width - 1)]
    values = list(best.values.values())
    last = [run.log[-1] if run.log else {} for run in best.finished]
    norm, loss = (mean_of([row.get(key) for row in last]) for key in ("weight_norm", "train_loss"))
    ends = (min(values), max(values)) if finding.setting.metric.higher_is_better else (max(values), min(values))
    return [
        words(tuned.strategy), _point_cell(best, bool(tuned.edges)), figure(best.mean_decay, short(best.mean_decay)),
        _seeds_cell(best), figure(best.mean, fixed(best.mean, decimals)), figure(best.sd, fixed(best.sd, decimals)),
        *(figure(end, fixed(end, decimals)) for end in ends),
        *([figure(best.published, short(best.published))] if published else []),
        figure(norm, number(norm)), figure(loss, number(loss)),
    ]  # fmt: skip


def _point_cell(point: Point, edge: bool = False) -> TableCell:
    """The base decay, and what else was searched."""
    others = [f"{name}={value}" for name, value in point.runs[0].spec.point if name != "weight_decay"]
    text = ", ".join([short(point.weight_decay), *others])
    return TableCell(text + (" *" if edge else ""), float(point.weight_decay), "doubt" if edge else "")


def _seeds_cell(point: Point) -> TableCell:
    """How many seeds finished, and what became of the others."""
    others = ", ".join(f"{count} {state}" for state, count in point.states.items() if state != "finished")
    text = f"{len(point.values)} of {len(point.runs)}" + (f" ({others})" if others else "")
    return TableCell(text, float(len(point.values)), "" if point.complete else "doubt")


def comparisons_table(finding: Finding) -> Table:
    """The family of comparisons of a setting."""
    header = [
        "Comparison", "Verdict", "Difference", "95 % interval (t)", "95 % interval (bootstrap)", "Seeds", "p (t test)",
        "p (Holm)", "Detectable", "Seeds needed",
    ]  # fmt: skip
    measure = unit(finding.setting.metric) or finding.setting.metric.label
    family = len(finding.comparisons)
    note = (
        f"First minus second, each at its own best point, paired by seed; in {measure}. Holm's correction is over "
        f"these {family}. Detectable: the smallest true difference that so many seeds show with 80 % power at level "
        f"0.05 / {family}, if the spread is the one seen. Seeds needed: to show the difference seen here, likewise."
    )
    return Table(
        "Tuned against tuned", note, header, [_comparison_row(each, finding.decimals) for each in finding.comparisons]
    )


def _comparison_row(comparison: Comparison, decimals: int) -> list[TableCell]:
    paired = comparison.paired
    kind = {BETTER: "good", WORSE: "bad"}.get(comparison.verdict, "doubt" if comparison.verdict == NO_SEED else "")
    needed = comparison.seeds_needed
    needed_text = seeds(needed).replace("more than", ">")
    low = paired.interval[0] if paired.interval else None
    bootstrap_low = paired.bootstrap[0] if paired.bootstrap else None
    return [
        words(f"{paired.first} - {paired.second}"), words(comparison.verdict, kind),
        figure(paired.mean, signed(paired.mean, decimals)), figure(low, span(paired.interval, decimals)),
        figure(bootstrap_low, span(paired.bootstrap, decimals)), figure(paired.count, str(paired.count)),
        figure(paired.p, p_value(paired.p)), figure(comparison.holm, p_value(comparison.holm)),
        figure(comparison.detectable, fixed(comparison.detectable, decimals)), figure(needed, needed_text),
    ]  # fmt: skip


def equal_table(finding: Finding) -> Table | None:
    """Each strategy and the baseline at the same point; None where there is nothing of the kind."""
    if not finding.equal:
        return None
    header = ["Strategy", "Base decay", "Seeds", "Difference", "95 % interval (t)", "p (t test)"]
    rows = []
    for each in finding.equal:
        paired = each.paired
        low = paired.interval[0] if paired.interval else None
        rows.append([
            words(each.point.strategy), _point_cell(each.point), figure(paired.count, str(paired.count)),
            figure(paired.mean, signed(paired.mean, finding.decimals)),
            figure(low, span(paired.interval, finding.decimals)),
            figure(paired.p, p_value(paired.p)),
        ])  # fmt: skip
    note = (
        f"Strategy minus {finding.setting.baseline} at the same point of the search, paired by seed. For description "
        "only: not part of the family, p values are not corrected, and the verdict does not rest on them."
    )
    return Table("At equal base decay", note, header, rows)


def candidates_table(finding: Finding) -> Table:
    """Every point of the search."""
    metric = finding.setting.metric
    points = [point for tuned in finding.tuned for point in tuned.points]
    published = any(point.published is not None for point in points)
    header = ["Strategy", "Base decay", "Mean applied decay", "Seeds", f"Mean {metric.name}", "SD"]
    header += ["Published", "Ours - published"] if published else []
    rows = []
    for point in points:
        row = [
            words(point.strategy), _point_cell(point), figure(point.mean_decay, short(point.mean_decay)),
            _seeds_cell(point), figure(point.mean, fixed(point.mean, finding.decimals)),
            figure(point.sd, fixed(point.sd, finding.decimals)),
        ]  # fmt: skip
        if published:
            there = point.mean is not None and point.published is not None
            gap = point.mean - point.published if there else None  # type: ignore[operator]
            row += [figure(point.published, short(point.published)), figure(gap, signed(gap, finding.decimals))]
        rows.append(row)
    note = f"All points that were run; {metric.label}."
    if published:
        note += f" Published figures: {finding.setting.published_from or 'as the grid file has them'}."
    return Table("Every point of the search", note, header, rows)


def runs_table(runs: Sequence[Run], root: Path) -> Table:
    """One row a run."""
    header = ["Setting", "Strategy", "Point", "Seed", "State", "Value", "Seconds", "Folder"]
    rows = []
    for run in runs:
        spec, state, value, seconds = run.spec, state_of(run), run.value, run.summary.get("seconds")
        rows.append([
            words(spec.setting.name), words(spec.strategy), TableCell(spec.point_name, float(spec.weight_decay)),
            figure(spec.seed, str(spec.seed)), words(state, "" if state == "finished" else "doubt"),
            figure(value, number(value)), figure(seconds, number(seconds, 3)),
            words(str(run.folder.relative_to(root))),
        ])  # fmt: skip
    return Table("All runs", "", header, rows)


def counts(runs: Sequence[Run]) -> Mapping[str, int]:
    """How many runs are in each state, the finished ones first."""
    return {"finished": 0} | Counter(map(state_of, runs))
