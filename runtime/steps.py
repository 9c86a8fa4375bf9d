"""The optimizer step of both trainers: micro-steps, gradient clipping, check for finite values, update, EMA."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alphadecay.sharing import whole
from runtime.finite import BadValues, FiniteGate, traced
from runtime.learner import Learner
from runtime.processes import Ranks
from runtime.schedules import Schedules

# (learner, micro-batch, step, micro-step): adds gradients, returns its share of the step's loss, a scalar
Backward = Callable[[Learner, Any, int, int], Tensor]
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """How an optimizer step is taken, for any loss."""

    schedules: Schedules
    accumulate: int  # micro-steps per optimizer step
    clip_grad: float | None  # largest norm of the gradient
    l2: float = 0.0  # the loss has this x the sum of squared decayed weights; it is not in the loss that is logged


def take_step(
    learner: Learner,
    micro_batches: Sequence[Any],
    backward: Backward,
    rules: StepRules,
    step: int,
    gate: FiniteGate,
    on_bad_step: Callable[[int], None],
) -> Tensor | None:
    """Take one optimizer step.

    Args:
        learner: What is trained, in training mode.
        micro_batches: `rules.accumulate` micro-batches of this rank.
        backward: Adds the gradients of one micro-batch.
        rules: How a step is taken.
        step: Optimizer steps taken before.
        gate: Decides whether the update is allowed.
        on_bad_step: Called with the number of a step whose loss or gradient is not finite, instead of its update;
            if it returns, training continues with the next batch.

    Returns:
        The step's mean loss on this rank, a scalar float32 tensor on the device; None if the update was skipped.
    """
    rules.schedules.write(learner.optimizer, step)
    buffers = [] if gate.policy == "stop" else [buffer.clone() for buffer in learner.plain.buffers()]
    losses = []
    for micro_step, batch in enumerate(micro_batches):
        last = micro_step == rules.accumulate - 1
        with nullcontext() if last else without_sync(learner.model):
            losses.append(backward(learner, batch, step, micro_step))
    loss = torch.stack(losses).sum(dtype=torch.float32)
    learner.scaler.unscale_(learner.optimizer)
    if rules.l2:
        add_l2(learner.optimizer, rules.l2)
    norm = clipped_norm(learner.plain, rules.clip_grad)
    bad_step = gate.check(step, loss, norm)
    if bad_step is None:
        _update(learner, step)
    else:
        _restore_buffers(learner, buffers)
        learner.scaler.update()
        on_bad_step(bad_step)
        gate.reset()
    learner.optimizer.zero_grad(set_to_none=True)
    return loss if bad_step is None else None


@torch.no_grad()
def add_l2(optimizer: Optimizer, l2: float) -> None:
    """Add the gradient of l2 x sum over decayed weights of static multiplier x weight^2, which is 2 l2 x that x weight.

    Weights have any shape. Unclipped, it equals decay that Adam couples, of 2 l2; D'Angelo et al. (arXiv 2310.04415)
    train with this term.
    """
    for group in optimizer.param_groups:
        with_gradient = [p for p in group["params"] if p.grad is not None]
        factor = 2 * l2 * group["static_multiplier"]
        if factor and with_gradient:
            torch._foreach_add_([p.grad for p in with_gradient], with_gradient, alpha=factor)


def _update(learner: Learner, step: int) -> None:
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.plain, step=step + 1)


def _restore_buffers(learner: Learner, buffers: list[Tensor]) -> None:
    """Undo a forward pass's changes of running statistics; `buffers` are copies, with the shapes of the model's."""
    for buffer, saved in zip(learner.plain.buffers(), buffers, strict=False):
        buffer.copy_(saved)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context of a forward pass in mixed precision; None: without mixed precision."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def find_bad_values(learner: Learner, micro_batches: Sequence[Any], backward: Backward, step: int) -> BadValues:
    """Repeat a bad step, without its update, and find the first module whose values are not finite."""
    device = next(learner.plain.parameters()).device.type
    alone = replace(learner, model=learner.plain, scaler=torch.amp.GradScaler(device, enabled=False))
    buffers = [buffer.clone() for buffer in learner.plain.buffers()]
    first = BadValues()
    for micro_step, batch in enumerate(micro_batches):
        learner.optimizer.zero_grad(set_to_none=True)
        with traced(learner.plain, micro_step, len(batch[0])) as bad:
            backward(alone, batch, step, micro_step)
        first = first if first.module else bad
    _restore_buffers(learner, buffers)
    return first


def clipped_norm(model: nn.Module, largest: float | None) -> Tensor:
    """Clip the gradient to the norm `largest` (None or 0: not at all); return its norm before, a scalar."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return whole(norm)


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches; an incomplete last list is dropped."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def data_parallel(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model, wrapped in DistributedDataParallel if there are several ranks."""
    if ranks.count == 1:
        return model
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, devices, gradient_as_bucket_view=True)  # no second copy of them


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Do not average gradients over ranks: only the last micro-step of an optimizer step does."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return _without_reducing(model) if hasattr(model, "set_requires_gradient_sync") else nullcontext()


@contextmanager
def _without_reducing(model: Any) -> Iterator[None]:
    """FSDP2: each process keeps the whole gradients of a micro-step."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
