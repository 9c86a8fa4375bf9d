"""The weight decay options of both trainers. Imports neither torch nor other slow packages."""

import math
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError
from runtime.options import option
from runtime.strategies import PER_ENTRY, STRATEGIES, Strategy

SCOPES = ("module", "entry")
DECAY_SHAPES = ("cosine", "constant", "linear", "drop", "corrected", "independent")
WITH_END = ("cosine", "linear", "drop")
# The choices of alphadecay, repeated here because importing it would import torch.
SCORES = (
    "alpha", "alpha_hat", "spectral_norm", "largest_eigenvalue", "frobenius_norm", "squared_frobenius_norm",
    "stable_rank", "entropy", "grad_norm", "grad_to_weight",
)  # fmt: skip
FITS = ("median", "paper", "goodness-of-fit", "fix-finger", "fix-finger-corrected")
RULES = ("linear", "sqrt", "log2", "sigmoid")
CONTROLS = ("invert", "shuffle", "by-type")
BUDGETS = ("free", "matched")


@dataclass(frozen=True)
class DecayOptions:
    """Weight decay: its base, its schedule, and how it differs between modules."""

    TITLE = "Decay"
    FIXED = "decay"
    weight_decay: float = option(5e-6, "base weight decay", minimum=0)
    weight_decay_sched: str = option(
        "cosine",
        "base weight decay: cosine, linear or drop to --weight_decay_end, if given; constant; corrected: x learning "
        "rate / --lr; independent: / --lr",
        choices=DECAY_SHAPES,
    )
    weight_decay_end: float | None = option(
        None, "base weight decay at the last step; with drop, after --drop_at", minimum=0
    )
    decay_timescale: float | None = option(
        None, "sets the base decay so that 1 / (--lr x decay) is this many epochs (images) or tokens (text)", above=0
    )
    decay: str = option("uniform", "strategy: how decay is distributed over the modules", choices=tuple(STRATEGIES))
    decay_interval: int = option(500, "optimizer steps between refreshes", minimum=1)
    decay_lag: int = option(0, "optimizer steps for spectra in the background; 0: training waits", minimum=0)
    decay_metric: str = option("alpha", "metric that scores a module; a higher score gives more decay", choices=SCORES)
    decay_fit: str = option("median", "how the tail of a spectrum is found and alpha is estimated", choices=FITS)
    decay_xmin_pos: float = option(2.0, "median fit: the tail is the top 1 - 1/x of the spectrum", above=1)
    decay_window: str = option(
        "none", "farms: alpha from square windows, comparable between matrix shapes", choices=("none", "farms")
    )
    filter_zeros: bool = option(False, "drop eigenvalues of at most 1e-5 before the fit, as published")
    decay_assign: str = option("linear", "rule that maps scores to decay multipliers", choices=RULES)
    decay_low: float = option(2 / 3, "smallest multiplier of the linear rule", minimum=0)
    decay_high: float = option(3.0, "largest multiplier of the linear rule", minimum=0)
    decay_budget: str = option("free", "matched: scale multipliers to a mean of 1 over all parameters", choices=BUDGETS)
    decay_control: str = option(
        "none",
        "wrong multipliers to compare with; invert: high scores get less decay; shuffle: multipliers are permuted "
        "between modules; by-type: modules of one role get their mean",
        choices=("none", *CONTROLS),
    )
    decay_frozen: bool = option(False, "a control: keep the multipliers of the first refresh")
    decay_cautious: bool = option(
        False, "decay only entries that the update does not push away from zero; decoupled optimizers only"
    )
    adadecay_scope: str = option(
        "module",
        "adadecay: decay per module, as AlphaDecay's authors ran it, or per entry, as first published",
        choices=SCOPES,
    )
    awd_scale: float = option(50.0, "awd: decay = base decay x this x gradient norm / weight norm", above=0)
    decay_ledger: str = option("", "replay: the decay.jsonl of a run", metavar="FILE")
    decay_ledger_mean: bool = option(False, "replay: use each module's mean decay over time")
    decay_norm_bias: bool = option(False, "decay norms, biases, position and class tokens too, as published")
    decay_multiplier: tuple[str, ...] = option(
        (),
        "parameters whose names match the glob get X x base decay, norms and biases too; the first glob that matches "
        "counts; strategies multiply that",
        metavar="GLOB=X",
    )
    decay_only: tuple[str, ...] = option(
        (), "decay parameters whose names contain one of these, norms and biases too, and no others"
    )
    batchnorm: bool = option(True, "with --decay_norm_bias: a batch norm gets its convolution's decay, matched by name")

    remove_first_layer: bool = option(True, "the stem keeps its base decay")
    remove_last_layer: bool = option(True, "the head keeps its base decay")

    def selection(self, model: Any) -> dict[str, Any]:
        """Which usually skipped matrices are adapted, as keyword arguments of `alphadecay.analyze`."""
        ends = (("stem", not self.remove_first_layer), ("head", not self.remove_last_layer))
        return {"include": tuple(name for name, adapted in ends if adapted)}

    def __post_init__(self) -> None:
        """Check names, and translate the published options for adadecay into --decay adadecay."""
        self.multipliers  # noqa: B018  raises its own messages
        if "" in self.decay_only:
            raise UserError("--decay_only '': an empty name is part of every name")
        if (self.decay, self.decay_metric, self.decay_assign) == ("alphadecay", "grad_norm", "sigmoid"):
            for name, value in (("decay", "adadecay"), ("decay_metric", "alpha"), ("decay_assign", "linear")):
                object.__setattr__(self, name, value)

    @property
    def multipliers(self) -> dict[str, float]:
        """The words of --decay_multiplier as glob -> static multiplier; UserError for an impossible one."""
        multipliers: dict[str, float] = {}
        for word in self.decay_multiplier:
            glob, equals, text = word.rpartition("=")
            if not equals or not glob:
                raise UserError(f"--decay_multiplier {word}: expected GLOB=X, such as '*.mlp.*=0.5'")
            try:
                multipliers[glob], known = float(text), glob in multipliers
            except ValueError:
                raise UserError(f"--decay_multiplier {word}: {text!r} is not a number") from None
            if not 0 <= multipliers[glob] < math.inf:
                raise UserError(f"--decay_multiplier {word}: {text} must be finite and at least 0")
            if known:
                raise UserError(f"--decay_multiplier {word}: {glob} is given twice")
        return multipliers

    @property
    def strategy(self) -> Strategy:
        """The strategy of weight decay."""
        return PER_ENTRY if (self.decay, self.adadecay_scope) == ("adadecay", "entry") else STRATEGIES[self.decay]

    @property
    def assigns(self) -> bool:
        """Whether the strategy assigns multipliers to modules."""
        return self.strategy.assigns

    def arguments(self, seed: int) -> dict[str, Any]:
        """The arguments of the strategy's class, from the options."""
        values = vars(self) | {"seed": seed}
        chosen = {argument: values[option] for argument, option in self.strategy.arguments.items()}
        return {argument: None if value == "none" else value for argument, value in chosen.items()}

    CHECKS = (
        (
            lambda o: o.weight_decay_end is None or o.weight_decay_sched in WITH_END,
            "--weight_decay_end {weight_decay_end:g}: --weight_decay_sched {weight_decay_sched} does not read it",
        ),
        (
            lambda o: o.weight_decay_end is not None or o.weight_decay_sched not in ("linear", "drop"),
            "--weight_decay_sched {weight_decay_sched}: needs --weight_decay_end",
        ),
        (
            lambda o: o.weight_decay_end is None or o.decay_timescale is None,
            "--weight_decay_end {weight_decay_end:g}: not together with --decay_timescale",
        ),
        (lambda o: o.decay != "replay" or o.decay_ledger, "--decay replay: needs --decay_ledger PATH"),
        *(
            (
                lambda o, name=name: o.decay == "replay" or not getattr(o, name),
                f"--{name} {{{name}}}: needs --decay replay, not {{decay}}",
            )
            for name in ("decay_ledger", "decay_ledger_mean")
        ),
        (
            lambda o: o.decay != "adadecay" or (o.decay_metric, o.decay_assign) == ("alpha", "linear"),
            "--decay_metric {decay_metric}, --decay_assign {decay_assign}: adadecay always uses the sigmoid of the "
            "gradient norm; to choose them, use --decay alphadecay",
        ),
        *(
            (
                lambda o, name=name, off=off: o.assigns or getattr(o, name) == off,
                f"--{name} {{{name}}}: has no effect with --decay {{decay}}, which assigns no multipliers to modules"
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
