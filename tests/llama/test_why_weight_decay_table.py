"""The table of docs/why_weight_decay.md: what each printed command would train, and how."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from test_why_weight_decay_models import PARAMETERS
from tiny import ROOT
from why_weight_decay import commands, our_options

import llama.models
import optim_factory
import runtime.optimizers
from llama.options import LanguageDecayOptions, LanguageOptimizerOptions
from runtime.by_name import freeze
from runtime.schedules import schedules_of

PAGE = ROOT / "docs" / "why_weight_decay.md"
HEADER = (
    "group", "commands", "model", "parameters", "optimizer", "learning rate", "cosine ends", "decay", "decayed",
    "steps", "tokens per step", "precision",
)  # fmt: skip


@pytest.fixture
def on_meta(monkeypatch):
    """Models without memory: they cannot be probed, and no fused kernel takes them."""
    monkeypatch.setattr(llama.models, "require_causal", lambda *_: None)
    monkeypatch.setattr(runtime.optimizers, "FUSED", ())
    with torch.device("meta"):
        yield


def row_of(group):
    """A row of the table: a cell has what the group's commands differ by, in their order."""
    options = [our_options(command.words) for command in commands() if command.group == group]
    rows = [cells(each) for each in options]
    merged = [", ".join(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    return [group, str(len(rows)), *merged]


def cells(options):
    optimizer, text = options.optimizer, options.text
    schedules = schedules_of(optimizer, options.decay, optimizer.num_training_steps, optimizer.warmup_steps)
    sequences = text.micro_steps(1) * text.batch_size
    betas = " ".join(map(str, optimizer.opt_betas))
    ends = schedules.lr_at(10**9)
    parameters, decayed = trained(options.model, optimizer.freeze, options.decay.decay_only)
    return [
        Path(options.model.model_config).stem,
        parameters,
        f"{optimizer.optimizer}, betas {betas}" if betas else f"{optimizer.optimizer} {optimizer.momentum:g}",
        f"{optimizer.lr:g}" if optimizer.lr == ends else f"{optimizer.lr:g} to {ends:g}",
        "-" if optimizer.lr == ends else f"{first_step_at(schedules, ends):,}",
        f"l2 {optimizer.l2:g}" if optimizer.l2 else f"{options.decay.weight_decay:g}",
        decayed,
        f"{optimizer.num_training_steps:,}",
        f"{sequences * text.max_length:,}",
        {"bf16": "bf16", "none": "float32"}[options.run.amp],
    ]


def first_step_at(schedules, rate):
    """The first optimizer step that has the rate at which the cosine ends."""
    low, high = schedules.warmup_steps, 10**6
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if schedules.lr_at(middle) == rate else (middle + 1, high)
    return low


@cache
def trained(model_options, frozen, decay_only):
    """Trainable parameters; decayed tensors of all trainable ones."""
    model = llama.models.build_model(model_options)
    freeze(model, frozen)
    decay = LanguageDecayOptions(decay_only=decay_only)
    optimizer = optim_factory.build_optimizer(LanguageOptimizerOptions(), decay, model)
    held = [(group["static_multiplier"], p) for group in optimizer.param_groups for p in group["params"]]
    tensors = sum(bool(static) for static, _ in held)
    return f"{sum(p.numel() for _, p in held):,}", f"{tensors} of {len(held)} tensors"


def test_the_pages_table_is_what_the_commands_become(on_meta):
    groups = dict.fromkeys(command.group for command in commands())
    rows = [HEADER, ["---"] * len(HEADER), *map(row_of, groups)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    shown = re.search(r"<!-- table -->\n(.*)\n<!-- /table -->", PAGE.read_text(), re.S)
    assert shown and shown[1] == table, table
    for row in rows[2:]:
        assert row[3] in {f"{count:,}" for count in PARAMETERS.values()}
