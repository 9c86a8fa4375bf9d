"""The report shows what the runs left, all of it, and nothing that is not there."""

import csv
import json
import re

import pytest
from fake_comparison import IMAGES, STRATEGIES, TEXT, Effects, fill, grid_of

from comparison.findings import find
from comparison.report import summary_text, write_report
from comparison.tables import candidates_table, comparisons_table, strategies_table
from runtime.errors import UserError

pytestmark = pytest.mark.slow
SMALL = {**IMAGES, "search": {"weight_decay": [0.1, 0.5]}}
NEVER = re.compile(r"\b(nan|NaN|None|inf|Infinity)\b")


def written(folder, grid, effects=None, **ended):
    runs = fill(grid, folder, effects or Effects(), **ended)
    paths = write_report(grid, runs, folder, folder / "report")
    return runs, *(path.read_text() for path in paths)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison with every kind of strategy and of ending, in two domains."""
    folder = tmp_path_factory.mktemp("whole")
    text = {**TEXT, "published": {"uniform": [21.0, 20.5, 22.25]}, "published_from": "the paper", "seeds": [0, 1]}
    domains = {"digits": SMALL, "text": {**text, "strategies": dict.fromkeys(("none", "awd", "alphadecay matched"))}}
    strategies = {name: own for name, own in STRATEGIES.items() if name != "adadecay"}
    grid = grid_of(folder, strategies, seeds=(0, 1, 2), contrasts=[("alphadecay", "alphadecay shuffled")],
                   domains=domains, notes="Synthetic.")  # fmt: skip
    ended = {
        "diverged": ["digits/awd/weight_decay=0.5/seed1"], "killed": ["digits/none/seed2"],
        "left_out": ["text/alphadecay/weight_decay=0.5/seed1"],
    }  # fmt: skip
    commits = ("a" * 40, "a" * 40 + "-dirty")
    runs, *texts = written(folder, grid, Effects({"alphadecay": 2.0}, commits=commits), **ended)
    return folder, grid, runs, texts


def test_every_run_is_one_row_of_the_csv_finished_or_not(whole):
    folder, grid, runs, _ = whole
    with open(folder / "report" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["folder"] for row in rows] == [str(spec.folder(folder).relative_to(folder)) for spec in grid.specs]
    states = [row["state"] for row in rows]
    assert (states.count("diverged"), states.count("failed"), states.count("waiting")) == (1, 1, 1)


def test_nothing_reads_as_a_missing_number(whole):
    folder, grid, runs, (page, markdown, _) = whole
    shown = re.sub(r'src="data:[^"]*"|<script>.*?</script>', "", page, flags=re.S)
    for text in (shown, markdown, summary_text(grid, runs)):
        assert not NEVER.search(text), NEVER.search(text)


def test_the_page_loads_nothing_from_anywhere(whole):
    page = whole[3][0]
    assert "http:" not in page and "https:" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == [] and "url(" not in page and "@import" not in page


def test_figures_of_every_setting_are_files_and_in_both_reports(whole):
    folder, _, _, (page, markdown, _) = whole
    names = {path.stem for path in (folder / "report" / "figures").iterdir()}
    assert names == set(re.findall(r"\(figures/([a-z0-9-]+)\.png\)", markdown))
    assert page.count("data:image/svg+xml") == len(names)
    for setting in ("digits", "text"):
        kinds = {name.removeprefix(f"{setting}-") for name in names if name.startswith(setting)}
        assert {"outcome", "decay", "curves", "norms", "roles", "modules-alphadecay"} <= kinds
    assert not any("modules-uniform" in name or "modules-awd" in name for name in names)
    assert all((folder / "report" / "figures" / f"{name}.svg").exists() for name in names)


def test_what_is_incomplete_failed_dirty_or_mixed_is_said_first(whole):
    _, grid, runs, texts = whole
    for text in texts[:2]:
        top = text[: text.index("digits/") if "digits/" in text else None]
        assert "Incomplete comparison:" in top and f"{len(runs) - 3} of {len(runs)} runs finished" in top
        assert "2 different commits" in top and "not committed" in top
        assert "killed by signal 9" in text and "exit status 3" in text
    state = f"{len(runs) - 3} of {len(runs)} runs finished; 1 failed, 1 diverged and 1 waiting"
    assert summary_text(grid, runs).startswith(f"{state}\n") and all(f"{state}." in text for text in texts[:2])


def test_output_of_failed_runs_is_shown_as_text(whole):
    page, markdown, _ = whole[3]
    assert "is not finite &lt;b&gt;&amp;" in page and "is not finite <b>&" not in page
    assert "is not finite <b>&" in markdown


def test_published_figures_stand_beside_ours(whole):
    _, grid, runs, _ = whole
    digits, text = find(grid, runs)
    assert "Published" not in candidates_table(digits).header
    found = candidates_table(text)
    at = found.header.index("Published")
    uniform = [row for row in found.rows if row[0].text == "uniform"]
    assert [row[at].text for row in uniform] == ["21", "20.5", "22.25"] and "the paper" in found.note
    assert [row[at + 1].key for row in uniform] == pytest.approx(
        [float(c.mean) - c.published for c in text.baseline.candidates]
    )
    assert "Published" in strategies_table(text).header


def test_the_same_runs_give_the_same_bytes(tmp_path):
    grid = grid_of(tmp_path, domains={"digits": SMALL})
    runs, *first = written(tmp_path, grid)
    figures = {path.name: path.read_bytes() for path in (tmp_path / "report" / "figures").iterdir()}
    assert [path.read_text() for path in write_report(grid, runs, tmp_path, tmp_path / "again")] == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "again" / "figures").iterdir()} == figures


def test_hostile_names_stay_text(tmp_path):
    hostile = {
        "uniform": {}, "<script>alert(1)</script>": {"decay": "alphadecay"}, "_a$b_{$ | `c` *d*": {"decay": "adadecay"},
    }  # fmt: skip
    grid = grid_of(tmp_path, hostile, domains={"<i>$x$": SMALL}, title="<b>title</b> & more", notes="<img src=x>")
    _, page, markdown, _ = written(tmp_path, grid)
    assert "<script>alert" not in page and "<b>title" not in page and "<img src=x" not in page and "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in markdown.replace("\\<", "") and "<img src=x" not in markdown.replace("\\<", "")
    table_lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all("$ \\| " in line for line in table_lines if "_a$b" in line.replace("\\", ""))


@pytest.mark.parametrize("seeds, search", [([0], {"weight_decay": [0.1, 0.5]}), ([0, 1], {}), ([0], {})])
def test_one_seed_or_one_point_make_a_report_too(tmp_path, seeds, search):
    grid = grid_of(tmp_path, seeds=seeds, domains={"digits": {**IMAGES, "search": search}})
    runs, page, markdown, _ = written(tmp_path, grid)
    assert ("one seed: no spread" in markdown) == (len(seeds) == 1)
    assert ("At equal base decay" in page) == bool(search)
    assert not NEVER.search(markdown) and "Incomplete" not in page
    assert summary_text(grid, runs).startswith(f"{len(runs)} of {len(runs)} runs finished\n")


def test_before_any_run_has_finished_there_is_a_report(tmp_path):
    grid = grid_of(tmp_path, domains={"digits": SMALL})
    runs, page, markdown, _ = written(tmp_path, grid, left_out=[spec.name for spec in grid.specs])
    assert "so there is nothing to compare with" in page and "no run has started" in page
    assert f"{len(runs)} waiting" in markdown
    assert "no run has finished" in summary_text(grid, runs)


def test_a_figure_that_is_not_finite_is_counted_as_none(tmp_path):
    grid = grid_of(tmp_path, domains={"text": {**TEXT, "search": {}}})
    runs = fill(grid, tmp_path)
    summary = runs[0].folder / "summary.json"
    summary.write_text(re.sub(r'"perplexity": [0-9.]+', '"perplexity": Infinity', summary.read_text()))
    _, markdown, _ = (path.read_text() for path in write_report(grid, runs, tmp_path, tmp_path / "report"))
    assert "1 without value" in markdown and not NEVER.search(markdown)


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    grid = grid_of(tmp_path, domains={"digits": SMALL})
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(grid, fill(grid, tmp_path), tmp_path, tmp_path / "taken" / "report")


def test_rows_fit_their_headers(whole):
    _, grid, runs, _ = whole
    for finding in find(grid, runs):
        for table in (strategies_table(finding), comparisons_table(finding), candidates_table(finding)):
            assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_mean_applied_decay_is_over_all_evaluations(tmp_path):
    run = fill(grid_of(tmp_path, seeds=[0]), tmp_path)[0]
    log = [{"step": step, "weight_decay_mean": decay} for step, decay in ((1, 0.1), (2, 0.3), (3, 0.8))]
    (run.folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    assert run.mean_decay == pytest.approx(0.4)


@pytest.mark.parametrize("domain", [IMAGES, TEXT], ids=["accuracy", "perplexity"])
def test_worst_and_best_seed_are_so_in_the_metrics_direction(tmp_path, domain):
    grid = grid_of(tmp_path, domains={"domain": domain})
    finding = find(grid, fill(grid, tmp_path))[0]
    table = strategies_table(finding)
    worst, best = (table.rows[0][table.header.index(name)].key for name in ("Worst", "Best"))
    values = finding.tuned[0].best.values.values()
    assert {worst, best} == {min(values), max(values)}
    assert (best == max(values)) == finding.setting.metric.higher_is_better
