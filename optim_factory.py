"""Parameter groups -> optimizer -> schedules of the learning rate and of the decay, for both trainers."""

import difflib
import math
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim import Optimizer

import alphadecay
from alphadecay.analysis import SCORES
from alphadecay.assign import BUDGETS, CONTROLS, RULES
from alphadecay.groups import Group
from alphadecay.schedule import DecaySchedule
from alphadecay.tails import FITS
from runtime.errors import UserError
from runtime.options import option

DECAYS = ("uniform", "alphadecay", "adadecay", "awd", "replay")
ADAPTIVE = ("alphadecay", "adadecay")  # kinds that assign decays to modules
SCOPES = ("module", "entry")
FUSED = ("adam", "adamw", "sgd", "momentum")  # timm's names of torch optimizers with one kernel for the whole step


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer and its learning rate; each trainer adds how its steps are counted."""

    optimizer: str = option(
        "adam", "a timm optimizer: adam couples decay with the gradient (L2), adamw does not", fixed="optimizer"
    )
    lr: float = option(4e-3, "peak learning rate", above=0, fixed="schedule")
    min_lr: float | None = option(1e-6, "learning rate at the end (a rate, not a ratio)", minimum=0, fixed="schedule")
    warmup_steps: int = option(-1, "optimizer steps of linear warm-up of the learning rate", fixed="schedule")
    momentum: float = option(0.9, "momentum of optimizers that have one", minimum=0, maximum=1, fixed="optimizer")
    clip_grad: float | None = option(None, "largest norm of the gradient; 0: any", minimum=0, fixed="optimizer")

    CHECKS = ((lambda o: o.min_lr is None or o.min_lr <= o.lr, "--min_lr {min_lr:g}: above --lr {lr:g}"),)


@dataclass(frozen=True)
class VisionOptimizerOptions(OptimizerOptions):
    """The optimizer and its learning rate, counted in epochs."""

    warmup_steps: int = option(
        -1, "optimizer steps of warm-up; counts instead of --warmup_epochs if 0 or more", fixed="schedule"
    )
    epochs: int = option(120, "epochs of the schedules", minimum=1, fixed="schedule")
    warmup_epochs: int = option(20, "epochs of linear warm-up of the learning rate", minimum=0, fixed="schedule")
    layer_decay: float = option(
        1.0, "each layer's learning rate is this times that of the next", above=0, maximum=1, fixed="optimizer"
    )
    update_freq: int = option(
        1, "micro-steps whose gradients add up to one optimizer step", minimum=1, fixed="batch_size"
    )


@dataclass(frozen=True)
class DecayOptions:
    """Weight decay: its base, its schedule, and how it differs between modules."""

    weight_decay: float = option(5e-6, "base weight decay", minimum=0, fixed="decay")
    weight_decay_end: float | None = option(
        None, "base weight decay at the end, reached along a cosine", minimum=0, fixed="decay"
    )
    decay: str = option("uniform", "how decay is spread over the modules", choices=DECAYS, fixed="decay")
    decay_interval: int = option(500, "optimizer steps between refreshes", minimum=1, fixed="decay")
    decay_lag: int = option(
        0, "steps that spectra may take to measure beside training; 0: training waits", minimum=0, fixed="decay"
    )
    decay_metric: str = option(
        "alpha", "what scores a module; higher scores get more decay", choices=tuple(SCORES), fixed="decay"
    )
    decay_fit: str = option("median", "how the tail of a spectrum is found", choices=tuple(FITS), fixed="decay")
    decay_xmin_pos: float = option(
        2.0, "median fit: the tail is the top 1 - 1/x of the spectrum", above=1, fixed="decay"
    )
    decay_window: str = option(
        "none", "farms: alpha of square windows, the same for all shapes", choices=("none", "farms"), fixed="decay"
    )
    filter_zeros: bool = option(False, "drop eigenvalues of at most 1e-5 before the fit, as published", fixed="decay")
    decay_assign: str = option("linear", "from scores to multipliers", choices=RULES, fixed="decay")
    decay_low: float = option(2 / 3, "smallest multiplier of the linear rule", minimum=0, fixed="decay")
    decay_high: float = option(3.0, "largest multiplier of the linear rule", minimum=0, fixed="decay")
    decay_budget: str = option("free", "matched: the mean multiplier is held at 1", choices=BUDGETS, fixed="decay")
    decay_control: str = option("none", "a control to compare with", choices=("none", *CONTROLS), fixed="decay")
    decay_frozen: bool = option(False, "a control: keep the first assignment for ever", fixed="decay")
    decay_cautious: bool = option(
        False, "decay only entries that the update does not push away from zero; decoupled optimizers", fixed="decay"
    )
    adadecay_scope: str = option(
        "module", "as AlphaDecay's authors ran it, or as published first: per entry", choices=SCOPES, fixed="decay"
    )
    awd_scale: float = option(
        50.0, "awd: the base times this times gradient norm / weight norm", above=0, fixed="decay"
    )
    decay_ledger: str = option("", "replay: a run's decay.jsonl", fixed="decay")
    decay_ledger_mean: bool = option(False, "replay: each module's mean over time", fixed="decay")
    decay_norm_bias: bool = option(
        False, "decay norms, biases, position and class tokens too, as published", fixed="decay"
    )
    batchnorm: bool = option(
        True, "with --decay_norm_bias: a batch norm is decayed as the convolution of like name", fixed="decay"
    )

    remove_first_layer: bool = option(True, "the stem keeps its base decay", fixed="decay")
    remove_last_layer: bool = option(True, "the head keeps its base decay", fixed="decay")

    def selection(self, model: nn.Module) -> dict[str, Any]:
        """Which matrices take part besides the usual ones, or do not, as `alphadecay.analyze` has it."""
        ends = (("stem", not self.remove_first_layer), ("head", not self.remove_last_layer))
        return {"include": tuple(name for name, takes_part in ends if takes_part)}

    def __post_init__(self) -> None:
        """Name what the published options say in their own way."""
        if (self.decay, self.decay_metric, self.decay_assign) == ("alphadecay", "grad_norm", "sigmoid"):
            for name, value in (("decay", "adadecay"), ("decay_metric", "alpha"), ("decay_assign", "linear")):
                object.__setattr__(self, name, value)

    @property
    def assigns(self) -> bool:
        """Whether modules are assigned decays of their own."""
        return self.decay in ADAPTIVE and (self.decay, self.adadecay_scope) != ("adadecay", "entry")

    CHECKS = (
        (lambda o: o.decay != "replay" or o.decay_ledger, "--decay replay: needs --decay_ledger PATH"),
        *(
            (
                lambda o, name=name: o.decay == "replay" or not getattr(o, name),
                f"--{name} {{{name}}}: acts with --decay replay, not {{decay}}",
            )
            for name in ("decay_ledger", "decay_ledger_mean")
        ),
        (
            lambda o: o.decay != "adadecay" or (o.decay_metric, o.decay_assign) == ("alpha", "linear"),
            "--decay_metric {decay_metric}, --decay_assign {decay_assign}: adadecay has its own, the sigmoid of the "
            "gradient's norm; with --decay alphadecay they act",
        ),
        *(
            (
                lambda o, name=name, off=off: o.assigns or getattr(o, name) == off,
                f"--{name} {{{name}}}: nothing is assigned to modules with --decay {{decay}}"
                " (--adadecay_scope {adadecay_scope})",
            )
            for name, off in (
                ("decay_control", "none"),
                ("decay_budget", "free"),
                ("decay_frozen", False),
                ("decay_lag", 0),
            )
        ),
        (
            lambda o: o.decay_low <= o.decay_high,
            "--decay_low {decay_low:g}: above --decay_high {decay_high:g}",
        ),
        (
            lambda o: o.decay_lag < o.decay_interval,
            "--decay_lag {decay_lag}: must be below --decay_interval {decay_interval}",
        ),
    )


def build_optimizer(
    options: OptimizerOptions, decay: DecayOptions, model: nn.Module, layer_decay: float = 1.0
) -> Optimizer:
    """A timm optimizer over groups that carry their decay; the groups are the same for every kind of decay.

    Raises:
        UserError: If timm does not know the optimizer or it refuses the options.
    """
    groups = alphadecay.param_groups(
        model,
        decay.weight_decay,
        norm_bias=decay.decay_norm_bias,
        batchnorm=decay.batchnorm and decay.assigns,
        **decay.selection(model),
    )
    if layer_decay < 1:
        groups = scale_layers(groups, model, layer_decay)
    name = options.optimizer.lower()
    if name not in list_optimizers():
        known = [str(each) for each in list_optimizers()]
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "-"
        raise UserError(f"--optimizer {options.optimizer}: timm has no such optimizer; close: {close}")
    kernel: dict[str, Any] = {"fused": True} if name in FUSED else {}
    try:
        optimizer = create_optimizer_v2(
            groups,
            opt=name,
            lr=options.lr,
            weight_decay=decay.weight_decay,
            momentum=options.momentum,
            **kernel,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ModuleNotFoundError) as error:
        raise UserError(f"--optimizer {options.optimizer}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"--optimizer {options.optimizer}: is no torch optimizer")
    return optimizer


def scale_layers(groups: list[Group], model: nn.Module, layer_decay: float) -> list[Group]:
    """Split groups by layer and note each layer's learning-rate scale: layer_decay to the power of its distance to
    the last one. Decay is left as it is, so both compose.

    Raises:
        UserError: If the model does not tell its layers.
    """
    if not hasattr(model, "group_matcher"):
        raise UserError(f"--layer_decay {layer_decay:g}: {type(model).__name__} does not tell its layers")
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    names = {id(p): name for name, p in model.named_parameters()}
    last = max(layers.values())
    scaled = []
    for group in groups:
        by_layer: dict[int, list[nn.Parameter]] = {}
        for p in group["params"]:
            by_layer.setdefault(layers.get(names[id(p)], last), []).append(p)
        for layer, parameters in sorted(by_layer.items()):
            name = group["decay_name"] if len(by_layer) == 1 else f"{group['decay_name'][:-1]}, layer {layer})"
            scaled.append(group | {"params": parameters, "decay_name": name, "lr_scale": layer_decay ** (last - layer)})
    return scaled


def build_decay(options: DecayOptions, model: nn.Module, optimizer: Any, seed: int) -> DecaySchedule:
    """The decay schedule that the options name, attached to the optimizer.

    It takes over the state of another kind: whether a run may change its decay was checked before (`runtime/drift.py`).

    Raises:
        UserError: If no weight matrix of the model takes part, or the optimizer takes no weight decay.
    """
    try:
        decay = _attached(options, model, optimizer, seed)
    except ValueError as error:
        raise UserError(f"--decay {options.decay}: {error}") from error
    decay.takes_over = True
    return decay


def _attached(options: DecayOptions, model: nn.Module, optimizer: Any, seed: int) -> DecaySchedule:
    common: dict[str, Any] = {**options.selection(model), "cautious": options.decay_cautious}
    interval = options.decay_interval
    if options.decay == "uniform":
        return alphadecay.UniformDecay(model, optimizer, interval, **common)
    if options.decay == "awd":
        return alphadecay.AWD(model, optimizer, options.awd_scale, **common)
    if options.decay == "replay":
        return alphadecay.Replay(model, optimizer, options.decay_ledger, mean=options.decay_ledger_mean, **common)
    if not options.assigns:
        return alphadecay.AdaDecayPerEntry(model, optimizer, interval, **common)
    common |= {
        "budget": options.decay_budget,
        "control": None if options.decay_control == "none" else options.decay_control,
        "seed": seed,
        "fit": options.decay_fit,
        "xmin_pos": options.decay_xmin_pos,
        "window": None if options.decay_window == "none" else options.decay_window,
        "filter_zeros": options.filter_zeros,
        "frozen": options.decay_frozen,
        "lag": options.decay_lag,
    }
    if options.decay == "adadecay":
        return alphadecay.AdaDecay(model, optimizer, interval, **common)
    return alphadecay.AlphaDecay(
        model,
        optimizer,
        interval,
        options.decay_low,
        options.decay_high,
        rule=options.decay_assign,
        metric=options.decay_metric,
        **common,
    )


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
        """Linear from lr / warmup_steps up to lr, then along a cosine to min_lr at the last step."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return cosine(step - self.warmup_steps, self.total_steps - self.warmup_steps, self.lr, self.min_lr)

    def weight_decay_at(self, step: int) -> float:
        """The base decay, along a cosine from weight_decay to weight_decay_end at the last step."""
        return cosine(step, self.total_steps, self.weight_decay, self.weight_decay_end)

    def write(self, optimizer: Optimizer, step: int) -> None:
        """Set every group's learning rate and base decay for the step that comes."""
        lr, base = self.lr_at(step), self.weight_decay_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
            group["base_weight_decay"] = base


def cosine(step: int, steps: int, first: float, last: float) -> float:
    """Half a cosine from `first` at step 0 to `last` at step `steps` - 1."""
    progress = min(step / (steps - 1), 1.0) if steps > 1 else 0.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def build_schedules(options: VisionOptimizerOptions, decay: DecayOptions, steps_per_epoch: int) -> Schedules:
    """Schedules counted in optimizer steps; a run may end inside its warm-up."""
    by_steps = options.warmup_steps >= 0
    warmup = options.warmup_steps if by_steps else options.warmup_epochs * steps_per_epoch
    total = options.epochs * steps_per_epoch
    return schedules_of(options, decay, total, warmup)


def schedules_of(options: OptimizerOptions, decay: DecayOptions, total_steps: int, warmup_steps: int) -> Schedules:
    """Schedules over a number of optimizer steps; without --min_lr the rate ends at a tenth of its peak."""
    end = decay.weight_decay if decay.weight_decay_end is None else decay.weight_decay_end
    lowest = options.lr / 10 if options.min_lr is None else options.min_lr
    return Schedules(total_steps, warmup_steps, options.lr, lowest, decay.weight_decay, end)
