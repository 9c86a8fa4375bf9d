"""The strategies of weight decay, each one entry: builder, options, figures and comparisons read this table.

Imports neither torch nor anything as slow. A new strategy is a class of `alphadecay` and an entry here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Strategy:
    """How decay is spread over the modules."""

    builds: str  # class of `alphadecay`
    arguments: Mapping[str, str] = field(default_factory=dict)  # of the class: the option that each is
    assigns: bool = False  # decays to modules, so what is common to all assignments acts
    score: str | None = None  # label of what modules are scored by; None: what --decay_metric says
    colour: str = ""  # in comparisons, as matplotlib names it


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
LOG = {"ledger": "decay_ledger", "mean": "decay_ledger_mean"}

STRATEGIES = {
    "uniform": Strategy("UniformDecay", EVERY, colour="C0"),
    "alphadecay": Strategy("AlphaDecay", ASSIGNED | RANGE, assigns=True, colour="C1"),
    "adadecay": Strategy("AdaDecay", ASSIGNED, assigns=True, score="gradient norm", colour="C2"),
    "awd": Strategy("AWD", {"scale": "awd_scale"}, score="gradient norm / weight norm", colour="C3"),
    "replay": Strategy("Replay", LOG, colour="C4"),
}
PER_ENTRY = Strategy("AdaDecayPerEntry", EVERY)  # adadecay with --adadecay_scope entry
