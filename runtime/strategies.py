"""The table of weight decay strategies, which builder, options, figures and comparisons read.

Imports neither torch nor other slow packages. A new strategy needs a class that `alphadecay` exports and an entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Strategy:
    """How decay is distributed over the modules."""

    builds: str  # class of `alphadecay`
    arguments: Mapping[str, str] = field(default_factory=dict)  # argument of the class -> option
    assigns: bool = False  # multipliers to modules, so that --decay_control, --decay_budget and the like apply
    score: str | None = None  # label of the metric that scores modules; None: --decay_metric
    colour: str = ""  # in comparisons: "C0" to "C9", one that no other has; "": a free one


EVERY = {"interval": "decay_interval"}
ASSIGNED = EVERY | {
    "budget": "decay_budget",
    "control": "decay_control",
    "seed": "seed",
    "fit": "decay_fit",
    "xmin_pos": "decay_xmin_pos",
    "window": "decay_window",
    "filter_zeros": "filter_zeros",
    "frozen": "decay_frozen",
    "lag": "decay_lag",
}
RANGE = {"low": "decay_low", "high": "decay_high", "rule": "decay_assign", "metric": "decay_metric"}
LOG = dict(ledger="decay_ledger", mean="decay_ledger_mean")

STRATEGIES = {
    "uniform": Strategy("UniformDecay", EVERY, colour="C0"),
    "alphadecay": Strategy("AlphaDecay", ASSIGNED | RANGE, assigns=True, colour="C1"),
    "adadecay": Strategy("AdaDecay", ASSIGNED, assigns=True, score="gradient norm", colour="C2"),
    "awd": Strategy("AWD", {"scale": "awd_scale"}, score="gradient norm / weight norm", colour="C3"),
    "replay": Strategy("Replay", LOG, colour="C4"),
}
PER_ENTRY = Strategy("AdaDecayPerEntry", EVERY)  # adadecay with --adadecay_scope entry
