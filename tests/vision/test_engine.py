"""Training steps and evaluation."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from image_steps import ALONE, batches, learner, rules, schedules, train
from recipes import block_model
from torch import nn

import alphadecay
from engine import backward, evaluate, train_one_epoch
from runtime.decay_options import DecayOptions
from runtime.finite import FiniteGate
from runtime.moving_average import build_ema
from runtime.processes import Ranks
from runtime.run_options import EmaOptions
from runtime.steps import grouped
from runtime.trainer import applied_decay
from vision.options import VisionOptimizerOptions
from vision.run import build_schedules


@pytest.mark.parametrize(("step", "lr"), [(0, 0.1), (8, 0.9), (9, 1.0), (10, 1.0), (55, 0.55), (100, 0.1), (200, 0.1)])
def test_learning_rate(step, lr):
    assert schedules().lr_at(step) == pytest.approx(lr)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.2), (50, 0.15), (100, 0.1)])
def test_decay_follows_a_cosine(step, decay):
    assert schedules().weight_decay_at(step) == pytest.approx(decay)


def test_schedules_are_counted_in_steps_of_the_epochs():
    of_epochs = build_schedules(VisionOptimizerOptions(epochs=10, warmup_epochs=2), DecayOptions(), steps_per_epoch=7)
    assert (of_epochs.total_steps, of_epochs.warmup_steps) == (70, 14)
    of_steps = build_schedules(VisionOptimizerOptions(epochs=10, warmup_steps=3), DecayOptions(), steps_per_epoch=7)
    assert (of_steps.total_steps, of_steps.warmup_steps) == (70, 3)


@pytest.mark.parametrize("total", [1, 2])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_schedules_of_one_step_are_finite(total, warmup):
    rates = [schedules(total_steps=total, warmup_steps=warmup).lr_at(step) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)


def test_accumulation_does_not_change_the_steps():
    whole, parts = learner(), learner()
    steps, _ = train(whole, batches(3, 8), rules())
    in_parts, _ = train(parts, batches(12, 2), rules(accumulate=4))
    assert [s for s, _ in steps] == [1, 2, 3] and steps == [(s, pytest.approx(loss)) for s, loss in in_parts]
    for a, b in zip(whole.plain.parameters(), parts.plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped_without_mixed_precision_too():
    made = learner()
    before = [p.detach().clone() for p in made.plain.parameters()]
    train(made, batches(1, 8), rules(clip_grad=1e-3))
    moved = torch.cat([(p - q).flatten() for p, q in zip(made.plain.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_gradients_are_clipped_at_their_true_size_under_a_scaler_too():
    scaled, plain = learner(scaler=True), learner()
    for made in (scaled, plain):
        train(made, batches(3, 8), rules(clip_grad=0.1))
    for a, b in zip(scaled.plain.parameters(), plain.plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_follows_the_weights_of_each_step():
    made = learner()
    options = EmaOptions(model_ema=True, model_ema_decay=0.9, model_ema_warmup=True)
    made = replace(made, ema=build_ema(options, made.plain))
    expected, gate = [p.detach().clone() for p in made.plain.parameters()], FiniteGate(made, ALONE, "stop", 1)

    def after_step(step, _):
        share = min(0.9, 1 - step ** (-2 / 3))
        for average, p in zip(expected, made.plain.parameters(), strict=True):
            average.lerp_(p.detach(), 1 - share)

    train_one_epoch(made, batches(5, 8), rules(), ALONE, 0, gate, after_step, lambda _: None)
    for average, ours in zip(expected, made.ema.module.parameters(), strict=True):
        torch.testing.assert_close(ours, average)


def test_each_micro_step_of_each_rank_is_mixed_by_numbers_of_its_own():
    def drawn():
        numbers = []
        mixing = rules(accumulate=2, mixup=lambda *pair: numbers.append(np.random.rand()) or pair)
        for rank, step, micro_step in product((0, 1), (0, 1), (0, 1)):
            add_gradients = backward(mixing, Ranks(rank, 2, torch.device("cpu")))
            add_gradients(learner(), batches(1, 8)[0], step, micro_step)
        return numbers

    found = drawn()
    assert len(set(found)) == 8 and drawn() == found


def test_an_incomplete_group_of_micro_batches_is_dropped():
    assert list(grouped(range(7), 3)) == [[0, 1, 2], [3, 4, 5]]


class Fixed(nn.Module):
    """Answers with the logits that are put in as images."""

    def forward(self, images):
        return images.flatten(1)


def test_evaluation_counts_each_image_once_whatever_the_batches():
    logits = torch.eye(10)[[0, 1, 2, 3, 4, 5, 6]] * 5
    labels = torch.tensor([0, 1, 2, 3, 9, 9, 9])
    expected = nn.functional.cross_entropy(logits, labels).item()
    for size in (1, 3, 7):
        pairs = zip(logits.view(-1, 1, 1, 10).split(size), labels.split(size), strict=True)
        found = evaluate(Fixed(), pairs, ALONE)
        assert found["acc1"] == pytest.approx(400 / 7) and found["loss"] == pytest.approx(expected, rel=1e-6)


def test_evaluation_is_in_its_own_mode_and_leaves_the_mode_as_it_was():
    for training in (True, False):
        model, seen = Fixed().train(training), []
        model.register_forward_pre_hook(lambda module, _, seen=seen: seen.append(module.training))
        evaluate(model, [(torch.randn(2, 1, 1, 3), torch.tensor([0, 1]))], ALONE)
        assert seen == [False] and model.training == training


def test_steps_are_taken_in_training_mode():
    made, seen = learner(), []
    made.plain.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    made.plain.eval()
    train(made, batches(2, 8), rules())
    assert seen == [True, True]


def test_the_applied_decay_is_a_mean_over_what_is_decayed_by_parameters():
    model = block_model()
    optimizer = torch.optim.AdamW(alphadecay.param_groups(model, 0.1))
    schedule = alphadecay.AlphaDecay(model, optimizer)
    schedule.refresh()
    decayed = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    decays = {name: 0.1 * schedule.multipliers.get(name.removesuffix(".weight"), 1.0) for name in decayed}
    sizes = {name: p.numel() for name, p in decayed.items()}
    found = applied_decay(schedule)
    assert found["weight_decay_mean"] == pytest.approx(
        sum(sizes[name] * decays[name] for name in sizes) / sum(sizes.values())
    )
    assert (found["weight_decay_min"], found["weight_decay_max"]) == (min(decays.values()), max(decays.values()))
    norm = torch.cat([p.detach().flatten() for p in decayed.values()]).norm()
    assert found["weight_norm"] == pytest.approx(float(norm), rel=1e-5)
