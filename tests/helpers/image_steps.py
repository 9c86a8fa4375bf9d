"""Small vision steps in float64: a learner, rules, batches, and training with them."""

import torch
from torch import nn

from engine import PLAIN, ImageRules, train_one_epoch
from runtime.finite import FiniteGate
from runtime.learner import Learner
from runtime.processes import Ranks
from runtime.schedules import Schedules

ALONE = Ranks(0, 1, torch.device("cpu"))


def schedules(**changes):
    values = {"total_steps": 101, "warmup_steps": 10, "lr": 1.0, "min_lr": 0.1} | changes
    return Schedules(weight_decay=0.2, weight_decay_end=0.1, **values)


def learner(scaler=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, model, None, optimizer, torch.amp.GradScaler("cpu", enabled=scaler))


def rules(**changes):
    steady = schedules(warmup_steps=0, lr=0.1, min_lr=0.1)
    values = {
        "accumulate": 1,
        "clip_grad": None,
        "precision": PLAIN,
        "seed": 0,
        "mixup": None,
    } | changes
    return ImageRules(criterion=nn.CrossEntropyLoss(), schedules=steady, **values)


def batches(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count * size, 3, 2, 2, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (count * size,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def train(made, steps_batches, step_rules, policy="stop"):
    """Steps taken and their losses (None where the update was left out), and the steps that were bad."""
    steps, bad = [], []
    gate = FiniteGate(made, ALONE, policy, 1)

    def after_step(step, loss):
        steps.append((step, None if loss is None else loss.item()))

    train_one_epoch(made, steps_batches, step_rules, ALONE, 0, gate, after_step, bad.append)
    return steps, bad
