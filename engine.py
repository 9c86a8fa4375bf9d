"""Vision training: one epoch of optimizer steps, and evaluation that counts each image once."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from timm.data import Mixup
from torch import Tensor, nn

from datasets import Batch
from runtime.errors import NonFiniteError, UserError
from runtime.finite import FiniteGate
from runtime.learner import Learner
from runtime.metrics import Metric, by_name
from runtime.processes import Ranks
from runtime.seeding import seeded
from runtime.steps import Backward, StepRules, autocast, grouped, take_step

RAW_METRICS = (
    Metric("acc1", "top-1 accuracy in %", "top-1 %", higher_is_better=True, headline=True),
    Metric("acc5", "top-5 accuracy in %", "top-5 %", higher_is_better=True),
    Metric("loss", "validation cross-entropy in nats", "loss", headline=True),
)  # validation metrics of the raw weights
METRICS = by_name(metric for raw in RAW_METRICS for metric in (raw, raw.averaged()))  # and of the EMA weights


@dataclass(frozen=True)
class Precision:
    """Number format and memory layout on the device."""

    amp: torch.dtype | None = None  # dtype of mixed precision; None: float32
    channels_last: bool = False

    def put(self, batch: Batch, device: torch.device) -> Batch:
        """Start to copy images, shape (batch, channels, height, width), and labels, shape (batch,), to the device."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images, targets = batch
        return images.to(device, non_blocking=True, memory_format=layout), targets.to(device, non_blocking=True)


PLAIN = Precision()


@dataclass(frozen=True, kw_only=True)
class ImageRules(StepRules):
    """How an optimizer step on images is taken."""

    criterion: Callable[[Tensor, Tensor], Tensor]  # logits (batch, classes), targets -> scalar mean over the batch
    mixup: Mixup | None = None
    precision: Precision = PLAIN
    seed: int = 0  # of mixup's random numbers


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    rules: ImageRules,
    ranks: Ranks,
    first_step: int,
    gate: FiniteGate,
    after_step: Callable[[int, Tensor | None], bool | None],
    on_bad_step: Callable[[int], None],
) -> None:
    """Take optimizer steps until the batches are used up.

    Args:
        learner: Model and optimizer.
        batches: Micro-batches of this rank, `rules.accumulate` per optimizer step: images, float32, shape (batch,
            channels, height, width), and labels, int64, shape (batch,).
        rules: How a step is taken.
        ranks: The process group.
        first_step: Optimizer steps taken before.
        gate: Decides whether an update may happen.
        after_step: Called with the number of steps taken and the step's mean loss on this rank (a float32 scalar on
            the device; None if the update was skipped). If it returns True, no more steps are taken.
        on_bad_step: Called with the number of a step whose loss or gradient is not finite, instead of its update. If
            it returns, training continues with the next batch.
    """
    add_gradients = backward(rules, ranks)
    learner.model.train()
    for step, micro_batches in enumerate(grouped(batches, rules.accumulate), first_step):
        loss = take_step(learner, micro_batches, add_gradients, rules, step, gate, on_bad_step)
        if after_step(step + 1, loss):
            return


def backward(rules: ImageRules, ranks: Ranks) -> Backward:
    """Make the function that adds a micro-batch's gradients and returns its share of the step's loss, a scalar.

    The share is the mean loss of the micro-batch, divided by the number of micro-steps.
    """

    def add_gradients(learner: Learner, batch: Batch, step: int, micro_step: int) -> Tensor:
        images, targets = rules.precision.put(batch, ranks.device)
        if rules.mixup is not None:
            with seeded(rules.seed, step, micro_step, ranks.rank):  # fixed seeds, so that resumed runs draw the same
                images, targets = rules.mixup(images, targets)
        with autocast(ranks.device, rules.precision.amp):
            loss = rules.criterion(learner.model(images), targets) / rules.accumulate
        learner.scaler.scale(loss).backward()
        return loss.detach()

    return add_gradients


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks, precision: Precision = PLAIN
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent and mean cross-entropy over all images of all ranks.

    Each rank has its own images; each image counts once, whatever the number of ranks. With fewer than five classes
    acc5 is 100. Images have shape (batch, channels, height, width), labels shape (batch,).

    Raises:
        UserError: If there is no image.
        NonFiniteError: If the loss is not finite.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)  # top-1, top-5, summed loss, images
    for batch in batches:
        images, labels = precision.put(batch, ranks.device)
        with autocast(ranks.device, precision.amp):
            logits = model(images)
        logits = logits.float()  # (batch, classes)
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (batch, at most 5)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.full_like(loss, len(labels))])
    model.train(was_training)
    top1, top5, loss_sum, images_seen = ranks.sum(sums).tolist()
    if not images_seen:
        raise UserError("none of the validation images can be read")
    if not math.isfinite(loss_sum):
        raise NonFiniteError(f"the validation loss is {loss_sum:g}")
    return {
        "acc1": 100 * top1 / images_seen,
        "acc5": 100 * top5 / images_seen,
        "loss": loss_sum / images_seen,
    }
