"""The report of a comparison: report.md, report.html, results.csv and figures; and a summary for the terminal."""

import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from comparison.board import status_words
from comparison.figures import FOLDER, Drawn, draw_all, slug, slugs
from comparison.findings import Finding, find, state_of
from comparison.grid import Grid
from comparison.results import BROKEN, DAMAGED, FINISHED, Run, write_csv
from comparison.statistics import NOTHING, Comparison, counted, fixed, listed, p_value, short, signed, span
from comparison.tables import (
    candidates_table,
    comparisons_table,
    counts,
    equal_table,
    runs_table,
    strategies_table,
)
from comparison.verdict import verdict
from runtime.errors import UserError
from runtime.tables import table

MARKDOWN, PAGE, CSV = "report.md", "report.html", "results.csv"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(grid: Grid, runs: Sequence[Run], root: Path, folder: Path) -> list[Path]:
    """Write the report of the current results; the same results give the same bytes.

    Args:
        grid: The comparison.
        runs: Its runs, as `at_rest` returns them.
        root: The comparison's folder, which has the runs' folders.
        folder: The report's folder, which is created if it does not exist.

    Returns:
        The paths of the page, the Markdown and the table of results.

    Raises:
        UserError: If a file cannot be written.
    """
    findings = find(grid, runs)
    figures = draw_all(findings, folder / FOLDER)
    paths = [folder / name for name in (PAGE, MARKDOWN, CSV)]
    content = _content(grid, findings, runs, root, figures)
    try:
        for path in paths[:2]:
            path.write_text(_render(path.name, content | {"folder": folder}))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error
    write_csv(paths[2], runs, root)
    return paths


def summary_text(grid: Grid, runs: Sequence[Run]) -> str:
    """The text that compare.py prints at the end: for each setting a small table and the verdict."""
    parts = [_state_words(runs)]
    for finding in find(grid, runs):
        metric = finding.setting.metric
        header = ["strategy", "base decay", "mean decay", metric.name, "sd", "difference", "95 % interval", "p (Holm)"]
        rows = [_summary_row(finding, tuned.strategy) for tuned in finding.tuned]
        title = f"{finding.setting.name} ({metric.label})"
        parts.append("\n".join([title, table([*header, "verdict"], rows), "", *verdict(finding)]))
    return "\n\n".join(parts)


def _summary_row(finding: Finding, strategy: str) -> list[str]:
    tuned = finding.of(strategy)
    best, comparison = tuned.best, finding.with_baseline.get(strategy)
    if best is None:
        return [strategy, *[NOTHING] * 7, "no run has finished"]
    base = short(best.weight_decay) + (" *" if tuned.edges else "")
    values = [base, short(best.mean_decay), fixed(best.mean, finding.decimals), fixed(best.sd, finding.decimals)]
    return [strategy, *values, *_comparison_columns(comparison, finding.decimals)]


def _comparison_columns(comparison: Comparison | None, decimals: int) -> list[str]:
    if comparison is None:
        return [NOTHING, NOTHING, NOTHING, "baseline"]
    paired = comparison.paired
    numbers = [signed(paired.mean, decimals), span(paired.interval, decimals), p_value(comparison.holm)]
    return [*numbers, comparison.verdict]


def _state_words(runs: Sequence[Run]) -> str:
    by_state = counts(runs)
    others = [f"{count} {state}" for state, count in by_state.items() if state != FINISHED]
    return f"{by_state[FINISHED]} of {counted(len(runs), 'run')} finished" + (f"; {listed(others)}" if others else "")


def _content(
    grid: Grid, findings: Sequence[Finding], runs: Sequence[Run], root: Path, figures: Mapping[str, Sequence[Drawn]]
) -> dict[str, Any]:
    """The variables of the templates."""
    origin = provenance(runs)
    anchors = slugs([finding.setting.name for finding in findings])
    return {
        "title": grid.title,
        "notes": grid.notes.strip(),
        "source": grid.source.name,
        "state": _state_words(runs),
        "incomplete": counts(runs)[FINISHED] < len(runs),
        "warnings": _warnings(origin),
        "settings": [_setting(f, anchors[f.setting.name], figures[f.setting.name]) for f in findings],
        "runs": runs_table(runs, root),
        "failures": [_failure(run) for run in runs if run.state in (BROKEN, DAMAGED)],
        "searched": [searched_words(finding) for finding in findings],
        "statistics": STATISTICS,
        "origin": origin,
        "commands": {finding.setting.name: command_of(finding) for finding in findings},
    }


def _setting(finding: Finding, anchor: str, figures: Sequence[Drawn]) -> dict[str, Any]:
    tables = [strategies_table(finding), comparisons_table(finding)]
    details = [equal_table(finding), candidates_table(finding)]
    return {
        "name": finding.setting.name,
        "notes": finding.setting.notes.strip(),
        "anchor": f"setting-{anchor}",
        "verdict": verdict(finding),
        "tables": [table for table in tables if table is not None and table.rows],
        "details": [table for table in details if table is not None and table.rows],
        "figures": figures,
    }


def _failure(run: Run) -> dict[str, Any]:
    if run.state == DAMAGED:
        how = "a file in its folder is invalid, so the run is not used"
        return {"name": run.spec.name, "state": DAMAGED, "how": how, "lines": run.damage}
    status = run.failure["status"]
    how = f"{status_words(status)}; the last lines of its output"
    return {"name": run.spec.name, "state": state_of(run), "how": how, "lines": "\n".join(run.failure["lines"])}


def _render(name: str, content: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=name == PAGE, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {"embedded": _embedded, "slug": slug}
    environment.filters |= {"row": _markdown_row, "line": _one_line, "fenced": _fenced}
    return environment.get_template(f"{name}.jinja").render(content)


def _embedded(folder: Path, drawn: Drawn) -> str:
    """A figure as a data URL."""
    content = (folder / FOLDER / f"{drawn.name}.svg").read_bytes()
    return f"data:image/svg+xml;base64,{b64encode(content).decode()}"


def _one_line(text: str) -> str:
    """Text escaped for Markdown, on one line."""
    for mark in "\\`*_{}[]<>#|~&":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_one_line, cells))} |"


def _fenced(text: str) -> str:
    """A code block with the text, in a fence longer than any backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


UNKNOWN = "unknown"


def provenance(runs: Sequence[Run]) -> dict[str, Counter[str]]:
    """Commits, machines and versions of the runs that have started, each with its number of runs."""
    environments = [run.environment for run in runs if run.environment]
    versions = [", ".join(f"{k} {v}" for k, v in environment["versions"].items() if v) for environment in environments]
    return {
        "Commit": Counter(environment["git_commit"] or UNKNOWN for environment in environments),
        "Machine": Counter(environment["machine"] or UNKNOWN for environment in environments),
        "Versions": Counter(text or UNKNOWN for text in versions),
    }


def _warnings(origin: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Reasons why the runs may not be comparable or reproducible."""
    warnings = [
        f"The runs come from {len(values)} different {name.lower().rstrip('s')}s; see how this was done."
        for name, values in origin.items()
        if len(values) > 1
    ]
    if any(commit.endswith("-dirty") for commit in origin["Commit"]):
        warnings.append("Some runs come from a working tree with changes that were not committed.")
    return warnings + (["The commit of some runs is not known."] if UNKNOWN in origin["Commit"] else [])


def searched_words(finding: Finding) -> str:
    """The points that each strategy of a setting was searched over, and their number."""
    by_points: dict[tuple[str, ...], list[str]] = {}
    for tuned in finding.tuned:
        by_points.setdefault(tuple(c.name for c in tuned.candidates), []).append(tuned.strategy)
    parts = []
    for points, names in by_points.items():
        if points == ("-",):
            parts.append(f"{listed(names)}: not searched, one point")
        else:
            parts.append(f"{listed(names)}: {counted(len(points), 'point')} ({'; '.join(points)})")
    seeds = sorted({run.spec.seed for run in finding.runs})
    return f"{finding.setting.name}: {'. '.join(parts)}. Seeds {', '.join(map(str, seeds))}."


def command_of(finding: Finding) -> str:
    """The command of the baseline's first run that has started (else of its first run), without its folder."""
    runs = [run for candidate in finding.baseline.candidates for run in candidate.runs]
    run = next((run for run in runs if run.environment), runs[0])
    return shlex.join(["python", run.spec.setting.program.script, *run.spec.words()])


STATISTICS = (
    "The base decay (and every other searched option) is chosen on the same seeds and validation data as the reported "
    "values. The best of several values is optimistic: equally for strategies that were searched over the same number "
    "of points, less for a strategy that was searched over fewer. Only new seeds or held-out data would give values "
    "without this bias.",
    "Runs with the same seed share everything that the seed decides (initial weights, order of data, augmentation), so "
    "strategies are compared by differences paired by seed. Only seeds that both strategies finished are paired.",
    "The verdict uses the two-sided paired t test at level 0.05, corrected by Holm's method over all comparisons of a "
    "setting. The test assumes that differences are about normal, which few seeds can neither confirm nor refute.",
    "The bootstrap interval (percentile, 9999 resamples of the seeds) is shown next to Student's; with few seeds it is "
    "too narrow, and the verdict does not use it. Neither interval is corrected for the number of comparisons.",
    "Smallest detectable difference and seeds needed are for 80 % power, at level 0.05 divided by the number of "
    "comparisons (the strictest level of Holm's method). They assume that the true spread equals the observed one.",
    "Not distinguishable does not mean equal: these seeds cannot show a difference. Runs that diverged, failed or have "
    "not finished have no value; the tables count them. A point of the search with unfinished seeds is chosen only if "
    "no point is complete.",
    "Mean applied decay is averaged over the decayed parameters, then over the evaluations of a run.",
)
