"""Twelve updates of each kind of run, step by step beside the published program's (tests/goldens/why_weight_decay).

Its flags are translated, our options read and everything is built as for a run; only weights and batches are its own.
"""

import json
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from texts import ALONE
from tiny_text import task_of
from why_weight_decay import GOLDENS, LANGUAGE, translated

from llama.engine import backward, evaluate, train_steps, weighted_batches
from llama.options import LanguageDecayOptions
from runtime.finite import FiniteGate

TENSORS = load_file(GOLDENS / "language.safetensors")
GOLDEN = json.loads((GOLDENS / "language.json").read_text())
CASES = GOLDEN["cases"]
CLOSE = 1e-6  # relative; leaving decay out changes no figure by less than 1e-5
TRANSPOSED = ("c_attn.weight", "c_fc.weight", "c_proj.weight")  # transformers stores (in, out)


class Update(NamedTuple):
    """What the published program wrote about an update."""

    loss: float
    grad_norm: float
    weight_norm: float
    ema_weight_norm: float
    lr: float


class Gate(FiniteGate):
    """Notes the norm of each gradient before it was clipped."""

    def check(self, step, loss, norm):
        self.norm = float(norm)
        return super().check(step, loss, norm)


@pytest.fixture(autouse=True)
def small_matrices_count(monkeypatch):
    """A net of width 32 has no matrix of 50 eigenvalues, and no strategy would have anything to adapt."""
    monkeypatch.setattr(LanguageDecayOptions, "selection", lambda options, model: {"min_eigenvalues": 1})


@pytest.fixture(scope="module")
def own_words(tmp_path_factory):
    """Words after --: the goldens' model, with a position more because our sequences contain the last target."""
    folder = tmp_path_factory.mktemp("golden")
    model = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 17, "vocab_size": 64}
    model |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0) | {"activation_function": "gelu"}
    model |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "text.txt").write_text("to be or not to be\n" * 50)
    words = ["--model_config", folder / "config.json", "--data_path", folder / "text.txt", "--tokenizer", "chars"]
    return [*words, "--max_length", 17, "--resume", ""]


def build(case, own_words):
    """The run of a case, in float64, from the stored weights."""
    flags = [f"--{name}={value}" for name, value in CASES[case]["options"].items()]
    if case.startswith("resume"):
        flags += ["--init_from=resume", "--ckpt_path=iter=12.pt"]
    task, _ = task_of(*translated(LANGUAGE, [*flags, "--", *map(str, own_words)])[0], alone=ALONE)
    task.stream.close()
    for model in (task.learner.plain.double(), task.learner.averaged.double()):
        load(model, {name.removeprefix("init/"): w for name, w in TENSORS.items() if name.startswith("init/")})
    return task


@torch.no_grad()
def load(model, weights):
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            assert not p.any()
        else:
            stored = weights[name].T if name.endswith(TRANSPOSED) else weights[name]
            p.zero_()[: len(stored)].copy_(stored)


def batch(inputs, targets):
    """Sequences with their last target; both have shape (sequences, 16)."""
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    ids = torch.cat([inputs, targets[:, -1:]], 1).long()
    return {"input_ids": ids, "labels": ids, "bytes": torch.full((len(ids),), inputs.shape[1])}


def norm(model):
    return sum(p.detach().double().square().sum() for p in model.parameters()).sqrt().item()


def updates_of(task, first_step=0):
    """Take the twelve updates."""
    learner, found = task.learner, []
    gate = Gate(learner, ALONE, "stop", 1)
    steps = zip(TENSORS["batches/inputs"], TENSORS["batches/targets"], strict=True)
    batches = weighted_batches(([batch(*micro) for micro in zip(*step, strict=True)] for step in steps), ALONE)

    def after_step(step, loss):
        norms = (gate.norm, norm(learner.plain), norm(learner.averaged))
        found.append(Update(float(loss), *norms, learner.optimizer.param_groups[0]["lr"]))

    add_gradients = backward(task.loss, ALONE.device)
    train_steps(learner, batches, add_gradients, task.rules, first_step, gate, after_step, pytest.fail)
    return found


def resumed(own_words):
    """The run that continues `adam_wd`, with its weights and moments, and a moving average that begins there."""
    before, task = build("adam_wd", own_words), build("resume_tiny_lr", own_words)
    updates_of(before)
    for model in (task.learner.plain, task.learner.averaged):
        model.load_state_dict(before.learner.plain.state_dict())
    task.learner.optimizer.load_state_dict(before.learner.optimizer.state_dict())
    return task


def test_the_first_logits_are_the_published_ones(own_words):
    model = build("adam_wd", own_words).learner.plain
    logits = model(input_ids=batch(TENSORS["eval/inputs"][0], TENSORS["eval/targets"][0])["input_ids"]).logits
    assert torch.allclose(logits[:, :16].float(), TENSORS["eval/first_logits_at_init"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_twelve_updates_are_the_published_ones(case, own_words):
    golden = CASES[case]
    task = resumed(own_words) if case.startswith("resume") else build(case, own_words)
    found = updates_of(task, 12 if case.startswith("resume") else 0)
    for number, (update, theirs) in enumerate(zip(found, golden["updates"], strict=True)):
        names = ("loss", "grad_norm_before_clip", "weight_norm_after", "ema_weight_norm_after", "lr")
        for ours, name in zip(update, names, strict=True):
            assert ours == pytest.approx(theirs[name], rel=CLOSE), (number, name)
    assert sum(update.grad_norm > 1 for update in found) == golden["updates"][-1]["clip_count"]
    for model, weights, loss in (
        (task.learner.plain, golden["final"]["l2"], golden["final"]["val_loss"]),
        (task.learner.averaged, golden["final"]["ema_l2"], golden["final"]["val_loss_ema"]),
    ):
        norms = {name: p.norm().item() for name, p in model.named_parameters() if not name.endswith(".bias")}
        assert norms == pytest.approx(weights, rel=CLOSE)
        batches = [batch(*pair) for pair in zip(TENSORS["eval/inputs"], TENSORS["eval/targets"], strict=True)]
        assert evaluate(model, batches, ALONE, task.loss)["loss"] == pytest.approx(loss, rel=CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]["decayed"]])
def test_the_published_parameters_are_decayed(case, own_words):
    learner = build(case, own_words).learner
    names = {id(p): name for name, p in learner.plain.named_parameters()}
    groups = learner.optimizer.param_groups
    decayed = {names[id(p)] for group in groups if group["static_multiplier"] for p in group["params"]}
    assert decayed == set(CASES[case]["decayed"])


def test_the_tolerance_would_notice_decay_that_is_left_out():
    left_out = [case["left_out"].values() for name, case in CASES.items() if not name.startswith("resume")]
    assert len(left_out) == 6 and min(map(min, left_out)) > 10 * CLOSE
