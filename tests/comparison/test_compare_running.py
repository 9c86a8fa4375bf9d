"""The runs of a comparison as processes: side by side, stopped, killed, failed, taken up again."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from stub_runs import lines, stub_run
from tiny import ROOT

from comparison import running
from comparison.board import Board
from comparison.results import (
    BROKEN,
    FINISHED,
    STARTED,
    WAITING,
    at_rest,
    check_same,
    claim,
    forget_failure,
    note_failure,
)
from comparison.running import Stopping, places, run_all, run_here, run_one
from runtime.errors import UserError


def run_them(runs, jobs=2, stopping=None):
    """Take them to their end; what began and ended."""
    events = queue.Queue()
    run_all(runs, places(jobs, 1, [], 1), stopping or Stopping(), events)
    return [events.get() for _ in range(events.qsize())]


def until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_runs_are_processes_of_their_own_and_no_more_go_on_at_once_than_asked_for(tmp_path):
    runs = [stub_run(tmp_path, seed, steps=6) for seed in range(5)]
    events = run_them(runs, jobs=2)
    assert [run.state for run in runs] == [FINISHED] * 5
    assert len(events) == 10 and [run.value for run in runs] == [90, 91, 92, 93, 94]
    starts = [lines(run.folder / "starts")[0].split() for run in runs]
    assert len({pid for pid, _, _ in starts}) == 5 and {threads for *_, threads in starts} == {"1"}
    spans = [(float(start[1]), float(lines(run.folder / "ends")[0])) for start, run in zip(starts, runs, strict=True)]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_a_failed_run_is_noted_with_its_last_lines_and_the_others_go_on(tmp_path):
    bad, good = stub_run(tmp_path, 0, steps=9, fails_at=2, status=2), stub_run(tmp_path, 1)
    run_them([bad, good], jobs=1)
    assert (bad.state, good.state) == (BROKEN, FINISHED) and not bad.diverged
    assert bad.failure == {"status": 2, "lines": [*bad.failure["lines"][:-2], "about to fail", "error: step 2 is bad"]}
    assert bad.failure["lines"][0].startswith("$ ")


def test_a_failed_run_is_not_taken_up_again_unless_its_failure_is_forgotten(tmp_path):
    repaired = tmp_path / "repaired"
    run = stub_run(tmp_path, steps=4, fails_at=2, status=1, repaired_by=str(repaired))
    run_them([run])
    repaired.touch()
    run_them([run])
    assert run.state == BROKEN and len(lines(run.folder / "starts")) == 1
    forget_failure(run)
    run_them([run])
    assert run.state == FINISHED


def test_a_run_whose_numbers_are_no_longer_finite_has_diverged(tmp_path):
    run = stub_run(tmp_path, steps=4, fails_at=1, status=3)
    run_them([run])
    assert run.state == BROKEN and run.diverged


def test_told_to_stop_runs_save_none_begins_and_none_counts_as_failed(tmp_path):
    runs = [stub_run(tmp_path, seed, steps=400) for seed in range(3)]
    stopping = Stopping()
    work = threading.Thread(target=run_them, args=(runs, 2, stopping))
    work.start()
    until(lambda: all(len(lines(run.folder / "steps")) > 2 for run in runs[:2]))
    stopping.stop()
    work.join(20)
    assert [run.state for run in runs] == [STARTED, STARTED, WAITING]
    short = [
        stub_run(tmp_path, seed, steps=int((runs[seed].folder / "checkpoints").read_text()) + 2) for seed in (0, 1)
    ]
    run_them(short)
    for run in short:  # every step once: they went on where they had saved
        steps = [int(line) for line in lines(run.folder / "steps")]
        assert run.state == FINISHED and steps == list(range(1, len(steps) + 1))


def test_a_run_that_does_not_end_when_told_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 0.5)
    run, stopping = stub_run(tmp_path, steps=400, deaf=True), Stopping()
    work = threading.Thread(target=run_them, args=([run], 1, stopping))
    work.start()
    until(lambda: len(lines(run.folder / "steps")) > 2)
    stopping.stop()
    work.join(20)
    assert not work.is_alive() and run.state == STARTED


ORPHAN = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from stub_runs import stub_run
from comparison.running import Stopping, run_one
run_one(stub_run(Path({folder!r}), steps={steps}), {{}}, Stopping())
"""


@pytest.mark.slow
def test_two_calls_never_train_in_one_folder_also_if_the_first_was_killed(tmp_path):
    code = ORPHAN.format(tests=str(ROOT / "tests" / "helpers"), root=str(ROOT), folder=str(tmp_path), steps=60)
    first = subprocess.Popen([sys.executable, "-c", code])
    run = stub_run(tmp_path, steps=60)
    until(lambda: len(lines(run.folder / "steps")) > 2, 60)
    first.kill()
    first.wait()
    assert run.state == STARTED
    run_one(run, {}, Stopping())
    assert run.state == FINISHED and len(lines(run.folder / "starts")) == 1
    steps = [int(line) for line in lines(run.folder / "steps")]
    assert steps == list(range(1, 61))


def test_a_run_killed_from_outside_is_failed_and_says_by_which_signal(tmp_path):
    run = stub_run(tmp_path, steps=400)
    work = threading.Thread(target=run_them, args=([run],))
    work.start()
    until(lambda: len(lines(run.folder / "steps")) > 2)
    os.kill(int(lines(run.folder / "starts")[0].split()[0]), signal.SIGKILL)
    work.join(20)
    assert run.state == BROKEN and run.failure["status"] == -signal.SIGKILL


def test_a_folder_keeps_to_the_cell_it_was_begun_for(tmp_path):
    claim([stub_run(tmp_path, steps=3)], 1)
    check_same([stub_run(tmp_path, steps=3)], 1)
    with pytest.raises(UserError, match="^run stub/uniform/seed0: .* was begun with steps 3, now it is 4; use"):
        check_same([stub_run(tmp_path, steps=4)], 1)
    with pytest.raises(UserError, match="was begun with threads 1, now it is 2"):
        check_same([stub_run(tmp_path, steps=3)], 2)
    check_same([stub_run(tmp_path, steps=3)], 2, starting=False)
    with pytest.raises(UserError, match="was begun with status not given, now it is 7"):
        check_same([stub_run(tmp_path, steps=3, status=7)], 1)


def test_a_folder_with_another_run_is_refused(tmp_path):
    run = stub_run(tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has a run that is not part of this comparison"):
        check_same([run], 1)


def test_a_run_that_another_told_to_end_has_not_failed(tmp_path):
    run = stub_run(tmp_path, steps=4, fails_at=2, status=1, requeue=True)  # as torchrun ends whatever happened
    run_them([run])
    assert run.state == STARTED and (run.folder / "REQUEUE").exists()


def test_a_mark_of_an_earlier_turn_hides_no_failure(tmp_path):
    run = stub_run(tmp_path, steps=4, fails_at=2, status=2)
    run.folder.mkdir(parents=True)
    (run.folder / "REQUEUE").touch()
    run_them([run])
    assert run.state == BROKEN


def test_the_reason_of_an_earlier_turn_is_not_that_of_this_one(tmp_path):
    run = stub_run(tmp_path, steps=4, fails_at=2, status=2)
    run_them([run])
    forget_failure(run)
    note_failure(run, -9)
    assert "error: step 2 is bad" in run.failure["lines"]
    with open(run.folder / "output.txt", "a") as output:
        output.write("$ python again\nkilled here\n")
    forget_failure(run)
    run = stub_run(tmp_path)
    note_failure(run, -9)
    assert run.failure["lines"] == ["$ python again", "killed here"]


def test_a_folder_that_cannot_be_worked_in_is_an_error_of_that_run_alone(tmp_path):
    bad, good = stub_run(tmp_path, 0), stub_run(tmp_path, 1)
    bad.folder.parent.mkdir(parents=True)
    bad.folder.touch()
    with pytest.raises(UserError, match="^run stub/uniform/seed0: .*(File exists|Not a directory)"):
        run_here([bad, good], places(1, 1, [], 1), Board([bad, good], 1))
    assert good.state == FINISHED


def test_runs_are_told_to_stop_although_nobody_reads_what_is_said(tmp_path, monkeypatch):
    class Broken(Board):
        def begins(self, run):
            until(lambda: len(lines(run.folder / "steps")) > 2)
            raise BrokenPipeError

    def broken(text):
        raise BrokenPipeError

    monkeypatch.setattr(running, "say", broken)
    run = stub_run(tmp_path, steps=400)
    with pytest.raises(BrokenPipeError):
        run_here([run], places(1, 1, [], 1), Broken([run], 1))
    assert run.state == STARTED and (run.folder / "checkpoints").exists()


def test_a_deleted_folder_is_of_its_cell_again(tmp_path):
    run = stub_run(tmp_path)
    run_them([run])
    check_same([run], 1)
    assert run.state == FINISHED


def test_a_folder_whose_cell_cannot_be_read_is_not_started_in(tmp_path):
    run = stub_run(tmp_path)
    claim([run], 1)
    (run.folder / "cell.json").write_text("")
    check_same([stub_run(tmp_path)], 1, starting=False)  # the report says so
    with pytest.raises(UserError, match="^run stub/uniform/seed0: .*cell.json: is damaged: "):
        check_same([run], 1)


def test_a_report_is_of_one_moment(tmp_path):
    run = stub_run(tmp_path)
    run.folder.mkdir(parents=True)
    (kept,) = at_rest([run])
    run_them([run])
    assert (run.state, run.value) == (FINISHED, 90) and (kept.state, kept.value) == (WAITING, None)


@pytest.mark.parametrize(
    ("line", "diverged"), [("  exitcode  : 3 (pid: 7)", True), ("  exitcode  : 1 (pid: 7)", False)]
)
def test_of_several_processes_the_first_that_ended_says_whether_the_run_diverged(tmp_path, line, diverged):
    run = stub_run(tmp_path)
    run = replace(run, spec=replace(run.spec, setting=replace(run.spec.setting, processes=2)))
    run.folder.mkdir(parents=True)
    (run.folder / "bad_steps.jsonl").write_text("{}\n")  # of a step that was skipped
    note_failure(run, 1, f"Root Cause (first observed failure):\n{line}\n")
    assert run.diverged == diverged


@pytest.mark.parametrize(
    ("jobs", "gpus", "gpus_per_run", "expected"),
    [
        (2, ["0", "1", "2", "3"], 2, ["0,1", "2,3"]),
        (3, ["0", "1"], 1, ["0", "1", "0"]),
        (1, ["5"], 4, ["5"]),
        (2, [], 2, [None, None]),
    ],
)
def test_gpus_are_dealt_out_in_turn(jobs, gpus, gpus_per_run, expected):
    found = places(jobs, None, gpus, gpus_per_run)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in found] == expected
    assert all("OMP_NUM_THREADS" not in place for place in found)
