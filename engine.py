"""Vision training: one epoch of optimizer steps, and evaluation that counts each image once."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor, nn

from loaders import Batch
from optim_factory import Schedules
from runtime.errors import NonFiniteError, UserError
from runtime.finite import Finding, FiniteGate, traced
from runtime.learner import Learner
from runtime.processes import Ranks
from runtime.seeding import seeded

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(device.type, dtype=self.amp) if self.amp is not None else nullcontext()


PLAIN = Precision()


@dataclass(frozen=True)
class StepRules:
    """How a training step is taken."""

    criterion: Callable[[Tensor, Tensor], Tensor]
    mixup: Mixup | None
    schedules: Schedules
    accumulate: int  # micro-steps an optimizer step
    clip_grad: float | None
    precision: Precision
    seed: int


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    rules: StepRules,
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
            device; None where the update was left out); the epoch ends there if it returns True.
        on_bad_step: Called with the number of a step whose loss or gradient is not finite, instead of its update;
            training goes on with the next batch if it returns.
    """
    learner.model.train()
    step = first_step
    for micro_batches in grouped(batches, rules.accumulate):
        rules.schedules.write(learner.optimizer, step)
        buffers = [] if gate.policy == "stop" else [buffer.clone() for buffer in learner.plain.buffers()]
        loss = torch.zeros((), device=ranks.device)
        for micro_step, batch in enumerate(micro_batches):
            last = micro_step == rules.accumulate - 1
            with nullcontext() if last else without_sync(learner.model):
                loss += _backward(learner, batch, rules, ranks, step, micro_step)
        learner.scaler.unscale_(learner.optimizer)
        norm = clipped_norm(learner.plain, rules.clip_grad)
        bad_step = gate.look(step, loss, norm)
        if bad_step is None:
            _update(learner, step)
        else:
            _put_back(learner, buffers)
            learner.scaler.update()
            on_bad_step(bad_step)
            gate.forgive()
        learner.optimizer.zero_grad(set_to_none=True)
        step += 1
        if after_step(step, loss if bad_step is None else None):
            return


def _update(learner: Learner, step: int) -> None:
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.plain, step=step + 1)


def _put_back(learner: Learner, buffers: list[Tensor]) -> None:
    """Undo what a forward pass did to running statistics."""
    for buffer, kept in zip(learner.plain.buffers(), buffers, strict=False):
        buffer.copy_(kept)


def find_bad_values(
    learner: Learner, micro_batches: Sequence[Batch], rules: StepRules, ranks: Ranks, step: int
) -> Finding:
    """Do a bad step again, without its update, and find the first module whose values are not finite."""
    alone = replace(learner, model=learner.plain, scaler=torch.amp.GradScaler(ranks.device.type, enabled=False))
    buffers = [buffer.clone() for buffer in learner.plain.buffers()]
    found = Finding()
    for micro_step, batch in enumerate(micro_batches):
        learner.optimizer.zero_grad(set_to_none=True)
        with traced(learner.plain, micro_step, len(batch[0])) as now:
            _backward(alone, batch, rules, ranks, step, micro_step)
        found = found if found.module else now
    _put_back(learner, buffers)
    return found


def _backward(learner: Learner, batch: Batch, rules: StepRules, ranks: Ranks, step: int, micro_step: int) -> Tensor:
    """Add a micro-batch's share to the gradients; returns its share of the step's loss."""
    images, targets = rules.precision.put(batch, ranks.device)
    if rules.mixup is not None:
        with seeded(rules.seed, step, micro_step, ranks.rank):  # not the order of calls, so that resuming is exact
            images, targets = rules.mixup(images, targets)
    with rules.precision.autocast(ranks.device):
        loss = rules.criterion(learner.model(images), targets) / rules.accumulate
    learner.scaler.scale(loss).backward()
    return loss.detach()


def clipped_norm(model: nn.Module, largest: float | None) -> Tensor:
    """The norm of the gradient before it is clipped to `largest` (None: it is not)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; an incomplete last list is dropped."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Leave gradients of ranks apart: only the last micro-step of an optimizer step joins them."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


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
        with precision.autocast(ranks.device):
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
