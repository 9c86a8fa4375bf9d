"""Runs of one seed are pairs: the same initial weights, batches and random numbers, whatever the strategy of decay."""

import hashlib
import pickle
import random
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, run
from tiny_text import TINY_TEXT, changed_config, run_text

import alphadecay
import main
import main_llama
from comparison.grid_file import read_yaml
from comparison.options import PRESETS
from comparison.programs import words_of

STEPS = 4
STRATEGIES = read_yaml(PRESETS["quick"])["strategies"] | {
    "alphadecay frozen": {"decay": "alphadecay", "decay_frozen": True},
    "adadecay per entry": {"decay": "adadecay", "adadecay_scope": "entry"},
}
RANDOM = {
    "digits": [
        *"--batch_size 60 --model_ema false --model_ema_eval false".split(),
        *"--aa rand-m9-mstd0.5-inc1 --mixup 0.8 --cutmix 1.0 --drop_path 0.2".split(),
        *"--model_kwargs patch_size=8 embed_dim=64 depth=2 num_heads=2 proj_drop_rate=0.1 attn_drop_rate=0.1".split(),
    ],
    "text": ["--shuffle_buffer", "50"],  # attention drops out by the model's config
}
EVERYTHING = {"initial weights", "batches", "random states"}


@dataclass
class Seen:
    """What training saw, as hashes: one a step, but for the initial weights."""

    weights: list[str] = field(default_factory=list)  # before each step
    batches: list[str] = field(default_factory=list)  # as the model and, for images, the loss get them
    random: list[str] = field(default_factory=list)  # of torch, NumPy and Python


def sha(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().numpy().tobytes() if isinstance(part, torch.Tensor) else pickle.dumps(part))
    return digest.hexdigest()


def watched(model, seen):
    """The model, whose training steps are noted before they are taken."""

    def note(module, args, named):
        if module.training and torch.is_grad_enabled():
            seen.weights.append(sha(*module.state_dict().values()))
            seen.batches.append(sha(*args, *(named[name] for name in sorted(named))))
            seen.random.append(sha(torch.get_rng_state(), np.random.get_state(), random.getstate()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return model


def watched_loss(built, seen):
    """The loss, whose targets are noted too: what mixup makes of the labels."""
    criterion, mixup = built

    def noted(outputs, targets):
        seen.batches.append(sha(targets))
        return criterion(outputs, targets)

    return noted, mixup


def train(domain, strategy, seed):
    """What a run of a few steps saw."""
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        shared = ["--output_dir", folder + "/run", "--seed", seed, "--max_steps", STEPS, "--decay_interval", 2]
        words = [*RANDOM[domain], *shared, "--decay", "uniform", *words_of(strategy)]
        program = main if domain == "digits" else main_llama
        build, build_loss = program.build_model, main.build_loss
        patch.setattr(program, "build_model", lambda *args, **named: watched(build(*args, **named), seen))
        if domain == "digits":
            patch.setattr(main, "build_loss", lambda *args: watched_loss(build_loss(*args), seen))
            assert run(*TINY, *words, monkeypatch=patch) == 0
        else:
            config = changed_config(Path(folder) / "config", attention_dropout=0.1)
            assert run_text(*TINY_TEXT, "--model_config", config, *words) == 0
    assert len(set(seen.weights)) == len(set(seen.random)) == STEPS  # dropout draws at every step
    assert len(set(seen.batches)) == STEPS * (2 if domain == "digits" else 1)
    return seen


@cache
def of(domain, name, seed=3):
    return train(domain, STRATEGIES[name], seed)


def unlike(a, b):
    """In what two runs are no pair."""
    pairs = {
        "initial weights": (a.weights[0], b.weights[0]),
        "batches": (a.batches, b.batches),
        "random states": (a.random, b.random),
    }
    return {what for what, (one, other) in pairs.items() if one != other}


@pytest.fixture(params=["digits", "text"])
def domain(request):
    return request.param


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "uniform"])
def test_the_same_seed_means_the_same_weights_batches_and_random_numbers(domain, name):
    strategy, uniform = of(domain, name), of(domain, "uniform")
    assert unlike(strategy, uniform) == set()
    assert strategy.weights[-1] != uniform.weights[-1]  # it is another strategy all the same


def test_another_seed_differs_in_all_of_them_at_every_step(domain):
    one, other = of(domain, "uniform"), of(domain, "uniform", seed=4)
    assert unlike(one, other) == EVERYTHING
    for a, b in ((one.weights, other.weights), (one.batches, other.batches), (one.random, other.random)):
        assert not set(a) & set(b)


def test_the_same_run_again_is_the_same(domain):
    again = train(domain, STRATEGIES["alphadecay"], 3)
    assert again == of(domain, "alphadecay")


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), np.random.rand, random.random], ids=["torch", "numpy", "python"]
)
def test_a_strategy_that_draws_random_numbers_of_the_run_is_caught(domain, monkeypatch, draw):
    measure = alphadecay.AlphaDecay._measure

    def drawing(self):
        draw()
        return measure(self)

    monkeypatch.setattr(alphadecay.AlphaDecay, "_measure", drawing)
    found = unlike(train(domain, STRATEGIES["alphadecay"], 3), of(domain, "uniform"))
    assert "random states" in found and "initial weights" not in found


def test_a_strategy_that_changes_initial_weights_is_caught(domain, monkeypatch):
    attach = alphadecay.AlphaDecay.__init__

    def scaling(self, model, *args, **named):
        attach(self, model, *args, **named)
        with torch.no_grad():
            next(model.parameters()).mul_(2)

    monkeypatch.setattr(alphadecay.AlphaDecay, "__init__", scaling)
    assert unlike(train(domain, STRATEGIES["alphadecay"], 3), of(domain, "uniform")) == {"initial weights"}
