"""What is seen of a comparison while it goes on."""

import io
import json

import pytest
from rich.console import Console
from stub_runs import stub_run

from comparison import board as room
from comparison.board import Board, show_failures
from comparison.grid import read_grid
from comparison.results import Run, note_failure, read_runs


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def finish(run: Run, value: float = 50.0) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "summary.json").write_text(json.dumps({"acc1": value}))


def text_of(board: Board) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(board.rendered())
    return out.getvalue()


def test_the_time_left_is_that_of_finished_runs_shared_between_the_jobs(tmp_path, clock):
    runs = [stub_run(tmp_path, seed) for seed in range(5)]
    board = Board(runs, jobs=2)
    assert board.seconds_left() is None
    board.begins(runs[0])
    clock.now = 100
    finish(runs[0])
    board.ends(runs[0])
    assert board.seconds_left() == 4 * 100 / 2
    board.begins(runs[1])
    clock.now = 130
    assert board.seconds_left() == (3 * 100 + 70) / 2


def test_runs_that_ended_before_count_but_say_nothing_of_the_pace(tmp_path, clock):
    runs = [stub_run(tmp_path, seed) for seed in range(3)]
    finish(runs[0])
    board = Board(runs, jobs=1)
    assert board.counts() == "[1/3]" and board.seconds_left() is None


def test_the_table_counts_finished_failed_and_what_goes_on_by_strategy(tmp_path, clock):
    runs = [stub_run(tmp_path, seed, strategy) for strategy in ("uniform", "awd") for seed in range(3)]
    board = Board(runs, jobs=2)
    for run, value in ((runs[0], 80.0), (runs[1], 90.0)):
        board.begins(run)
        finish(run, value)
        board.ends(run)
    board.begins(runs[3])
    runs[3].folder.mkdir(parents=True)
    note_failure(runs[3], -9)
    board.ends(runs[3])
    board.begins(runs[4])
    uniform, awd = (next(line for line in text_of(board).splitlines() if name in line) for name in ("uniform", "awd"))
    assert uniform.split()[1:] == ["uniform", "2/3", "85"]
    assert awd.split()[1:] == ["awd", "0/3", "1", "-", "seed", "1"]
    assert "[3/6] 1 running" in text_of(board)


def test_without_a_terminal_each_end_is_a_line_with_figure_and_time_left(tmp_path, clock, capsys):
    runs = [stub_run(tmp_path, seed) for seed in range(2)]
    with Board(runs, jobs=1) as board:
        board.begins(runs[0])
        clock.now = 61
        finish(runs[0], 12.345)
        board.ends(runs[0])
    assert capsys.readouterr().out == "[1/2]  stub/uniform/seed0: acc1 12.35, 1:01, about 1:01 left\n"


def test_failures_are_shown_with_status_folder_and_last_lines(tmp_path, capsys):
    run = stub_run(tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "output.txt").write_text("$ command\ntraining 10%\rtraining 20%\nerror: it is bad\n")
    note_failure(run, 2)
    show_failures([run])
    said = capsys.readouterr().out
    assert f"failed: stub/uniform/seed0, exit status 2: {run.folder}\n  | $ command\n  | training 20%\n" in said
    assert said.endswith("  | error: it is bad\n")


def test_the_reason_is_kept_whatever_is_said_behind_it(tmp_path):
    run = stub_run(tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "output.txt").write_text("stopped: loss is inf\n" + "torchrun talks\n" * 30)
    note_failure(run, 1)
    assert run.failure["lines"] == ["stopped: loss is inf", *["torchrun talks"] * 12]


def test_commands_of_a_dry_run_can_be_pasted_into_a_shell(tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "strategies: {uniform: {}}\n"
        "domains: {text: {program: main_llama.py, options: {dataset: stdlib, freeze: ['*.bias']}}}\n"
    )
    room.show_runs(read_runs(read_grid(grid), tmp_path))
    assert "--freeze '*.bias'" in capsys.readouterr().out
