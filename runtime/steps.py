"""An optimizer step as every trainer takes it: micro-steps, clipping, the gate, the update, the moving average."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from runtime.finite import Finding, FiniteGate, traced
from runtime.learner import Learner
from runtime.processes import Ranks
from runtime.schedules import Schedules
from runtime.sharded import whole

# (learner, micro-batch, step, micro-step): adds gradients, returns its share of the step's loss
Backward = Callable[[Learner, Any, int, int], Tensor]
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """How an optimizer step is taken, whatever the loss."""

    schedules: Schedules
    accumulate: int  # micro-steps per optimizer step
    clip_grad: float | None  # largest norm of the gradient


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
        micro_batches: Those of this rank, `rules.accumulate` of them.
        backward: Adds the gradients of one of them.
        rules: How a step is taken.
        step: Optimizer steps taken before.
        gate: Decides whether an update may happen.
        on_bad_step: Called with the number of a step whose loss or gradient is not finite, instead of its update;
            training goes on with the next batch if it returns.

    Returns:
        The step's mean loss on this rank, a tensor on the device; None where the update was left out.
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
    return loss if bad_step is None else None


def _update(learner: Learner, step: int) -> None:
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.plain, step=step + 1)


def _put_back(learner: Learner, buffers: list[Tensor]) -> None:
    """Undo what a forward pass did to running statistics."""
    for buffer, kept in zip(learner.plain.buffers(), buffers, strict=False):
        buffer.copy_(kept)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The context of a forward pass in mixed precision; None for none."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def find_bad_values(learner: Learner, micro_batches: Sequence[Any], backward: Backward, step: int) -> Finding:
    """Do a bad step again, without its update, and find the first module whose values are not finite."""
    device = next(learner.plain.parameters()).device.type
    alone = replace(learner, model=learner.plain, scaler=torch.amp.GradScaler(device, enabled=False))
    buffers = [buffer.clone() for buffer in learner.plain.buffers()]
    found = Finding()
    for micro_step, batch in enumerate(micro_batches):
        learner.optimizer.zero_grad(set_to_none=True)
        with traced(learner.plain, micro_step, len(batch[0])) as now:
            backward(alone, batch, step, micro_step)
        found = found if found.module else now
    _put_back(learner, buffers)
    return found


def clipped_norm(model: nn.Module, largest: float | None) -> Tensor:
    """The norm of the gradient before it is clipped to `largest` (None or 0: it is not)."""
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
    """The model as ranks train it together."""
    if ranks.count == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, [ranks.device] if ranks.device.type == "cuda" else None)


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Leave gradients of ranks apart: only the last micro-step of an optimizer step joins them."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return _without_reducing(model) if hasattr(model, "set_requires_gradient_sync") else nullcontext()


@contextmanager
def _without_reducing(model: Any) -> Iterator[None]:
    """FSDP2: gradients of a micro-step stay whole on each process."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
