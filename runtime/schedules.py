"""The learning rate and the base decay as functions of the optimizer step.

The decay of a parameter group at a step is base decay x static multiplier x adaptive multiplier: `Schedules` writes
the base, the groups hold the static multiplier (`alphadecay.groups`), and the strategy writes the adaptive one.
"""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.run_options import OptimizerOptions

COOLDOWN, DROP_AT = 0.2, 0.5  # defaults of --cooldown and --drop_at
ROUNDING = 1e-6  # of a step: 0.29 x 100 is a little below 29


@dataclass(frozen=True)
class Schedules:
    """Learning rate and base decay as functions of the optimizer step.

    Steps count from 0; the first `warmup_steps` are warm-up. `drop_at` and `cooldown` are shares of all steps;
    without `cosine_steps` the cosine ends at the last step. `warmup_lr` is the rate of step 0.
    """

    total_steps: int
    warmup_steps: int
    lr: float
    min_lr: float
    weight_decay: float
    weight_decay_end: float
    shape: str = "cosine"
    decay_shape: str = "cosine"
    warmup_lr: float | None = None
    cosine_steps: int | None = None
    cooldown: float = COOLDOWN
    drop_at: float = DROP_AT

    def lr_at(self, step: int) -> float:
        """The learning rate of a step. With w, T the steps of warm-up and in all, t = step, and p the peak:

        warm-up   p (t + 1) / w, or warmup_lr + (p - warmup_lr) t / w with `warmup_lr`
        cosine    min_lr + (p - min_lr) (1 + cos(pi (t - w) / (C - 1 - w))) / 2, C = cosine_steps or T; then min_lr
                  (Loshchilov and Hutter, arXiv 1608.03983, without restarts)
        linear    p + (min_lr - p) (t - w) / (T - 1 - w)
        constant  p
        wsd       p, then linear to min_lr over the last `cooldown` T steps (Hu et al., arXiv 2404.06395; linear as in
                  Hägele et al., arXiv 2405.18392)
        drop      p before step floor(drop_at T), min_lr from it on (D'Angelo et al., arXiv 2310.04415)
        """
        warmup, steps = self.warmup_steps, self.total_steps
        if step < warmup:
            if self.warmup_lr is None:
                return self.lr * (step + 1) / warmup
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / warmup
        if self.shape == "wsd":  # the rate has its first fall at the first step of the cooldown
            warmup = max(warmup, steps - max(1, round(self.cooldown * steps))) - 1
        end = (self.cosine_steps or steps) if self.shape == "cosine" else steps
        return self._along(self.shape, step - warmup, end - warmup, self.lr, self.min_lr, step)

    def weight_decay_at(self, step: int) -> float:
        """The base decay of a step.

        cosine, linear, drop   from weight_decay to weight_decay_end, over all steps, as the learning rate's
        constant               weight_decay
        corrected              weight_decay x lr_at(step) / lr (Defazio, arXiv 2506.02285)
        independent            weight_decay / lr, so that a step decays by weight_decay x lr_at(step) / lr
                               (Loshchilov and Hutter, arXiv 1711.05101; Wortsman et al., arXiv 2309.14322)
        """
        if self.decay_shape == "corrected":
            return self.weight_decay * self.lr_at(step) / self.lr
        if self.decay_shape == "independent":
            return self.weight_decay / self.lr
        return self._along(self.decay_shape, step, self.total_steps, self.weight_decay, self.weight_decay_end, step)

    def _along(self, shape: str, done: int, steps: int, first: float, last: float, step: int) -> float:
        """From `first` at done = 0 to `last` at done = steps - 1, along a shape; `step` is the one of the run."""
        if shape == "cosine":
            return cosine(done, steps, first, last)
        if shape in ("linear", "wsd"):
            return linear(done, steps, first, last)
        dropped = shape == "drop" and step >= int(self.drop_at * self.total_steps + ROUNDING)
        return last if dropped else first

    def write(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate and base decay of every group for a step."""
        lr, base = self.lr_at(step), self.weight_decay_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            group["base_weight_decay"] = base


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Half a cosine period from `first` at step 0 to `last` at step `steps` - 1."""
    progress = min(step / (steps - 1), 1.0) if steps > 1 else float(step > 0)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step: int, steps: int, first: float, last: float) -> float:
    """A straight line from `first` at step 0 (and before) to `last` at step `steps` - 1 (and after it)."""
    progress = min(max(step, 0) / (steps - 1), 1.0) if steps > 1 else float(step > 0)
    return first * (1 - progress) + last * progress  # exact at both ends


def schedules_of(options: OptimizerOptions, decay: DecayOptions, total_steps: int, warmup_steps: int) -> Schedules:
    """Schedules over `total_steps` optimizer steps; without --min_lr the learning rate ends at a tenth of its peak.

    Raises:
        UserError: If the cosine would end during warm-up.
    """
    if options.cosine_steps is not None and options.cosine_steps <= warmup_steps:
        raise UserError(f"--cosine_steps {options.cosine_steps}: ends within the {warmup_steps} steps of warm-up")
    return Schedules(
        total_steps,
        warmup_steps,
        options.lr,
        options.lr / 10 if options.min_lr is None else options.min_lr,
        decay.weight_decay,
        decay.weight_decay if decay.weight_decay_end is None else decay.weight_decay_end,
        options.sched,
        decay.weight_decay_sched,
        options.warmup_lr,
        options.cosine_steps,
        COOLDOWN if options.cooldown is None else options.cooldown,
        DROP_AT if options.drop_at is None else options.drop_at,
    )
