"""A run's folder: one writer, a finished run is left alone, and only what a run wrote is ever deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from forked import forked
from signals import signal_at
from tiny import ROOT, TINY, rows, run
from tiny_text import TINY_TEXT, run_text

from runtime.checkpoints import find_checkpoint
from runtime.command import resume_command
from runtime.locks import LOCK
from runtime.self_test import differences


def everything(folder):
    """Each file, link and folder below a folder; of files the content and time too."""
    return {
        str(path.relative_to(folder)): path.is_file() and (path.lstat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
    }


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs main.py in a folder and returns its status."""

    def call(*words, folder=tmp_path / "run"):
        return run(*TINY, "--output_dir", folder, *words, monkeypatch=monkeypatch)

    return call


@pytest.mark.parametrize("steps", ["3", "5"], ids=["within an epoch", "after one"])
def test_a_finished_run_started_again_changes_nothing_and_says_so(go, tmp_path, capsys, steps):
    folder = tmp_path / "run"
    assert go("--max_steps", steps, "--resume", "auto") == 0
    before = everything(folder)
    capsys.readouterr()
    for words in (["--resume", "auto"], ["--resume", str(folder)]):
        assert go("--max_steps", steps, *words) == 0
        said = capsys.readouterr().out
        assert f"{folder}: finished at optimizer step {steps}, nothing left to do (acc1 " in said
    assert everything(folder) == before and len(rows(folder / "log.jsonl")) == 1


@pytest.mark.slow
def test_after_a_finished_part_it_goes_on_to_the_same_bits(go, tmp_path):
    for steps in ("3", "3", "7"):
        assert go("--max_steps", steps, "--resume", "auto") == 0
    assert go("--max_steps", "7", folder=tmp_path / "whole") == 0
    assert differences(tmp_path / "whole", tmp_path / "run") == {}


@pytest.mark.parametrize("steps", ["3", "5"])
def test_an_evaluation_that_was_due_is_made(go, tmp_path, steps):
    folder = tmp_path / "run"
    assert go("--max_steps", steps) == 0
    logged, summary = rows(folder / "log.jsonl"), json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()  # as if it had been killed after its last checkpoint
    assert go("--max_steps", steps, "--resume", "auto") == 0
    again = json.loads((folder / "summary.json").read_text())
    assert [row["acc1"] for row in rows(folder / "log.jsonl")] == [row["acc1"] for row in logged]
    assert again["acc1"] == summary["acc1"] is not None and again["step"] == int(steps)


def test_a_finished_text_run_is_left_alone_too_and_gives_an_export_that_is_missing(tmp_path, capsys):
    words = [*TINY_TEXT, "--max_steps", "2", "--output_dir", tmp_path / "run", "--resume", "auto"]
    assert run_text(*words) == 0
    before = everything(tmp_path / "run")
    for _ in range(2):
        assert run_text(*words, "--export_hf", tmp_path / "exported") == 0
        assert "nothing left to do (perplexity" in capsys.readouterr().out
        assert (tmp_path / "exported" / "model.safetensors").exists() and everything(tmp_path / "run") == before


OWN = ["figures/mine.png", "tensorboard/notes.txt", "checkpoints/step_of_mine/weights.pt", "notes.txt"]


@pytest.mark.parametrize("words", [[], ["--resume", "auto"], ["--overwrite"]], ids=str)
def test_foreign_names_are_left_alone_and_take_no_folder(go, tmp_path, words):
    for name in OWN:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    assert go("--max_steps", "1", *words) == 0
    assert go("--max_steps", "1", "--overwrite", "--seed", "1") == 0
    assert [(tmp_path / "run" / name).read_text() for name in OWN] == ["mine"] * len(OWN)


def test_what_a_user_put_beside_a_checkpoint_stays_when_it_goes(go, tmp_path):
    assert go("--max_steps", "1", "--checkpoint_every", "1") == 0
    step = tmp_path / "run" / "checkpoints" / "step_00000001"
    (step / "notes.txt").write_text("mine")
    (step / "plots").mkdir()
    assert go("--max_steps", "4", "--checkpoint_every", "1", "--resume", "auto") == 0
    assert sorted(path.name for path in step.iterdir()) == ["notes.txt", "plots"]
    assert find_checkpoint(tmp_path / "run")[0].step == 4
    for seed in ("2", "3"):  # over it a new run writes a checkpoint of the same name
        assert go("--max_steps", "1", "--overwrite", "--seed", seed) == 0
    assert [path.read_text() for path in step.parent.rglob("notes.txt")] == ["mine"]


@pytest.mark.parametrize("option", ["--finetune", "--decay replay --decay_ledger"])
def test_a_run_that_the_new_one_reads_is_not_replaced_by_it(go, tmp_path, capsys, option):
    assert go("--max_steps", "3") == 0
    before, name = everything(tmp_path / "run"), "decay.jsonl" if "replay" in option else "checkpoints/best"
    assert go("--max_steps", "3", "--overwrite", *option.split(), str(tmp_path / "run" / name)) == 2
    assert f"{name}: is in the run that --overwrite would delete" in capsys.readouterr().err
    assert everything(tmp_path / "run") == before


def test_a_run_is_replaced_by_itself_from_its_own_configuration(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert run(*TINY, "--output_dir", folder, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    words = ["--config", folder / "config.json", "--output_dir", folder, "--overwrite"]
    assert run(*words, monkeypatch=monkeypatch) == 0 and find_checkpoint(folder)[0].step == 2


def test_an_earlier_checkpoint_is_gone_on_from_elsewhere_or_when_the_later_ones_are_given_up(go, tmp_path, capsys):
    assert go("--max_steps", "4", "--checkpoint_every", "2") == 0
    before, words = everything(tmp_path / "run"), ["--resume", tmp_path / "run/checkpoints/step_00000002"]
    assert go("--max_steps", "3", *words) == 2
    assert "step_00000004 is later and would be deleted; give --output_dir" in capsys.readouterr().err
    assert go("--max_steps", "3", *words, folder=tmp_path / "other") == 0
    assert everything(tmp_path / "run") == before
    assert go("--max_steps", "3", *words, "--overwrite") == 0
    assert find_checkpoint(tmp_path / "run")[0].step == find_checkpoint(tmp_path / "other")[0].step == 3


def test_the_same_run_again_elsewhere_stops_where_it_did(go, tmp_path, monkeypatch):
    assert go("--max_steps", "3") == 0
    again = ["--config", tmp_path / "run/config.json", "--output_dir", tmp_path / "again"]
    assert run(*again, monkeypatch=monkeypatch) == 0
    assert differences(tmp_path / "run", tmp_path / "again") == {}


def test_a_broken_checkpoint_is_not_evaluated_as_the_one_before(go, tmp_path, capsys):
    assert go("--max_steps", "4", "--checkpoint_every", "2") == 0
    path = tmp_path / "run/checkpoints/step_00000004/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert go("--eval", "--resume", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert f"{path} is broken" in said and "step_00000002 evaluates the one before it" in said


def test_the_command_that_goes_on_says_each_option_once(monkeypatch):
    words = "main.py --output_dir a --lr 1 --resume=b --overwrite --output-dir=c --resume d".split()
    monkeypatch.setattr(sys, "argv", words)
    assert resume_command("a", 1) == "python main.py --lr 1 --resume auto --output_dir a"


@pytest.mark.parametrize(
    "name", ["config.json", "log.jsonl", "figures/training.png", "tensorboard/events.out.tfevents.1"]
)
@pytest.mark.parametrize("words", [[], ["--resume", "auto"], ["--overwrite"]], ids=str)
def test_a_name_that_it_would_write_and_no_run_wrote_is_refused(go, tmp_path, capsys, name, words):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    before = everything(tmp_path)
    assert go("--max_steps", "1", *words) == 2
    assert f"/run: has a file {name} that no run wrote; move it away" in capsys.readouterr().err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("broken", ["wandb", "model"])
def test_an_old_run_is_replaced_only_when_all_else_has_worked(go, tmp_path, monkeypatch, broken):
    assert go("--max_steps", "1") == 0
    before = everything(tmp_path / "run")
    if broken == "wandb":
        monkeypatch.setattr("wandb.init", lambda **_: (_ for _ in ()).throw(RuntimeError("no login")))
    words = {"wandb": ["--enable_wandb"], "model": ["--model_kwargs", "depth=-1"]}[broken]
    assert go("--max_steps", "1", "--overwrite", *words) == 2
    assert everything(tmp_path / "run") == before


def test_checkpoints_on_another_disk_are_gone_on_from(go, tmp_path, capsys):
    folder, disk = tmp_path / "run", tmp_path / "disk"
    assert go("--max_steps", "3") == 0
    (folder / "checkpoints").rename(disk)
    (folder / "checkpoints").symlink_to(disk)
    assert go("--max_steps", "7", "--resume", "auto") == 0
    assert "resuming from" in capsys.readouterr().out and len(rows(folder / "decay.jsonl")) == 8 * 3
    assert go("--max_steps", "7", folder=tmp_path / "whole") == 0
    assert differences(tmp_path / "whole", folder) == {}


def test_what_a_link_leads_to_is_not_overwritten(go, tmp_path, capsys):
    assert go("--max_steps", "1") == 0
    assert go("--max_steps", "1", folder=tmp_path / "other") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "other" / "checkpoints")
    before = everything(tmp_path)
    assert go("--max_steps", "1", "--overwrite") == 2
    assert "checkpoints is a link; remove it" in capsys.readouterr().err and everything(tmp_path) == before


def test_going_back_forgets_the_summary_of_what_comes_again(go, tmp_path):
    folder = tmp_path / "run"
    assert go("--max_steps", "4", "--checkpoint_every", "2") == 0
    assert json.loads((folder / "summary.json").read_text())["step"] == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.trainer.Trainer._finish", lambda *_: None)  # as if killed before the summary
        words = ["--overwrite", "--resume", folder / "checkpoints" / "step_00000002"]
        assert go(*words, "--max_steps", "4", "--checkpoint_every", "2") == 0
    assert not (folder / "summary.json").exists()
    assert go("--resume", "auto", "--max_steps", "4", "--checkpoint_every", "2") == 0
    assert json.loads((folder / "summary.json").read_text())["step"] == 4


def test_an_export_is_not_repeated_by_an_evaluation(tmp_path, capsys):
    words = [*TINY_TEXT, "--max_steps", "1", "--output_dir", tmp_path / "run", "--export_hf", tmp_path / "exported"]
    assert run_text(*words) == 0
    before = everything(tmp_path / "exported")
    assert run_text("--eval", "--resume", tmp_path / "run") == 0
    assert everything(tmp_path / "exported") == before


def test_ctrl_c_that_is_ignored_stays_ignored(go):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            signal_at(1, "vision.run.ImageTraining._rates", signal.SIGINT, patch)
            assert go("--max_steps", "1", "--log_interval", "1") == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_what_keeps_the_main_process_from_beginning_ends_all_ranks_alike(tmp_path):
    program = tmp_path / "no_login.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport main, wandb\nfrom runtime.errors import exit_status\n"
        "def init(**_):\n    raise RuntimeError('no login')\nwandb.init = init\nsys.exit(exit_status(main.main))\n"
    )
    words = ["--batch_size", "120", "--enable_wandb", "--output_dir", tmp_path / "run"]
    done = forked(2, *TINY, *words, program=program)
    assert done.codes == [2, 2] and done.stderr.count("error: --enable_wandb: no login") == 1
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_evaluated_is_an_error(go, tmp_path, capsys):
    assert go("--eval", "--resume", "auto") == 2
    assert "--eval --resume auto: " in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_error_before_anything_was_written_leaves_no_folder(go, tmp_path):
    assert go("--model_kwargs", "depth=-1", folder=tmp_path / "a" / "b" / "run") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_told_of_the_first(go, tmp_path, capsys):
    folder = tmp_path / "run"
    assert go("--max_steps", "1") == 0
    code = (
        "import sys, time; from types import SimpleNamespace as N; from runtime.locks import _locked; from pathlib "
        "import Path; _locked(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder / LOCK)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        before = everything(folder)
        for words in (["--resume", "auto", "--max_steps", "2"], ["--overwrite"]):
            assert go(*words) == 2
            said = capsys.readouterr().err
            assert (
                f"error: --output_dir {folder}: process {first.pid} on {os.uname().nodename} is writing to it" in said
            )
        assert go("--eval", "--resume", str(folder)) == 0  # who only evaluates may
        (folder / "evaluation.json").unlink()
        assert everything(folder) == before
        first.kill()
    assert go("--resume", "auto", "--max_steps", "2") == 0  # the lock of a process that was killed holds nobody up
    assert not (folder / LOCK).exists()


def test_ctrl_c_saves_and_says_the_command_that_goes_on(go, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as inner:
        signal_at(3, "vision.run.ImageTraining._rates", signal.SIGINT, inner)
        assert go("--log_interval", "1") == 130
    said = capsys.readouterr().err
    assert f"interrupted: SIGINT at optimizer step 3; resume with: python main.py {' '.join(TINY[:2])}" in said
    assert said.rstrip().endswith(f"--resume auto --output_dir {folder}") and not (folder / "REQUEUE").exists()
    assert find_checkpoint(folder)[0].step == 3


SLOW_SAVE = """
import sys, time
sys.path.insert(0, {root!r})
import main
from runtime import session
from runtime.errors import exit_status
write = session.write_checkpoint
def slowly(folder, contents, **named):
    if contents.step > 1:
        print("saving", flush=True)
        time.sleep(60)
    return write(folder, contents, **named)
session.write_checkpoint = slowly
sys.exit(exit_status(main.main))
"""


@pytest.mark.slow
def test_signals_at_once_are_one_and_a_later_one_ends_it_with_the_checkpoint_before_whole(tmp_path):
    program, folder = tmp_path / "slow.py", tmp_path / "run"
    program.write_text(SLOW_SAVE.format(root=str(ROOT)))
    command = [sys.executable, str(program), *TINY, "--checkpoint_every", "1", "--output_dir", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        while process.stdout.readline() != "saving\n":
            assert process.poll() is None
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.poll() is None  # still saving
        time.sleep(3.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130 and "SIGINT again: ended immediately" in process.stderr.read()
    assert find_checkpoint(folder)[0].step == 1


@pytest.mark.slow
def test_ctrl_c_to_both_ranks_saves_once(tmp_path):
    program, folder = tmp_path / "interrupted.py", tmp_path / "run"
    program.write_text(
        f"import os, signal, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport main, vision.run\n"
        "from runtime.errors import exit_status\ncount = vision.run.ImageTraining.after_step\n"
        "def after_step(self, step, loss):\n"
        "    if step == 2:\n        os.kill(os.getpid(), signal.SIGINT)\n    return count(self, step, loss)\n"
        "vision.run.ImageTraining.after_step = after_step\nsys.exit(exit_status(main.main))\n"
    )
    done = forked(2, *TINY, "--batch_size", "120", "--output_dir", folder, program=program)
    assert done.codes == [130, 130] and done.stderr.count("resume with: torchrun --nproc_per_node=2 ") == 1
    assert find_checkpoint(folder)[0].step in (2, 3)


@pytest.mark.parametrize("kind", ["init_from", "run", "full", "file"])
def test_exports_replace_nothing(tmp_path, capsys, kind):
    target = tmp_path / "exported"
    words = [*TINY_TEXT, "--max_steps", "1", "--output_dir", tmp_path / "run", "--export_hf", target]
    if kind == "run":
        words += ["--output_dir", target]
    elif kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "config.json").write_text("{}")
    if kind == "init_from":
        words += ["--eval", "--init_from", target]
    before = everything(tmp_path)
    assert run_text(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --export_hf {target}: ") and said.count("\n") == 1
    assert everything(tmp_path) == before
