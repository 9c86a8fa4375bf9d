"""The report of a comparison: report.md, report.html, results.csv and figures; and its summary for the terminal."""

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
    comparisons_table,
    counts,
    equal_table,
    candidates_table,
    runs_table,
    strategies_table,
)
from comparison.verdict import verdict
from runtime.errors import UserError
from runtime.tables import table

MARKDOWN, PAGE, CSV = "report.md", "report.html", "results.csv"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(grid: Grid, runs: Sequence[Run], root: Path, folder: Path) -> list[Path]:
    """Write the report of what there is by now.

    The runs' folders lie in `root`; `folder` is made if need be. The same runs give the same bytes. Returns the page,
    the Markdown and the table of results.

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
    """What compare.py prints at the end: for each setting a small table and the verdict's words."""
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
    figures = [base, short(best.mean_decay), fixed(best.mean, finding.decimals), fixed(best.sd, finding.decimals)]
    return [strategy, *figures, *_compared(comparison, finding.decimals)]


def _compared(comparison: Comparison | None, decimals: int) -> list[str]:
    if comparison is None:
        return [NOTHING, NOTHING, NOTHING, "baseline"]
    paired = comparison.paired
    told = [signed(paired.mean, decimals), span(paired.interval, decimals), p_value(comparison.holm)]
    return [*told, comparison.verdict]


def _state_words(runs: Sequence[Run]) -> str:
    found = counts(runs)
    others = [f"{count} {state}" for state, count in found.items() if state != FINISHED]
    return f"{found[FINISHED]} of {counted(len(runs), 'run')} finished" + (f"; {listed(others)}" if others else "")


def _content(
    grid: Grid, findings: Sequence[Finding], runs: Sequence[Run], root: Path, figures: Mapping[str, Sequence[Drawn]]
) -> dict[str, Any]:
    """What the templates show."""
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
    first, more = [strategies_table(finding), comparisons_table(finding)], [equal_table(finding), candidates_table(finding)]
    return {
        "name": finding.setting.name,
        "notes": finding.setting.notes.strip(),
        "anchor": f"setting-{anchor}",
        "verdict": verdict(finding),
        "tables": [each for each in first if each is not None and each.rows],
        "details": [each for each in more if each is not None and each.rows],
        "figures": figures,
    }


def _failure(run: Run) -> dict[str, Any]:
    if run.state == DAMAGED:
        how = "a file in its folder is not what a run leaves, so it counts for nothing here"
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
    """A figure as an address that holds it."""
    content = (folder / FOLDER / f"{drawn.name}.svg").read_bytes()
    return f"data:image/svg+xml;base64,{b64encode(content).decode()}"


def _one_line(text: str) -> str:
    """Text as Markdown shows it as it is: no markup, no line ends."""
    for mark in "\\`*_{}[]<>#|~&":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_one_line, cells))} |"


def _fenced(text: str) -> str:
    """A block of text as it is, whatever backticks are in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


UNKNOWN = "unknown"


def provenance(runs: Sequence[Run]) -> dict[str, Counter[str]]:
    """Where the runs that have started come from: each different value with the number of runs that have it."""
    started = [run.environment for run in runs if run.environment]
    versions = [", ".join(f"{name} {each}" for name, each in at["versions"].items() if each) for at in started]
    return {
        "Commit": Counter(at["git_commit"] or UNKNOWN for at in started),
        "Machine": Counter(at["machine"] or UNKNOWN for at in started),
        "Versions": Counter(each or UNKNOWN for each in versions),
    }


def _warnings(origin: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Why the runs may not be comparable, or not be repeatable."""
    found = [
        f"The runs come from {len(values)} different {what.lower().rstrip('s')}s; see how this was done."
        for what, values in origin.items()
        if len(values) > 1
    ]
    if any(commit.endswith("-dirty") for commit in origin["Commit"]):
        found.append("Some runs come from a working tree with changes that were not committed.")
    return found + (["Of some runs the commit is not known."] if UNKNOWN in origin["Commit"] else [])


def searched_words(finding: Finding) -> str:
    """What every strategy of a setting was searched over, and over how many points."""
    by_points: dict[tuple[str, ...], list[str]] = {}
    for tuned in finding.tuned:
        by_points.setdefault(tuple(point.name for point in tuned.points), []).append(tuned.strategy)
    parts = []
    for points, names in by_points.items():
        if points == ("-",):
            parts.append(f"{listed(names)}: not searched, one point")
        else:
            parts.append(f"{listed(names)}: {counted(len(points), 'point')} ({'; '.join(points)})")
    seeds = sorted({run.spec.seed for run in finding.runs})
    return f"{finding.setting.name}: {'. '.join(parts)}. Seeds {', '.join(map(str, seeds))}."


def command_of(finding: Finding) -> str:
    """The command of one run, the baseline's first that has one, without its folder."""
    runs = [run for point in finding.baseline.points for run in point.runs]
    run = next((run for run in runs if run.environment), runs[0])
    return shlex.join(["python", run.spec.setting.program.script, *run.spec.words()])


STATISTICS = (
    "The base decay (and whatever else was searched) is chosen on the same seeds and the same validation data as the "
    "figures that are reported at it. The best of several is optimistic; equally so for strategies that were searched "
    "over the same number of points, less so for one that was searched over fewer. Only new seeds, or data held back, "
    "would give figures free of it.",
    "Runs of one seed share what the seed decides (first weights, order of data, augmentation), so strategies are "
    "compared by differences paired by seed. Only seeds that both finished are paired.",
    "The verdict rests on the two-sided paired t test, corrected after Holm over all comparisons of a setting, at "
    "level 0.05. It takes differences to be about normal, which so few seeds can neither show nor refute.",
    "The bootstrap interval (percentile, 9999 resamples of the seeds, uncorrected) is shown beside Student's; of few "
    "seeds it is too narrow, and the verdict does not rest on it. Intervals are not corrected for their number.",
    "Smallest detectable difference and seeds needed are for 80 % power, at 0.05 divided by the number of comparisons "
    "(the strictest level of Holm's procedure), and take the spread seen in these few seeds for the true one.",
    "Not distinguishable does not mean equal: these seeds do not tell. Runs that diverged, failed or are missing have "
    "no figure; they are counted wherever figures are shown, and a point of the search that lacks seeds is chosen only "
    "if none is complete.",
    "Mean applied decay is the mean over parameters that are decayed at all, then over the evaluations of a run.",
)
