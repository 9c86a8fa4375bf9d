"""The options of the decay, which both trainers have; imports neither torch nor anything as slow."""

from dataclasses import dataclass
from typing import Any

from runtime.options import option
from runtime.strategies import PER_ENTRY, STRATEGIES, Strategy

SCOPES = ("module", "entry")
# What alphadecay has to choose from; it cannot be asked without torch.
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
    weight_decay_end: float | None = option(None, "base weight decay at the end, reached along a cosine", minimum=0)
    decay: str = option("uniform", "how decay is spread over the modules", choices=tuple(STRATEGIES))
    decay_interval: int = option(500, "optimizer steps between refreshes", minimum=1)
    decay_lag: int = option(0, "steps that spectra may take to measure beside training; 0: training waits", minimum=0)
    decay_metric: str = option("alpha", "what scores a module; higher scores get more decay", choices=SCORES)
    decay_fit: str = option("median", "how the tail of a spectrum is found", choices=FITS)
    decay_xmin_pos: float = option(2.0, "median fit: the tail is the top 1 - 1/x of the spectrum", above=1)
    decay_window: str = option(
        "none", "farms: alpha of square windows, the same for all shapes", choices=("none", "farms")
    )
    filter_zeros: bool = option(False, "drop eigenvalues of at most 1e-5 before the fit, as published")
    decay_assign: str = option("linear", "from scores to multipliers", choices=RULES)
    decay_low: float = option(2 / 3, "smallest multiplier of the linear rule", minimum=0)
    decay_high: float = option(3.0, "largest multiplier of the linear rule", minimum=0)
    decay_budget: str = option("free", "matched: the mean multiplier is held at 1", choices=BUDGETS)
    decay_control: str = option("none", "a control to compare with", choices=("none", *CONTROLS))
    decay_frozen: bool = option(False, "a control: keep the first assignment for ever")
    decay_cautious: bool = option(
        False, "decay only entries that the update does not push away from zero; decoupled optimizers"
    )
    adadecay_scope: str = option(
        "module", "as AlphaDecay's authors ran it, or as published first: per entry", choices=SCOPES
    )
    awd_scale: float = option(50.0, "awd: the base times this times gradient norm / weight norm", above=0)
    decay_ledger: str = option("", "replay: a run's decay.jsonl", metavar="FILE")
    decay_ledger_mean: bool = option(False, "replay: each module's mean over time")
    decay_norm_bias: bool = option(False, "decay norms, biases, position and class tokens too, as published")
    batchnorm: bool = option(True, "with --decay_norm_bias: a batch norm is decayed as the convolution of like name")

    remove_first_layer: bool = option(True, "the stem keeps its base decay")
    remove_last_layer: bool = option(True, "the head keeps its base decay")

    def selection(self, model: Any) -> dict[str, Any]:
        """Which matrices take part besides the usual ones, or do not, as `alphadecay.analyze` has it."""
        ends = (("stem", not self.remove_first_layer), ("head", not self.remove_last_layer))
        return {"include": tuple(name for name, takes_part in ends if takes_part)}

    def __post_init__(self) -> None:
        """Name what the published options say in their own way."""
        if (self.decay, self.decay_metric, self.decay_assign) == ("alphadecay", "grad_norm", "sigmoid"):
            for name, value in (("decay", "adadecay"), ("decay_metric", "alpha"), ("decay_assign", "linear")):
                object.__setattr__(self, name, value)

    @property
    def strategy(self) -> Strategy:
        """How decay is spread over the modules."""
        return PER_ENTRY if (self.decay, self.adadecay_scope) == ("adadecay", "entry") else STRATEGIES[self.decay]

    @property
    def assigns(self) -> bool:
        """Whether modules are assigned decays of their own."""
        return self.strategy.assigns

    def arguments(self, seed: int) -> dict[str, Any]:
        """The arguments of the strategy's class that are options."""
        values = vars(self) | {"seed": seed}
        chosen = {argument: values[option] for argument, option in self.strategy.arguments.items()}
        return {argument: None if value == "none" else value for argument, value in chosen.items()}

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
