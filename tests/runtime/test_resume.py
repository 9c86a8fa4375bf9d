"""A run that was stopped and resumed is the run that was not, to the last bit. With violence: tests/faults.py."""

import json
import os
import re
import resource
import shutil
import signal
from functools import partial

import pytest
import torch
from forked import forked
from signals import in_this_process, signal_at
from tiny import TINY, rows, run, run_apart

from runtime.checkpoints import find_checkpoint
from runtime.preemption import preemption
from runtime.processes import Ranks
from runtime.self_test import differences, first_difference
from runtime.session import Session
from runtime.training_state import Counts, TrainingState

# 5 optimizer steps an epoch; mixup, cutmix and erasing are on by default.
ALL_ON = [*TINY, "--batch_size", "120", "--update_freq", "2", "--clip_grad", "1", "--weight_decay_end", "0.01"]
ALL_ON += ["--max_steps", "10"]
VARIETY = {
    "alphadecay": [],
    "uniform": ["--decay", "uniform"],
    "bf16": ["--amp", "bf16"],
    "fp16": ["--amp", "fp16"],
    "sgd": ["--optimizer", "momentum", "--lr", "0.1"],
    "batch norm": [
        "--model",
        "resnet10t",
        "--model_kwargs",
        "in_chans=3",
        "--channels_last",
        "--decay_interval",
        "2",
        "--batch_size",
        "40",
    ],
    "no average": ["--no-model_ema", "--no-model_ema_eval", "--smoothing", "0", "--mixup", "0", "--cutmix", "0"],
    "shuffled": ["--decay_control", "shuffle", "--decay_budget", "matched", "--decay_assign", "sqrt"],
    "awd": ["--decay", "awd"],
    "adadecay": ["--decay", "adadecay"],
    "adadecay per entry": ["--decay", "adadecay", "--adadecay_scope", "entry", "--decay_cautious"],
    "audited": ["--decay_audit", "--log_interval", "2"],
    "beside training": ["--decay_interval", "3", "--decay_lag", "2"],  # the stop comes in between
}


def whole_run(folder, *words):
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert run(*ALL_ON, *words, "--output_dir", folder, monkeypatch=monkeypatch) == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("resume") / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(1, 10))
def test_stopped_at_any_step_it_resumes_to_the_same_bits(whole, tmp_path, monkeypatch, stop):
    parts = tmp_path / "parts"
    assert run(*ALL_ON, "--output_dir", parts, "--max_steps", stop, monkeypatch=monkeypatch) == 0
    with open(parts / "log.jsonl", "a") as file:  # written after the checkpoint, then a crash
        file.write('{"step": 99}\n{"step": 1')
    assert run("--resume", parts, "--max_steps", "10", monkeypatch=monkeypatch) == 0
    assert differences(whole, parts) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in VARIETY if kind != "alphadecay"])
def test_whatever_is_trained_resumes_to_the_same_bits(tmp_path, monkeypatch, kind):
    left_alone, parts = whole_run(tmp_path / "whole", *VARIETY[kind]), tmp_path / "parts"
    for more in (["--max_steps", "7"], ["--resume", "auto"]):
        assert run(*ALL_ON, *VARIETY[kind], "--output_dir", parts, *more, monkeypatch=monkeypatch) == 0
    assert differences(left_alone, parts) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [(0, 2), (2, 4), (4, 0)], ids=str)
def test_the_number_of_loader_processes_may_change_in_between(whole, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("vision.loaders.usable_workers", lambda wanted: wanted)  # also with fewer CPUs
    words = [*ALL_ON, "--output_dir", tmp_path / "parts"]
    assert run(*words, "--num_workers", workers[0], "--max_steps", "3", monkeypatch=monkeypatch) == 0
    assert run(*words, "--num_workers", workers[1], "--resume", "auto", monkeypatch=monkeypatch) == 0
    assert differences(whole, tmp_path / "parts") == {}


@pytest.mark.slow
def test_a_checkpoint_within_an_epoch_can_be_continued_elsewhere(whole, tmp_path, monkeypatch):
    often, again = tmp_path / "often", tmp_path / "again"
    words = [*ALL_ON, "--output_dir", often, "--checkpoint_every", "2", "--save_ckpt_num", "9"]
    assert run(*words, monkeypatch=monkeypatch) == 0
    there = often / "checkpoints" / "step_00000008"
    assert run("--resume", there, "--output_dir", again, "--max_steps", "10", monkeypatch=monkeypatch) == 0
    assert differences(whole, often) == {} and differences(whole, again) == {}


def test_differences_are_found_wherever_they_are(whole, tmp_path):
    copy = tmp_path / "copy"
    for damage in ("log", "ledger", "state"):
        shutil.copytree(whole, copy, symlinks=True)
        if damage == "state":
            shutil.rmtree(copy / "checkpoints" / "step_00000010")
            expected = {"step", "weights", "EMA weights", "optimizer and decay", "random states"}
        else:
            name = {"log": "log.jsonl", "ledger": "decay.jsonl"}[damage]
            (copy / name).write_text((whole / name).read_text().replace("1", "2", 1))
            expected = {name}
        assert expected <= set(differences(whole, copy))
        shutil.rmtree(copy)
    assert first_difference([("a", torch.tensor(0.0), torch.tensor(-0.0))]) == "a differs"


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.proof)])
def test_a_user_can_see_it_for_their_own_options(tmp_path, monkeypatch, capsys, apart):
    words = [*TINY, "--output_dir", tmp_path / "run", "--self_test_resume", "--max_steps", "3"]
    if not apart:
        monkeypatch.setattr("runtime.self_test.subprocess.run", in_this_process(partial(run, monkeypatch=monkeypatch)))
    if apart:
        done = run_apart(*words)
        status, said = done.returncode, done.stdout
    else:
        status, said = run(*words, monkeypatch=monkeypatch), capsys.readouterr().out
    assert status == 0 and "resuming is exact: only times differ" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_self_test_can_fail(tmp_path, monkeypatch, capsys):
    words = [*TINY, "--output_dir", tmp_path / "run", "--self_test_resume", "--max_steps", "3"]
    monkeypatch.setattr("runtime.self_test.subprocess.run", in_this_process(partial(run, monkeypatch=monkeypatch)))
    forgetful = TrainingState(Counts(step=1))  # of a trainer that forgets what it learned
    monkeypatch.setattr("runtime.run.restore", lambda *_: forgetful)
    assert run(*words, monkeypatch=monkeypatch) == 1
    said = capsys.readouterr()
    assert "failed: resuming changed weights, EMA weights" in said.err and "differs" in said.out
    assert run(*words, monkeypatch=monkeypatch) == 2  # what was kept is not overwritten
    assert "_self_test exists" in capsys.readouterr().err


@pytest.mark.slow
def test_a_self_test_whose_runs_fail_says_why(tmp_path, monkeypatch, capfd):
    words = [*TINY, "--output_dir", tmp_path / "run", "--self_test_resume"]
    monkeypatch.setattr("runtime.self_test.run_to", lambda *_: ["--no_self_test_resume", "--lr", "-1"])
    assert run(*words, monkeypatch=monkeypatch) == 2
    said = capfd.readouterr().err
    assert (
        "error: --lr -1.0: must be above 0\nerror: --self_test_resume: the run of 8 steps in one run ended with" in said
    )


SIGNALLED_IN = {
    "training": ("vision.run.ImageTraining._rates", 3),
    "evaluating": ("engine.Precision.put", 13),  # the second batch of the first evaluation
    "refreshing": ("alphadecay.analysis.Measurement.run", 2),
    "writing": ("runtime.session.write_checkpoint", 1),
}


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
@pytest.mark.parametrize("phase", SIGNALLED_IN)
def test_told_to_end_it_saves_leaves_a_mark_and_goes_on(whole, tmp_path, monkeypatch, capsys, phase, number):
    target, call = SIGNALLED_IN[phase]
    words = [*ALL_ON, "--output_dir", tmp_path / "run", "--resume", "auto", "--log_interval", "1"]
    with monkeypatch.context() as inner:
        signal_at(call, target, number, inner)
        assert run(*words, monkeypatch=inner) == 75
    said = capsys.readouterr().err
    step = find_checkpoint(tmp_path / "run")[0].step
    assert f"preempted: {number.name} at optimizer step {step}; resume with --resume auto" in said
    assert (tmp_path / "run" / "REQUEUE").read_text().startswith(f"{number.name} at optimizer step {step}")
    assert step == {"training": 3, "evaluating": 5, "refreshing": 4, "writing": 6}[phase]
    assert run(*words, monkeypatch=monkeypatch) == 0
    assert not (tmp_path / "run" / "REQUEUE").exists() and differences(whole, tmp_path / "run") == {}


def test_a_signal_does_what_it_did_before_once_the_run_is_over(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    assert run(*TINY, "--output_dir", tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_both_signals_are_noted_and_end_nothing_at_once():
    with preemption(Ranks(0, 1, torch.device("cpu"))) as told:
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        assert [signal.getsignal(number) for number in numbers] == [told.note] * 3


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, "--max_steps", "5", monkeypatch=monkeypatch) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # smaller than the weights
    try:
        assert run("--resume", folder, "--max_steps", "8", monkeypatch=monkeypatch) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "error: cannot write the checkpoint" in said and "step_00000008" in said and "Traceback" not in said
    assert [path.name for path in (folder / "checkpoints").glob("*step*")] == ["step_00000005"]
    assert find_checkpoint(folder)[0].step == 5


def test_a_checkpoint_that_cannot_be_written_behind_the_training_ends_it(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.checkpoints.save_file", full)
    words = [*TINY, "--output_dir", tmp_path / "run", "--checkpoint_every", "1", "--epochs", "50"]
    assert run(*words, monkeypatch=monkeypatch) == 2
    assert re.search(r"step_00000001 \([\d.]+ MB free\): \[Errno 28\] No space left", capsys.readouterr().err)
    assert not (tmp_path / "run" / "log.jsonl").exists()  # it did not train to the end of the epoch first


@pytest.mark.parametrize("name", ["log.jsonl", "decay.jsonl"])
def test_a_log_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, name):
    real = open

    def full(path, mode="r", *rest, **named):
        if str(path).endswith(name) and mode == "a":
            raise OSError(30, "Read-only file system", str(path))
        return real(path, mode, *rest, **named)

    monkeypatch.setattr("builtins.open", full)
    assert run(*TINY, "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert f"{name} cannot be written: Read-only file system" in said and "Traceback" not in said


def test_a_broken_checkpoint_is_named_and_passed_over(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(*ALL_ON, "--output_dir", folder, monkeypatch=monkeypatch) == 0
    with open(folder / "checkpoints" / "step_00000010" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert run("--resume", folder, "--max_steps", "10", monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "warning: skipped a broken checkpoint" in said and "step_00000010/model.safetensors is broken" in said
    assert "resuming from" in said and "(step 5)" in said and differences(whole, folder) == {}


def test_log_lines_that_are_gone_are_missed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, "--max_steps", "5", monkeypatch=monkeypatch) == 0
    (folder / "log.jsonl").unlink()
    assert run("--resume", folder, "--max_steps", "6", monkeypatch=monkeypatch) == 0
    assert "log.jsonl has 0 lines, but had 1 at the checkpoint" in capsys.readouterr().out


def test_the_links_of_the_best_follow_what_is_repeated(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, "--max_steps", "7", monkeypatch=monkeypatch) == 0
    assert run("--resume", folder, "--max_steps", "10", monkeypatch=monkeypatch) == 0
    log, summary = rows(folder / "log.jsonl"), json.loads((folder / "summary.json").read_text())
    for suffix in ("", "_ema"):
        best = max(log, key=lambda row: row[f"acc1{suffix}"])  # the first of equals
        assert find_checkpoint(folder / "checkpoints" / f"best{suffix}")[0].step == best["step"]
        assert summary[f"best_acc1{suffix}_step"] == best["step"]


def test_training_waits_for_the_copy_and_not_for_the_disk(tmp_path, monkeypatch):
    order, save, write = [], Session.save, Session._write

    def saved(self, step, *rest):
        save(self, step, *rest)
        order.append(f"went on at {step}")

    def written(self, contents, links):
        order.append(f"began to write {contents.step}")
        while f"went on at {contents.step}" not in order:
            pass
        write(self, contents, links)
        order.append(f"wrote {contents.step}")

    monkeypatch.setattr(Session, "save", saved)
    monkeypatch.setattr(Session, "_write", written)
    words = [*TINY, "--output_dir", tmp_path / "run", "--checkpoint_every", "1", "--max_steps", "3"]
    assert run(*words, monkeypatch=monkeypatch) == 0  # would hang if training waited
    assert [line for line in order if line.startswith("wrote")] == ["wrote 1", "wrote 2", "wrote 3"]


SOON = [("KILL", 1, 4)]  # signal, processes, hits: one in each place
LATE = [
    ("KILL", 2, 4),
    ("KILL", 1, 20),
    ("KILL", 2, 20),
    ("TERM", 2, 4),
    ("TERM", 1, 4),
    ("USR1", 1, 4),
    ("USR1", 2, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "hits"), [*SOON, *(pytest.param(*each, marks=pytest.mark.proof) for each in LATE)]
)
def test_hit_at_random_moments_it_still_ends_with_the_same_bits(name, processes, hits):
    options = ["--signal", name, "--hits", hits, "--processes", processes]
    done = forked(1, *options, program="tests/faults.py", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{hits} x SIG{name}" in done.stdout and "the same bits as the run that was left alone" in done.stdout
