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

FIGURES = (
    Metric("acc1", "top-1 accuracy in %", "top-1 %", higher_is_better=True, headline=True),
    Metric("acc5", "top-5 accuracy in %", "top-5 %", higher_is_better=True),
    Metric("loss", "validation cross-entropy in nats", "loss", headline=True),
)  # of raw weights; each has a twin of the moving average
METRICS = by_name(metric for each in FIGURES for metric in (each, each.averaged()))


@dataclass(frozen=True)
class Precision:
    """How numbers are kept on the device."""

    amp: torch.dtype | None = None  # of mixed precision; None for none
    channels_last: bool = False

    def put(self, batch: Batch, device: torch.device) -> Batch:
        """A batch on the device, without waiting for the copy."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images, targets = batch
        return images.to(device, non_blocking=True, memory_format=layout), targets.to(device, non_blocking=True)


PLAIN = Precision()


@dataclass(frozen=True, kw_only=True)
class ImageRules(StepRules):
    """How a step on images is taken."""

    criterion: Callable[[Tensor, Tensor], Tensor]
    mixup: Mixup | None = None
    precision: Precision = PLAIN
    seed: int = 0  # of mixup


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
        learner: What is trained.
        batches: Micro-batches of this rank, `rules.accumulate` for each optimizer step.
        rules: How a step is taken.
        ranks: The process group.
        first_step: Optimizer steps taken before.
        gate: Decides whether an update may happen.
        after_step: Called with the number of steps taken and the step's mean loss on this rank (a tensor on the
            device; None where the update was left out); no more steps are taken if it returns True.
        on_bad_step: Called with the number of a step whose loss or gradient is not finite, instead of its update;
            training goes on with the next batch if it returns.
    """
    add_gradients = backward(rules, ranks)
    learner.model.train()
    for step, micro_batches in enumerate(grouped(batches, rules.accumulate), first_step):
        loss = take_step(learner, micro_batches, add_gradients, rules, step, gate, on_bad_step)
        if after_step(step + 1, loss):
            return


def backward(rules: ImageRules, ranks: Ranks) -> Backward:
    """What adds a micro-batch's share to the gradients and returns its share of the step's loss."""

    def add_gradients(learner: Learner, batch: Batch, step: int, micro_step: int) -> Tensor:
        images, targets = rules.precision.put(batch, ranks.device)
        if rules.mixup is not None:
            with seeded(rules.seed, step, micro_step, ranks.rank):  # not the order of calls, so that resuming is exact
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

    Each rank brings its own images; each image counts once, whatever the number of ranks. With fewer than five
    classes acc5 is 100.

    Raises:
        UserError: If there is not one image.
        NonFiniteError: If the loss is not finite.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)  # top-1, top-5, loss, images
    for batch in batches:
        images, labels = precision.put(batch, ranks.device)
        with autocast(ranks.device, precision.amp):
            logits = model(images)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(labels), device=ranks.device)])
    model.train(was_training)
    top1, top5, loss_sum, images_seen = ranks.sum(sums).tolist()
    if not images_seen:
        raise UserError("not one validation image can be read")
    if not math.isfinite(loss_sum):
        raise NonFiniteError(f"the validation loss is {loss_sum:g}")
    return {
        "acc1": 100 * top1 / images_seen,
        "acc5": 100 * top5 / images_seen,
        "loss": loss_sum / images_seen,
    }
