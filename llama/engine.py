"""Language training steps, and the perplexity over all validation tokens, each counted once."""

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

RAW_METRICS = (
    Metric("perplexity", "validation perplexity", "perplexity", headline=True),
    Metric("perplexity_published", "validation perplexity as published", "as published"),
    Metric("loss", "validation cross-entropy in nats per token", "loss", headline=True),
    Metric("bits_per_byte", "validation cross-entropy in bits per byte", "bits per byte"),
)  # validation metrics of the raw weights
TRAIN_LOSS = Metric(
    "train_eval_loss", "training cross-entropy in nats per token", "training loss", needs=("train_eval_tokens",)
)
METRICS = by_name(metric for raw in (*RAW_METRICS, TRAIN_LOSS) for metric in (raw, raw.averaged()))  # and of the EMA


@dataclass(frozen=True)
class LossRules:
    """The rules for computing the loss of sequences."""

    amp: torch.dtype | None = None  # dtype of mixed precision; None: float32
    chunked: bool = False  # the model has the forward pass of `llama.chunked.give_summed_loss`


def next_token_targets(labels: Tensor) -> Tensor:
    """The target at each position: the next label; -100 (none) at the last position.

    Labels and result are int64 of shape (sequences, length).
    """
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def loss_sum(model: Any, ids: Tensor, labels: Tensor, rules: LossRules) -> Tensor:
    """Cross-entropy summed over all targets, a float32 scalar.

    Args:
        model: Gives logits of shape (sequences, length, vocabulary) or, if the loss is chunked, the sum itself.
        ids: Token ids, int64, shape (sequences, length).
        labels: The same, but -100 at positions that are not predicted.
        rules: How the loss is computed.
    """
    targets = next_token_targets(labels)
    with autocast(ids.device, rules.amp):
        if rules.chunked:
            return model(input_ids=ids, targets=targets)
        logits = model(input_ids=ids).logits
    return cross_entropy_sum(logits.flatten(0, 1), targets.flatten())  # (tokens, vocabulary), (tokens,)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[target] over targets that are not -100, a float32 scalar.

    As `torch.nn.functional.cross_entropy`. Logits have shape (tokens, vocabulary), targets (tokens,) and dtype int64.
    """
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def count_targets(labels: Tensor) -> Tensor:
    """Number of predicted tokens, an int64 scalar; labels have shape (sequences, length)."""
    return (labels[:, 1:] != IGNORED).sum()


WeightedBatch = tuple[Tensor, Tensor, Tensor]  # ids, labels: (sequences, length); weight of one target: scalar


def weighted_batches(steps: Iterable[list[Batch]], ranks: Ranks) -> Iterator[WeightedBatch]:
    """Micro-batches with the weight of one target in the step's loss; it is the same for all targets of all ranks.

    The weight is ranks / (targets of all ranks in the step), because gradients are averaged over ranks.

    Args:
        steps: The micro-batches of each optimizer step.
        ranks: The process group.
    """
    for micro_batches in steps:
        predicted = float(sum(count_targets(batch["labels"]) for batch in micro_batches))  # of tensors on the CPU
        tokens = torch.full((), predicted, device=ranks.device)  # filled on the device: a copy would wait for it
        weight = ranks.count / ranks.sum(tokens).clamp_min(1)
        for batch in micro_batches:
            yield batch["input_ids"], batch["labels"], weight


def backward(rules: LossRules, device: torch.device) -> Backward:
    """Make the function that adds a micro-batch's gradients and returns its share of the step's loss, a scalar.

    The share is the micro-batch's summed cross-entropy times the weight of one target.
    """

    def add_gradients(learner: Learner, batch: WeightedBatch, step: int, micro_step: int) -> Tensor:
        ids, labels, weight = batch
        ids, labels = ids.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        loss = loss_sum(learner.model, ids, labels, rules) * weight
        learner.scaler.scale(loss).backward()
        return loss.detach()

    return add_gradients


def train_steps(
    learner: Learner,
    batches: Iterable[WeightedBatch],
    add_gradients: Backward,
    rules: StepRules,
    first_step: int,
    gate: FiniteGate,
    after_step: Callable[[int, Tensor | None], bool | None],
    on_bad_step: Callable[[int], None],
) -> None:
    """Take optimizer steps until the batches are used up; arguments as in `take_step` and `engine.train_one_epoch`.

    The loss passed to `after_step` is a float32 scalar.
    """
    learner.model.train()
    for step, micro_batches in enumerate(grouped(batches, rules.accumulate), first_step):
        loss = take_step(learner, micro_batches, add_gradients, rules, step, gate, on_bad_step)
        if after_step(step + 1, loss):
            return


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks, rules: LossRules, part: str = "validation"
) -> dict[str, float | None]:
    """Mean cross-entropy over all tokens of all ranks, its exponential, the perplexity, and bits per byte.

    `perplexity_published` follows the published program (docs/differences.md): on each rank the sum of batch means
    divided by their number plus 1, averaged over ranks, then the exponential. It is too low and depends on the batch
    size. Ids and labels of a batch are int64 of shape (sequences, length), its bytes int64 of shape (sequences,).
    `part` names the text in messages.

    Raises:
        NonFiniteError: If the loss is not finite.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)  # loss, tokens, batch means, batches with tokens
    text = torch.zeros((), dtype=torch.float64)  # bytes
    for batch in batches:
        text += batch["bytes"].sum()
        ids, labels = batch["input_ids"].to(ranks.device), batch["labels"].to(ranks.device)
        loss, tokens = loss_sum(model, ids, labels, rules).double(), count_targets(labels)
        sums += torch.stack([loss, tokens.double(), loss / tokens.clamp_min(1), (tokens > 0).double()])
    model.train(was_training)
    published = (ranks.sum(sums[2] / (sums[3] + 1)) / ranks.count).item()
    loss, tokens, _, _ = ranks.sum(sums).tolist()
    text_bytes = ranks.sum(text.to(ranks.device)).item()
    if not math.isfinite(loss):
        raise NonFiniteError(f"the {part} loss is {loss:g}")
    mean = loss / tokens
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "perplexity_published": perplexity(published),
        "bits_per_byte": bits_per_byte(loss, text_bytes),
        "eval_tokens": tokens,
        "eval_bytes": text_bytes,
    }


def perplexity(loss: float) -> float:
    """exp(loss), at most the largest float."""
    return math.exp(min(loss, 700.0))


def bits_per_byte(nats: float, text_bytes: float) -> float | None:
    """Cross-entropy in bits per byte, which models with different tokenizers have in common; at least 0.

    None if the tokens stand for no text: they are all ends of sequences.

    Args:
        nats: The cross-entropy, summed over all predicted tokens.
        text_bytes: UTF-8 bytes of the text that these tokens stand for.

    Source: The Pile (arXiv 2101.00027), section 3.1, with the tokens' own bytes in place of a mean per token.

    Example:
        >>> round(bits_per_byte(5.545, 4), 3)  # one byte of four as likely as the others
        2.0
    """
    return nats / (math.log(2) * text_bytes) if text_bytes else None
