"""One damaged run is named and counts for nothing; the report goes on with the others."""

import csv
import json
import os
import sys

import pytest
from fake_comparison import IMAGES, fill, grid_of

import compare
from comparison import remains
from comparison.findings import find
from comparison.report import summary_text, write_report
from comparison.results import BROKEN, DAMAGED, FINISHED, at_rest, write_csv
from runtime.errors import UserError, exit_status

ONE_POINT = {"digits": {**IMAGES, "search": {"weight_decay": [0.1]}}}
DEEP = "[" * 100_000
ANY_FILE = {
    "empty": b"", "binary": bytes(range(256)),
    "deep": DEEP.encode() + b"\n", "no JSON": b"{'a': 1}\n", "a list": b"[1]\n",
    "not UTF-8": b'{"step": "\xff\xfe"}\n',
    "zeros": bytes(100) + b"\n",
}  # fmt: skip
SUMMARIES = (
    '{"acc1": "90"}', '{"acc1": [90]}', '{"acc1": true}', '{"acc1": 9, "seconds": "=1+1"}',
    '{"acc1": 9, "alpha_by_role": [1]}', '{"acc1": 9, "alpha_by_role": {"q": "x"}}',
    '{"acc1": 9, "alpha_by_role": {"\\u001b[2J": 1}}', '{"acc1": 9, "samples_per_second": {}}',
)  # fmt: skip
LOG = {"step": 3, "weight_decay_mean": 0.1, "weight_norm": 3.0, "train_loss": 1.0}
LOGS = tuple(
    json.dumps(LOG | change)
    for change in (
        {"step": -1}, {"step": "3"}, {"step": 1.5}, {"step": True}, {"step": 10**30}, {"weight_decay_mean": None},
        {"weight_decay_mean": "much"}, {"weight_decay_mean": float("nan")}, {"weight_decay_mean": float("inf")},
        {"weight_norm": "=cmd()"}, {"train_loss": [1]},
    )
)  # fmt: skip
ROW = {"step": 0, "module": "blocks.0.q", "role": "q", "score": 2.0, "multiplier": 1.0, "audit": None}
LEDGERS = tuple(
    json.dumps(ROW | change)
    for change in (
        {"step": None}, {"module": None}, {"module": "a\x1b[2Jb"}, {"role": ["q"]}, {"role": "a\nb"}, {"score": "high"},
        {"multiplier": None}, {"multiplier": [1]}, {"multiplier": float("nan")}, {"audit": "yes"},
    )
)  # fmt: skip
CONFIGS = (
    '{"environment": []}', '{"environment": {"git_commit": 3}}', '{"environment": {"machine": {}}}',
    '{"environment": {"versions": ["torch"]}}', '{"environment": {"versions": {"torch": 2}}}',
)  # fmt: skip
FAILURES = (
    "{}", '{"status": "3", "lines": []}', '{"status": 1}', '{"status": 99999, "lines": []}',
    '{"status": 1, "lines": [3]}', '{"status": 1, "lines": "text"}', '{"status": NaN, "lines": []}',
)  # fmt: skip

EACH = {
    "summary.json": SUMMARIES, "log.jsonl": LOGS, "decay.jsonl": LEDGERS, "config.json": CONFIGS,
    "failed.json": FAILURES, "cell.json": (),
}  # fmt: skip
CASES = [
    *((name, content) for name in EACH for content in ANY_FILE.values() if content or name not in ("log.jsonl",)),
    *((name, text.encode() + b"\n") for name, texts in EACH.items() for text in texts),
]
CASES = [(name, content) for name, content in CASES if content or not name.endswith("jsonl")]  # an empty log is one


@pytest.fixture
def two(tmp_path):
    """Two runs of one point; the second is damaged."""
    grid = grid_of(tmp_path, {"uniform": {}}, seeds=(0, 1), domains=ONE_POINT)
    return grid, fill(grid, tmp_path)


def damage(run, name, content):
    if name == "failed.json":
        (run.folder / "summary.json").unlink()
    (run.folder / name).write_bytes(content)


@pytest.mark.parametrize(("name", "content"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_a_damaged_file_is_named_and_its_run_alone_counts_for_nothing(name, content, two, tmp_path):
    _, runs = two
    damage(runs[1], name, content)
    whole, damaged = at_rest(runs)
    assert (whole.state, damaged.state, damaged.value) == (FINISHED, DAMAGED, None) and whole.value
    assert damaged.damage.startswith(str(runs[1].folder / name)) and damaged.damage.isprintable()
    write_csv(tmp_path / "results.csv", [whole, damaged], tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished", "damaged"]


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("what", ["folder", "pipe", "lost link", "device", "loop"])
def test_what_is_no_file_is_named_without_waiting(name, what, two):
    _, runs = two
    path = runs[1].folder / name
    if name == "failed.json":
        (runs[1].folder / "summary.json").unlink()
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"lost link": "nowhere", "device": "/dev/zero", "loop": path.name}[what])
    whole, damaged = at_rest(runs)
    lost = what in ("lost link", "loop") and name in ("summary.json", "failed.json")  # as if it were not there
    assert whole.state == FINISHED and damaged.value is None
    assert (damaged.state, name in damaged.damage) == (("started", False) if lost else (DAMAGED, True))


def test_a_last_row_half_written_is_no_damage(two):
    _, runs = two
    for name in ("log.jsonl", "decay.jsonl"):
        with open(runs[1].folder / name, "a") as file:
            file.write('{"step": 30')
    assert [run.state for run in at_rest(runs)] == [FINISHED] * 2


def test_files_and_rows_have_a_largest_size(two, monkeypatch):
    _, runs = two
    with open(runs[0].folder / "log.jsonl", "w") as file:
        file.truncate(remains.MOST_ROWS_BYTES + 1)  # a hole: it takes no space
    with open(runs[1].folder / "summary.json", "w") as file:
        file.truncate(remains.MOST_BYTES + 1)
    assert ["more than" in run.damage for run in at_rest(runs)] == [True, True]
    (runs[0].folder / "log.jsonl").write_text('{"a": "' + "a" * remains.MOST_LINE + '"}\n')
    assert "line 1: is damaged: it is longer than" in at_rest(runs)[0].damage


def test_a_ledger_with_a_role_a_row_is_damaged(two):
    _, runs = two
    rows = [json.dumps(ROW | {"role": f"role {i}"}) + "\n" for i in range(remains.MOST_ROLES + 1)]
    (runs[1].folder / "decay.jsonl").write_text("".join(rows))
    assert "has 201 roles" in at_rest(runs)[1].damage


@pytest.mark.parametrize("figure", ["1e300", "-1e300", "1" + "0" * 400, "Infinity", "NaN"])
def test_a_figure_that_no_axis_holds_counts_as_none(figure, two):
    _, runs = two
    (runs[1].folder / "summary.json").write_text(f'{{"acc1": {figure}}}')
    run = at_rest(runs)[1]
    assert (run.state, run.value) == (FINISHED, None)


def test_what_a_failed_run_printed_cannot_steer_the_terminal(two):
    _, runs = two
    damage(runs[1], "failed.json", json.dumps({"status": 1, "lines": ["\x1b[2Jgone", "\u202etxt"]}).encode())
    run = at_rest(runs)[1]
    assert run.state == BROKEN and run.failure["lines"] == [r"\x1b[2Jgone", r"\u202etxt"]


def call(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, words)])
    return exit_status(compare.main)


@pytest.mark.slow
def test_the_whole_report_goes_on(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    grid = grid_of(tmp_path, seeds=(0, 1, 2), domains=ONE_POINT)
    runs = fill(grid, folder)
    compare.claim(runs, None)
    for run, name in zip(runs, EACH, strict=False):
        damage(run, name, b'{"status": "\x1b[31m"}\n' if name != "cell.json" else DEEP.encode())
    words = ["--config", grid.source, "--output_dir", folder, "--report_only"]
    assert call(*words, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.out.count("damaged: digits/") == 6 and "\x1b" not in said.out and said.err == ""
    assert "0 of 6 runs finished; 6 damaged" in said.out
    page, markdown, table = ((folder / "report" / n).read_text() for n in ("report.html", "report.md", "results.csv"))
    assert table.count(",damaged,") == 6
    for name in EACH:
        assert f"{name}: is damaged" in page or f"{name}, line 1: is damaged" in page
        assert f"{name}: is damaged" in markdown or f"{name}, line 1: is damaged" in markdown


@pytest.mark.slow
def test_a_damaged_run_takes_no_figure_from_the_others(tmp_path):
    grid = grid_of(tmp_path, seeds=(0, 1, 2), domains=ONE_POINT)
    runs = fill(grid, tmp_path)
    before = find(grid, at_rest(runs))[0]
    (runs[0].folder / "log.jsonl").write_text("damaged\n")
    after = at_rest(runs)
    found = find(grid, after)[0]
    assert found.of("alphadecay").best.values == before.of("alphadecay").best.values
    assert list(found.of("uniform").best.values) == [1, 2]
    assert "uniform: of 3 runs, 1 damaged." in summary_text(grid, after)
    write_report(grid, after, tmp_path, tmp_path / "report")


def test_a_comparison_with_a_damaged_run_ends_with_status_1(two, tmp_path):
    grid, runs = two
    (runs[1].folder / "summary.json").write_text("[]")
    with pytest.raises(compare.RunsFailed, match="^1 runs are damaged, 0 failed, 0 are not done; "):
        compare.require_finished(at_rest(runs))


@pytest.mark.parametrize(
    ("name", "value"), [("weight_decay", 0.05), ("decay", "alphadecay"), ("max_steps", 99), ("seed", 7), ("lr", None)]
)
def test_a_run_with_other_options_than_its_cells_counts_for_nothing(name, value, two):
    _, runs = two
    for run in runs:
        options = run.spec.setting.program.read_options(run.spec.words()).flat()
        (run.folder / "config.json").write_text(json.dumps(options))
    assert [run.state for run in at_rest(runs)] == ["finished", "finished"]
    (runs[1].folder / "config.json").write_text(json.dumps(options | {name: value}))
    first, second = at_rest(runs)
    assert (first.state, second.state, second.value) == ("finished", "damaged", None)
    assert f"config.json: has {name} {value!r}; this comparison's run has" in second.damage


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_is_a_formula(text, tmp_path):
    grid = grid_of(tmp_path, {"uniform": {}}, seeds=[0], domains=ONE_POINT)
    (run,) = fill(grid, tmp_path)
    config = {"environment": {"git_commit": text, "machine": text, "versions": {}}}
    (run.folder / "config.json").write_text(json.dumps(config))
    write_csv(tmp_path / "results.csv", at_rest([run]), tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["machine"][0] not in "=+-@\t\r" and row["machine"].lstrip("'").endswith(text[1:])
    assert row["weight_decay"] == "0.1"


def test_a_failure_that_cannot_be_forgotten_is_one_line(two):
    _, runs = two
    (runs[1].folder / "failed.json").mkdir()
    with pytest.raises(UserError, match="failed.json: cannot be removed"):
        compare.forget_failure(runs[1])
