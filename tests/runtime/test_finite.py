"""Loss and gradients that are not finite: found before they do harm, on all ranks alike, traced and written down."""

import json
import math
from dataclasses import replace

import pytest
import torch
from forked import forked
from image_steps import ALONE, batches, learner, rules, train
from photos import class_folders
from test_processes import torchrun
from tiny import ROOT, TINY, rows, run
from torch import nn

from engine import backward, train_one_epoch
from runtime.checkpoints import find_checkpoint
from runtime.errors import NonFiniteError
from runtime.finite import FiniteGate, traced
from runtime.learner import Learner, require_finite
from runtime.processes import Ranks
from runtime.run_options import POLICIES
from runtime.self_test import differences
from runtime.steps import find_bad_values
from vision.loaders import SeededImages

RUN = [*TINY, "--batch_size", "120", "--update_freq", "2", "--max_steps", "8"]  # 5 optimizer steps an epoch


def weights(made):
    return [p.detach().clone() for p in made.plain.parameters()]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def poisoned(count, *bad, value=math.nan):
    made = batches(count, 8)
    for index in bad:
        made[index][0][3, 0, 0, 0] = value
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_does_not_happen(value):
    made = learner()
    before = weights(made)
    steps, bad = train(made, poisoned(1, 0, value=value), rules())
    assert steps == [(1, None)] and bad == [0] and same(weights(made), before)


def test_what_comes_after_a_skipped_step_is_as_if_its_batch_had_not_been():
    skipping, without = learner(), learner()
    steps, bad = train(skipping, poisoned(4, 1), rules(), policy="skip")
    train(without, [batch for i, batch in enumerate(poisoned(4, 1)) if i != 1], rules())
    assert bad == [1] and [loss is None for _, loss in steps] == [False, True, False, False]
    assert same(weights(skipping), weights(without))


class OtherRankIsBad(Ranks):
    """One of two processes; the other's numbers are not finite."""

    def any(self, flag):
        return torch.ones_like(flag)


def test_a_step_that_another_rank_leaves_out_is_left_out_here_too():
    made, bad = learner(), []
    before, gate = weights(made), FiniteGate(made, OtherRankIsBad(0, 2, ALONE.device), "skip", 1)
    train_one_epoch(made, batches(1, 8), rules(), ALONE, 0, gate, lambda *_: None, bad.append)
    assert bad == [0] and same(weights(made), before)


def test_a_skipped_step_leaves_running_statistics_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).double()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    made = Learner(model, model, None, torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    train(made, poisoned(1, 0), rules(), policy="skip")
    assert same(model.buffers(), nn.BatchNorm2d(3).double().buffers())


def fused(optimizer=torch.optim.SGD):
    made = learner()
    return replace(made, optimizer=optimizer(made.plain.parameters(), lr=0.1, fused=True))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_a_late_gate_keeps_the_weights_until_the_host_looks(monkeypatch, optimizer):
    monkeypatch.setattr("runtime.finite.host_runs_ahead", lambda device: True)  # as on a GPU
    made, stopped = fused(optimizer), fused(optimizer)
    gate = FiniteGate(made, ALONE, "stop", every=4)
    taken = []

    def stop(step):
        raise ArithmeticError(step)

    with pytest.raises(ArithmeticError, match="2"):  # said at step 4, of the first
        train_one_epoch(made, poisoned(8, 2, 3), rules(), ALONE, 0, gate, lambda step, _: taken.append(step), stop)
    train(stopped, poisoned(8, 2)[:2], rules())
    assert taken == [1, 2, 3] and same(weights(made), weights(stopped))  # steps 3 and 4 changed nothing
    assert not hasattr(made.optimizer, "found_inf")


def test_only_a_gate_that_stops_and_an_optimizer_that_can_be_told_are_late(monkeypatch):
    monkeypatch.setattr("runtime.finite.host_runs_ahead", lambda device: True)
    late = [FiniteGate(made, ALONE, policy, 4).deferred for made in (learner(), fused()) for policy in POLICIES]
    assert late == [False, False, False, True, False, False]


class Breaks(nn.Module):
    """Gives values that are not finite, or gradients."""

    def __init__(self, how):
        super().__init__()
        self.how, self.scale = how, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        if self.how == "output":
            return x * self.scale / 0
        return x * self.scale + (x * 0 * self.scale).sqrt()  # the root's slope at 0 is infinite


@pytest.mark.parametrize(("how", "where"), [("output", "the output of 2"), ("gradient", "the gradient of 2")])
def test_the_first_module_that_is_not_finite_is_found(how, where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8).double(), Breaks(how), nn.Linear(8, 3).double())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    made = Learner(model, model, None, torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    finding = find_bad_values(made, batches(2, 8), backward(rules(accumulate=2), ALONE), 0)
    assert str(finding) == where and finding.micro_step == 0


def test_the_samples_at_fault_are_found():
    made = learner()
    found = find_bad_values(made, [*batches(1, 8), *poisoned(1, 0)], backward(rules(accumulate=2), ALONE), 0)
    assert (str(found), found.micro_step, found.samples) == ("the input of 0", 1, [3])


def test_large_weights_are_finite():
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, 3e38)  # their sum is not
    require_finite(model, 1)
    nn.init.constant_(model.weight, math.inf)
    with pytest.raises(NonFiniteError, match="weight holds values that are not finite after optimizer step 1"):
        require_finite(model, 1)


def test_a_step_that_was_fine_has_no_finding():
    made = learner()
    finding = find_bad_values(made, batches(1, 8), backward(rules(), ALONE), 0)
    assert finding.module == "" and str(finding) == "nothing, when the step was repeated"
    with traced(made.plain, 0, 8):
        pass
    assert not any(module._forward_hooks for module in made.plain.modules())


def poison_images(monkeypatch, *places):
    """Images at some (epoch, place in the epoch) are not numbers; a step has 240 places."""
    real = SeededImages.__getitem__

    def poisoned_item(self, key):
        image, *rest = real(self, key)
        return (image * math.nan if key[:2] in places else image, *rest)

    monkeypatch.setattr(SeededImages, "__getitem__", poisoned_item)


def test_stopping_names_module_and_image_and_writes_them_down(tmp_path, monkeypatch, capsys):
    poison_images(monkeypatch, (0, 240 * 2 + 7))
    folder = tmp_path / "run"
    assert run(*RUN, "--output_dir", folder, "--checkpoint_every", "1", monkeypatch=monkeypatch) == 3
    said = capsys.readouterr().err
    (row,) = rows(folder / "bad_steps.jsonl")
    (found,) = row["ranks"]
    assert (row["step"], row["action"], found["module"]) == (2, "stop", "patch_embed.proj")
    assert len(found["samples"]) == 2 and len(found["samples"][0]) == 120
    # The image and the one it was mixed with.
    assert found["suspects"] == [found["samples"][0][7], found["samples"][0][112]]
    assert f"at optimizer step 2: first in the input of patch_embed.proj, sample {found['suspects'][0]}" in said
    assert find_checkpoint(folder)[0].step == 2


def test_files_are_named_where_images_have_them(tmp_path, monkeypatch):
    for part in ("train", "val"):
        class_folders(tmp_path / part, classes=2, images=8)
    poison_images(monkeypatch, (0, 3))
    words = ["--data_set", "image_folder", "--data_path", tmp_path / "train", "--eval_data_path", tmp_path / "val"]
    words += ["--batch_size", "8", "--mixup", "0", "--cutmix", "0", "--output_dir", tmp_path / "run"]
    assert run(*TINY, *words, monkeypatch=monkeypatch) == 3
    (suspect,) = rows(tmp_path / "run" / "bad_steps.jsonl")[0]["ranks"][0]["suspects"]
    assert (ROOT / suspect).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_going_on_after_bad_steps_is_counted_and_resumes_exactly(tmp_path, monkeypatch, capsys, policy):
    poison_images(monkeypatch, (0, 240 * 2 + 7), (1, 240 + 9))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = [*RUN, "--on_nonfinite", policy, "--checkpoint_every", "2"]
    assert run(*words, "--output_dir", whole, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert "warning: loss or gradient not finite at optimizer step 2" in said and "(2 so far)" in said
    assert ("back to the weights of step 2" in said) == (policy == "rollback")
    assert [row["bad_steps"] for row in rows(whole / "log.jsonl")] == [1, 2]
    assert json.loads((whole / "summary.json").read_text())["bad_steps"] == 2
    assert [row["step"] for row in rows(whole / "bad_steps.jsonl")] == [2, 6]
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["loss"]) for row in rows(whole / "log.jsonl"))
    for stop in ("3", "8"):
        more = ["--resume", "auto", "--output_dir", parts, "--max_steps", stop]
        assert run(*words, *more, monkeypatch=monkeypatch) == 0
    assert differences(whole, parts) == {}


def test_a_rollback_before_the_first_checkpoint_goes_back_to_the_beginning(tmp_path, monkeypatch, capsys):
    poison_images(monkeypatch, (0, 240 + 7))
    words = ["--on_nonfinite", "rollback", "--output_dir", tmp_path / "run", "--max_steps", "3"]
    assert run(*RUN, *words, monkeypatch=monkeypatch) == 0
    assert "step 1: first in the input of patch_embed.proj, sample" in (said := capsys.readouterr().out)
    assert "back to the weights of step 0" in said


def test_more_bad_steps_than_allowed_end_the_run(tmp_path, monkeypatch, capsys):
    poison_images(monkeypatch, *((0, 240 * step) for step in range(5)))
    words = ["--on_nonfinite", "skip", "--max_nonfinite", "2", "--output_dir", tmp_path / "run"]
    assert run(*RUN, *words, monkeypatch=monkeypatch) == 3
    assert "such steps: 3, more than --max_nonfinite 2" in capsys.readouterr().err
    assert len(rows(tmp_path / "run" / "bad_steps.jsonl")) == 3


def test_a_validation_loss_that_is_not_finite_is_not_logged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.nn.functional.cross_entropy", lambda *_, **__: torch.tensor(math.nan))
    assert run(*TINY, "--output_dir", tmp_path / "run", monkeypatch=monkeypatch) == 3
    assert "stopped: the validation loss is nan" in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


POISON_RANK_1 = """
import math, sys
sys.path.insert(0, {root!r})
import main
from vision.loaders import SeededImages
from runtime.errors import exit_status
real = SeededImages.__getitem__
def poisoned(self, key):
    image, *rest = real(self, key)
    return (image * math.nan if key[:2] == (0, 240 + 150) else image, *rest)  # step 1, the second rank's half
SeededImages.__getitem__ = poisoned
sys.exit(exit_status(main.main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_one_rank_meets_all_ranks_leave_out(tmp_path, policy):
    program, folder = tmp_path / "poison.py", tmp_path / "run"
    program.write_text(POISON_RANK_1.format(root=str(ROOT)))
    words = [*TINY, "--batch_size", "120", "--max_steps", "4", "--on_nonfinite", policy, "--output_dir", folder]
    done = forked(2, *words, program=program)
    (row,) = rows(folder / "bad_steps.jsonl")
    assert row["step"] == 1 and [bool(found["suspects"]) for found in row["ranks"]] == [False, True]
    if policy == "stop":
        assert done.codes == [3, 3] and done.stderr.count("stopped: ") == 1
    else:
        assert done.returncode == 0 and rows(folder / "log.jsonl")[-1]["bad_steps"] == 1


DIES_ONCE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main, vision.run
from runtime.errors import exit_status
count = vision.run.ImageTraining.after_step
def after_step(self, step, loss):
    if step == 7 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return count(self, step, loss)
vision.run.ImageTraining.after_step = after_step
sys.exit(exit_status(main.main))
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_rank_was_killed_from_its_last_checkpoint(tmp_path):
    program = tmp_path / "dies_once.py"
    program.write_text(DIES_ONCE.format(root=str(ROOT)))
    words = [*TINY, "--batch_size", "120", "--resume", "auto", "--output_dir"]
    assert forked(2, *words, tmp_path / "whole").returncode == 0
    done = torchrun(2, *words, tmp_path / "hit", program=program, launch=["--max-restarts=1"])
    assert done.returncode == 0 and "(step 5)" in done.stdout
    assert differences(tmp_path / "whole", tmp_path / "hit") == {}


@pytest.mark.slow
def test_a_rollback_of_a_run_continued_elsewhere_finds_the_weights_it_began_with(tmp_path, monkeypatch, capsys):
    assert run(*RUN, "--output_dir", tmp_path / "first", "--max_steps", "1", monkeypatch=monkeypatch) == 0
    poison_images(monkeypatch, (0, 240 + 7))
    words = ["--resume", tmp_path / "first", "--output_dir", tmp_path / "then", "--on_nonfinite", "rollback"]
    assert run(*words, "--max_steps", "3", monkeypatch=monkeypatch) == 0
    assert "back to the weights of step 1" in capsys.readouterr().out
