"""The exponential moving average (EMA) of a model's weights, for both trainers."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alphadecay.sharing import local_part
from runtime.run_options import EmaOptions

Place = Callable[[nn.Module], nn.Module]


class MovingAverage:
    """The average of a model's weights over its updates; `module` is a model that has it as its weights.

    Update n gives average = d x average + (1 - d) x weights, with d = `decay_at(n)`. Buffers that a checkpoint has
    are averaged too if they are floating-point numbers, else copied.

    Args:
        module: Has the weights with which the average begins. Its weights may be sharded, if the model's are alike.
        options: Decay and warm-up.
        as_timm: The first update copies the weights, as timm's ModelEmaV3 does; else it averages like all others.
    """

    def __init__(self, module: nn.Module, options: EmaOptions, *, as_timm: bool) -> None:
        self.module = module.eval()
        self.decay, self.warmup, self.as_timm = options.model_ema_decay, options.model_ema_warmup, as_timm

    def decay_at(self, step: int) -> float:
        """The share of the old average, in [0, 1], that the update after optimizer step `step` (from 1) keeps.

        With warm-up at most 1 - step^(-2/3), as in timm's ModelEmaV3.
        """
        if self.as_timm and step <= 1:
            return 0.0
        return min(self.decay, 1 - float(step) ** (-2 / 3)) if self.warmup else self.decay

    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights of a model after optimizer step `step`, counted from 1."""
        self._move(model, self.decay_at(step))

    def restart(self, model: nn.Module) -> None:
        """Begin again with the weights of a model."""
        self._move(model, 0.0)

    @torch.no_grad()
    def _move(self, model: nn.Module, decay: float) -> None:
        if hasattr(self.module, "reshard"):  # FSDP2: an evaluation leaves some weights whole, and they would be lost
            self.module.reshard()  # type: ignore[operator]
        old, new = averaged_tensors(self.module), averaged_tensors(model)
        for average, value in zip(old, new, strict=True):
            if not average.is_floating_point():
                average.copy_(value)
        averages = [each for each in old if each.is_floating_point()]
        values = [each for each in new if each.is_floating_point()]
        if all(average.dtype == value.dtype for average, value in zip(averages, values, strict=True)):
            torch._foreach_lerp_(averages, values, 1.0 - decay)
        else:  # weights in bfloat16
            torch._foreach_mul_(averages, decay)
            torch._foreach_add_(averages, values, alpha=1.0 - decay)


def averaged_tensors(model: nn.Module) -> list[Tensor]:
    """A model's parameters, each once even if it is tied, and buffers that a checkpoint has; of shards, this process'.

    The tensors share the model's memory.
    """
    buffers = [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]
    return [local_part(tensor) for tensor in (*model.parameters(), *buffers)]


def copy_for_average(model: nn.Module) -> nn.Module:
    """A copy of a model that is not sharded; weights of 16 bits become float32, because their average would not move.

    A step of a bfloat16 average must be at least 1/512 of its value, or rounding discards it.
    """
    copied = copy.deepcopy(model)
    narrow = any(p.is_floating_point() and p.element_size() < 4 for p in model.parameters())
    return copied.float() if narrow else copied


def build_ema(
    options: EmaOptions, model: nn.Module, place: Place = lambda copied: copied, *, as_timm: bool = False
) -> MovingAverage | None:
    """The average that begins with a model's weights, or None if it is off.

    Args:
        options: Whether there is one, and its decay.
        model: Not sharded yet.
        place: Puts a copy of the model where the model will be: on another device, or sharded over processes.
        as_timm: As of `MovingAverage`.
    """
    return MovingAverage(place(copy_for_average(model)), options, as_timm=as_timm) if options.model_ema else None
