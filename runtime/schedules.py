"""The learning rate and the base decay as functions of the optimizer step."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from runtime.decay_options import DecayOptions
from runtime.run_options import OptimizerOptions


@dataclass(frozen=True)
class Schedules:
    """Learning rate and base decay as functions of the optimizer step."""

    total_steps: int
    warmup_steps: int
    lr: float
    min_lr: float
    weight_decay: float
    weight_decay_end: float

    def lr_at(self, step: int) -> float:
        """Rises linearly from lr / warmup_steps to lr, then falls along a cosine to min_lr at the last step."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return cosine(step - self.warmup_steps, self.total_steps - self.warmup_steps, self.lr, self.min_lr)

    def weight_decay_at(self, step: int) -> float:
        """The base decay: a cosine from weight_decay to weight_decay_end at the last step."""
        return cosine(step, self.total_steps, self.weight_decay, self.weight_decay_end)

    def write(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate and base decay of every group for a step."""
        lr, base = self.lr_at(step), self.weight_decay_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            group["base_weight_decay"] = base


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Half a cosine period from `first` at step 0 to `last` at step `steps` - 1."""
    progress = min(step / (steps - 1), 1.0) if steps > 1 else 0.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def schedules_of(options: OptimizerOptions, decay: DecayOptions, total_steps: int, warmup_steps: int) -> Schedules:
    """Schedules over `total_steps` optimizer steps; without --min_lr the learning rate ends at a tenth of its peak."""
    end = decay.weight_decay if decay.weight_decay_end is None else decay.weight_decay_end
    lowest = options.lr / 10 if options.min_lr is None else options.min_lr
    return Schedules(total_steps, warmup_steps, options.lr, lowest, decay.weight_decay, end)
