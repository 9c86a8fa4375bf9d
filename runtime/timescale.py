"""The time over which decay forgets: 1 / (learning rate x decay) optimizer steps.

Source: Wang and Aitchison, How to set AdamW's weight decay as you scale model and dataset size (arXiv 2405.13698):
AdamW's weights are an exponential moving average of its updates over that many steps.
"""

from dataclasses import replace

from torch.optim import SGD, Optimizer

from alphadecay.optimizer_copies import why_coupled
from alphadecay.step_hooks import innermost
from runtime.decay_options import DecayOptions
from runtime.errors import UserError
from runtime.run_options import OptimizerOptions
from runtime.schedules import Schedules

DECOUPLED_ONLY = ("corrected", "independent")  # values of --weight_decay_sched


def with_timescale(decay: DecayOptions, options: OptimizerOptions, steps_per_unit: float) -> DecayOptions:
    """The decay options with the base decay that --decay_timescale asks for; unchanged without it.

    Args:
        decay: The decay options; the timescale t is in epochs or tokens.
        options: The optimizer's.
        steps_per_unit: Optimizer steps s per epoch or per token.

    The base is 1 / (lr t s); with --weight_decay_sched independent, which divides by lr itself, 1 / (t s).
    """
    if decay.decay_timescale is None:
        return decay
    steps = decay.decay_timescale * steps_per_unit
    peak = 1.0 if decay.weight_decay_sched == "independent" else options.lr
    return replace(decay, weight_decay=1 / (peak * steps))


def require_decoupled(optimizer: Optimizer, decay: DecayOptions, name: str) -> None:
    """Raise UserError if an option needs decay by learning rate x decay x weight, and the optimizer has another."""
    wanted = {"weight_decay_sched": decay.weight_decay_sched, "decay_timescale": decay.decay_timescale}
    if decay.weight_decay_sched not in DECOUPLED_ONLY:
        del wanted["weight_decay_sched"]
    for option, value in wanted.items():
        if value and (reason := why_coupled(innermost(optimizer))):
            raise UserError(
                f"--{option} {value}: needs decay by learning rate x decay x weight alone, but {name} {reason}; "
                "use adamw"
            )


def timescale_of(optimizer: Optimizer, schedules: Schedules) -> float | None:
    """1 / (peak learning rate x decay) in steps, infinite without decay; None if the optimizer has no such time.

    For SGD with momentum m it is (1 - m) / (learning rate x decay), because a gradient counts 1 / (1 - m) times. Adam
    that couples decay divides it by the size of the gradients, so the product says nothing.
    """
    inner = innermost(optimizer)
    peak = schedules.lr * schedules.weight_decay_at(schedules.warmup_steps)
    if not peak:
        return float("inf")
    if isinstance(inner, SGD):
        first = inner.param_groups[0]
        damped = (1 - first["dampening"]) if first["momentum"] else 1.0  # torch damps nothing without momentum
        return (1 - first["momentum"]) / damped / peak if damped else float("inf")
    return None if why_coupled(inner) else 1 / peak


def timescale_line(optimizer: Optimizer, schedules: Schedules, name: str, units: str, steps_per_unit: float) -> str:
    """A line on the timescale in steps and in units ("epochs" or "tokens"), or why there is none."""
    steps = timescale_of(optimizer, schedules)
    if steps is None:
        return f"no timescale of decay: {name} divides decay by the size of the gradients"
    if steps == float("inf"):
        return "no timescale of decay: at the peak of the learning rate its base is 0, or a gradient counts nothing"
    formula = "(1 - momentum) / (lr x decay)" if isinstance(innermost(optimizer), SGD) else "1 / (lr x decay)"
    return f"timescale of decay, {formula}: {readable(steps)} steps = {readable(steps / steps_per_unit)} {units}"


def readable(amount: float) -> str:
    """A whole number from 100 on, three digits below."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
