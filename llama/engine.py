"""Language training steps, and perplexity over every validation token once."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llama.sequences import IGNORED, Batch
from runtime.errors import NonFiniteError
from runtime.finite import FiniteGate
from runtime.learner import Learner
from runtime.metrics import Metric, by_name
from runtime.processes import Ranks
from runtime.steps import Backward, StepRules, autocast, grouped, take_step

METRICS = by_name((
    Metric("perplexity", "validation perplexity", "perplexity", headline=True),
    Metric("perplexity_published", "validation perplexity as published", "as published"),
    Metric("loss", "validation cross-entropy in nats a token", "loss", headline=True),
))  # fmt: skip


@dataclass(frozen=True)
class LossRules:
    """How the loss of sequences is computed."""

    amp: torch.dtype | None = None  # of mixed precision; None for none
    chunked: bool = False  # the model has what `llama.chunked.give_summed_loss` gives it


def shifted(labels: Tensor) -> Tensor:
    """What is to be predicted at each position: the next token; nothing behind the last one."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def loss_sum(model: Any, ids: Tensor, labels: Tensor, rules: LossRules) -> Tensor:
    """Cross-entropy summed over the tokens that count.

    Args:
        ids: Token ids, shape (sequences, length).
        labels: The same, or -100 where nothing is to be predicted.
    """
    targets = shifted(labels)
    with autocast(ids.device, rules.amp):
        if rules.chunked:
            return model(input_ids=ids, targets=targets)
        logits = model(input_ids=ids).logits
    return cross_entropy_sum(logits.flatten(0, 1), targets.flatten())


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in float32, summed over the targets that count."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def count(labels: Tensor) -> Tensor:
    """How many tokens are predicted."""
    return (labels[:, 1:] != IGNORED).sum()


Weighed = tuple[Tensor, Tensor, Tensor]  # ids, labels, and the share of one token of the step's loss


def weighed(steps: Iterable[list[Batch]], ranks: Ranks) -> Iterator[Weighed]:
    """Micro-batches with the share of one token of the step's loss, so that each token of all ranks counts the same.

    Args:
        steps: The micro-batches of each optimizer step.
        ranks: The process group; gradients are means over it.
    """
    for micro_batches in steps:
        tokens = torch.stack([count(batch["labels"]) for batch in micro_batches]).sum().to(ranks.device, torch.float32)
        share = ranks.count / ranks.sum(tokens).clamp_min(1)
        for batch in micro_batches:
            yield batch["input_ids"], batch["labels"], share


def backward(rules: LossRules, device: torch.device) -> Backward:
    """What adds a micro-batch's share to the gradients and returns its share of the step's loss."""

    def add_gradients(learner: Learner, batch: Weighed, step: int, micro_step: int) -> Tensor:
        ids, labels, share = batch
        ids, labels = ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = loss_sum(learner.model, ids, labels, rules) * share
        learner.scaler.scale(loss).backward()
        return loss.detach()

    return add_gradients


def train_steps(
    learner: Learner,
    batches: Iterable[Weighed],
    add_gradients: Backward,
    rules: StepRules,
    first_step: int,
    gate: FiniteGate,
    after_step: Callable[[int, Tensor | None], bool | None],
    on_bad_step: Callable[[int], None],
) -> None:
    """Take optimizer steps until the batches are used up; arguments as in `take_step` and `engine.train_one_epoch`."""
    learner.model.train()
    for step, micro_batches in enumerate(grouped(batches, rules.accumulate), first_step):
        loss = take_step(learner, micro_batches, add_gradients, rules, step, gate, on_bad_step)
        if after_step(step + 1, loss):
            return


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], ranks: Ranks, rules: LossRules) -> dict[str, float]:
    """Mean cross-entropy over all validation tokens of all ranks, and the perplexity.

    `perplexity_published` follows the published program: on each rank the sum of batch means divided by their number
    plus 1, averaged over ranks; it is too low, and depends on the size of batches.

    Raises:
        NonFiniteError: If the loss is not finite.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)  # loss, tokens, batch means, batches with tokens
    for batch in batches:
        ids, labels = batch["input_ids"].to(ranks.device), batch["labels"].to(ranks.device)
        loss, tokens = loss_sum(model, ids, labels, rules).double(), count(labels)
        sums += torch.stack([loss, tokens.double(), loss / tokens.clamp_min(1), (tokens > 0).double()])
    model.train(was_training)
    published = (ranks.sum(sums[2] / (sums[3] + 1)) / ranks.count).item()
    loss, tokens, _, _ = ranks.sum(sums).tolist()
    if not math.isfinite(loss):
        raise NonFiniteError(f"the validation loss is {loss:g}")
    mean = loss / tokens
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "perplexity_published": perplexity(published),
        "eval_tokens": tokens,
    }


def perplexity(loss: float) -> float:
    """exp(loss), at most the largest float."""
    return math.exp(min(loss, 700.0))
