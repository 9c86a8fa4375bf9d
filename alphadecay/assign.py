"""Turn scores into multipliers of the base decay: a rule, then a control, then the budget."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from statistics import fmean, pstdev
from typing import Any

SIGMOID_STEEPNESS = 4.0  # beta of the paper's appendix A.3
LARGEST_SCORE = 1e150  # squares of larger scores are not finite
LARGEST_POWER = 700.0  # largest exponent for which exp is finite, about
SIGMOID_EPS = 1e-8  # added to the standard deviation, as published

CONTROLS = ("invert", "shuffle", "by-type")
BUDGETS = ("free", "matched")

Scores = Mapping[str, float]


def assign(
    scores: Scores,
    rule: str = "linear",
    low: float = 2 / 3,
    high: float = 3.0,
    budget: str = "free",
    control: str | None = None,
    blocks: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    sizes: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Multipliers of the base decay, by module name: a rule, then a control, then the budget.

    With s the score of a module, its multiplier m is

        linear    m = low + (s - s_min) / (s_max - s_min) x (high - low), over all modules
        sqrt      m = sqrt(s) / mean of sqrt(s), over all modules
        log2      m = log2(s) / mean of log2(s), over all modules
        sigmoid   m = 2 / (1 + exp(-4 z)), z = (s - mean) / (standard deviation + 1e-8), over the modules of its block

    and at the end, with budget "matched", m / (sum of size x m / sum of sizes), so that the total decay equals the
    uniform one's.

    A single score, or equal scores, give 1 to every module: there is nothing to rank (the published program then
    gives `high` to every module).

    Args:
        scores: Module name -> score; higher gets more decay.
        rule: "linear", "sqrt", "log2" or "sigmoid". "sqrt" needs scores of at least 0, "log2" of at least 1.
        low: Smallest multiplier of the linear rule, at least 0. The other rules ignore it.
        high: Largest multiplier of the linear rule, at least `low`. The other rules ignore it.
        budget: "free": multipliers as the rule gives them. "matched": their mean, weighted by `sizes`, is 1.
        control: None; "invert": s_min + s_max - s replaces s; "shuffle": other modules get the multipliers, by one
            permutation drawn from `seed`; "by-type": each module gets the mean of its role.
        blocks: Module name -> block label, for rule "sigmoid".
        roles: Module name -> role, for control "by-type".
        sizes: Module name -> number of parameters, times the static multiplier if it is not 1, for budget "matched".
        seed: Seed of the permutation of "shuffle".

    Returns:
        Module name -> multiplier, at least 0, in the order of `scores`.

    Raises:
        ValueError: For no scores, a score that is not finite, low > high, an unknown name, a missing mapping,
            or a score whose root or logarithm would be a negative decay; the message names module and value.

    Source: AlphaDecay (arXiv 2506.14562), eq. 3 and appendix A.3, divided by the base decay.

    Example:
        >>> import alphadecay
        >>> alphadecay.assign({"q": 2.0, "fc1": 3.0, "fc2": 4.0}, low=0.5, high=1.5)
        {'q': 0.5, 'fc1': 1.0, 'fc2': 1.5}
        >>> alphadecay.assign({"q": 2.0, "fc1": 4.0}, low=0.5, high=1.5, budget="matched", sizes={"q": 100, "fc1": 300})
        {'q': 0.4, 'fc1': 1.2}
    """
    return Assignment(rule, low, high, budget, control, seed).multipliers(scores, blocks, roles, sizes)


@dataclass(frozen=True)
class Assignment:
    """Settings of `assign`. The constructor refuses impossible ones."""

    rule: str = "linear"
    low: float = 2 / 3
    high: float = 3.0
    budget: str = "free"
    control: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option, known in (("rule", tuple(RULES)), ("budget", BUDGETS), ("control", (None, *CONTROLS))):
            if (value := getattr(self, option)) not in known:
                raise ValueError(f"{option}={value!r} is unknown; choose from {', '.join(map(str, known))}")
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__"):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        for option, bound in (("low", self.low), ("high", self.high)):
            if not isinstance(bound, Real):
                raise ValueError(f"{option} must be a number, got {bound!r}")
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(f"need 0 <= low <= high, got low={self.low:g}, high={self.high:g}")

    def multipliers(
        self,
        scores: Scores,
        blocks: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        sizes: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Module name -> multiplier; see `assign`."""
        scores = {name: float(score) for name, score in scores.items()}
        _check(scores)
        if len(set(scores.values())) == 1:
            return dict.fromkeys(scores, 1.0)
        if self.control == "invert":
            ends = min(scores.values()) + max(scores.values())
            scores = {name: ends - score for name, score in scores.items()}
        rule, minimum = RULES[self.rule]
        for name, score in scores.items():
            if score < minimum:
                raise ValueError(f"rule {self.rule!r} needs scores of at least {minimum}; that of {name} is {score:g}")
        multipliers = rule(self, scores, blocks)
        if self.control == "shuffle":
            multipliers = shuffled(multipliers, self.seed)
        elif self.control == "by-type":
            multipliers = role_means(multipliers, _mapping(roles, scores, "roles", "control 'by-type'"))
        if self.budget == "matched":
            multipliers = matched(multipliers, _mapping(sizes, scores, "sizes", "budget 'matched'"))
        return multipliers


def linear(scores: Scores, low: float, high: float) -> dict[str, float]:
    """Map scores linearly, the smallest to `low` and the largest to `high` (AlphaDecay, arXiv 2506.14562, eq. 3)."""
    smallest, largest = min(scores.values()), max(scores.values())
    shares = {name: (score - smallest) / (largest - smallest) for name, score in scores.items()}
    return {name: low * (1 - share) + high * share for name, share in shares.items()}


def over_mean(values: Scores) -> dict[str, float]:
    """Divide each value by the mean of all values, so that the mean multiplier is 1 (arXiv 2506.14562, A.3)."""
    mean = fmean(values.values())
    return {name: value / mean for name, value in values.items()}


def sigmoid_in_blocks(scores: Scores, blocks: Mapping[str, str] | None) -> dict[str, float]:
    """2 / (1 + exp(-4 z)) with z the score standardised within its block: in (0, 2) (arXiv 2506.14562, A.3)."""
    blocks = _mapping(blocks, scores, "blocks", "rule 'sigmoid'")
    members: dict[str, list[str]] = {}
    for name in scores:
        members.setdefault(blocks[name], []).append(name)
    multipliers = {}
    for names in members.values():
        inside = [scores[name] for name in names]
        mean, spread = fmean(inside), pstdev(inside) + SIGMOID_EPS
        for name in names:
            power = -SIGMOID_STEEPNESS * (scores[name] - mean) / spread
            multipliers[name] = 2 / (1 + math.exp(min(power, LARGEST_POWER)))
    return {name: multipliers[name] for name in scores}


Rule = Callable[[Assignment, Scores, Mapping[str, str] | None], dict[str, float]]
RULES: dict[str, tuple[Rule, float]] = {  # rule -> function, and the smallest score whose multiplier is not negative
    "linear": (lambda a, scores, _: linear(scores, a.low, a.high), -math.inf),
    "sqrt": (lambda a, scores, _: over_mean({name: math.sqrt(s) for name, s in scores.items()}), 0),
    "log2": (lambda a, scores, _: over_mean({name: math.log2(s) for name, s in scores.items()}), 1),
    "sigmoid": (lambda _, scores, blocks: sigmoid_in_blocks(scores, blocks), -math.inf),
}


def shuffled(multipliers: Mapping[str, float], seed: int) -> dict[str, float]:
    """The same multipliers for other modules; a seed gives one permutation for the whole run."""
    values = list(multipliers.values())
    random.Random(int(seed)).shuffle(values)
    return dict(zip(multipliers, values, strict=True))


def role_means(multipliers: Mapping[str, float], roles: Mapping[str, str]) -> dict[str, float]:
    """Give every module the mean multiplier of its role."""
    members: dict[str, list[float]] = {}
    for name, multiplier in multipliers.items():
        members.setdefault(roles[name], []).append(multiplier)
    return {name: fmean(members[roles[name]]) for name in multipliers}


def matched(multipliers: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Divide by the mean weighted by size, so that the total decay equals the uniform one's."""
    for name in multipliers:
        if not sizes[name] > 0:
            raise ValueError(f"the size of {name} is {sizes[name]}, not above 0")
    total = sum(sizes[name] for name in multipliers)
    mean = sum(sizes[name] * multiplier for name, multiplier in multipliers.items()) / total
    return {name: multiplier / mean if mean else 1.0 for name, multiplier in multipliers.items()}


def _check(scores: Scores) -> None:
    if not scores:
        raise ValueError("no scores to assign from: no module is adapted")
    for name, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(f"the score of {name} is {score}, not a finite number")
        if abs(score) > LARGEST_SCORE:
            raise ValueError(f"the score of {name} is {score:g}: beyond {LARGEST_SCORE:g} squares and sums overflow")


def _mapping(mapping: Mapping[str, Any] | None, scores: Scores, argument: str, user: str) -> Mapping[str, Any]:
    """The mapping; ValueError, which names its user, if it is None or lacks a module of `scores`."""
    if mapping is None:
        raise ValueError(f"{user} needs {argument}: a mapping from every module name")
    missing = [name for name in scores if name not in mapping]
    if missing:
        raise ValueError(f"{argument} lacks {', '.join(missing[:3])}, which {user} needs")
    return mapping
