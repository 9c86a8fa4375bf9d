"""The verdict on a setting in plain language; every sentence follows from its numbers."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from comparison.findings import Finding, Tuned, state_of
from comparison.statistics import (
    BETTER,
    LARGER,
    NO_SEED,
    ONE_SEED,
    POWER,
    SAME,
    WORSE,
    Comparison,
    counted,
    evidence,
    fixed,
    listed,
    number,
    seeds,
    short,
    spread_bounds,
    unit,
)

FEW = 5  # with this many seeds or fewer, the text says that the spread is uncertain


def verdict(finding: Finding) -> list[str]:
    """Paragraphs: which strategies are better, detectable differences and seeds needed, controls, cautions."""
    parts = [lead(finding), effects(finding), sensitivity(finding)]
    parts += [*controls(finding), *total_decay(finding), *cautions(finding)]
    return [part for part in parts if part]


def lead(finding: Finding) -> str:
    """Which strategies are better than, worse than or not distinguishable from the baseline."""
    baseline = finding.setting.baseline
    if finding.baseline.best is None:
        return f"No run of the baseline, {baseline}, has finished yet, so there is nothing to compare with."
    groups = _by_verdict(finding)
    if not groups:
        return f"There is no other strategy to compare {baseline} with."
    sentences = []
    if BETTER not in groups and {SAME, WORSE} & set(groups):
        sentences.append(f"No strategy is shown to be better than {baseline}.")
    for name, opening in (
        (BETTER, f"Better than {baseline}"),
        (WORSE, f"Worse than {baseline}"),
        (SAME, f"Not distinguishable from {baseline}"),
        (ONE_SEED, f"Only one seed, which cannot show a difference to {baseline}"),
        (NO_SEED, f"No seed has finished in both {baseline} and the strategy"),
    ):
        if name in groups:
            sentences.append(f"{opening}: {', '.join(c.paired.first for c in groups[name])}.")
    return " ".join(sentences)


def effects(finding: Finding) -> str:
    """The difference of each strategy to the baseline, with its interval and p value."""
    metric, baseline = finding.setting.metric, finding.setting.baseline
    compared = [c for c in finding.with_baseline.values() if c.paired.mean is not None]
    if not compared:
        return ""
    differences = "; ".join(f"{c.paired.first} {evidence(c, finding.decimals)}" for c in compared)
    measure = f"; differences in {unit(metric)}" if unit(metric) else ""
    direction = "higher" if metric.higher_is_better else "lower"
    text = f"Strategy minus {baseline} ({metric.label}, {direction} is better{measure}): {differences}."
    undecided = [c.paired.interval for c in compared if c.verdict == SAME and c.paired.interval]
    if any(low * high > 0 for low, high in undecided):
        text += (
            " An interval may exclude 0 although the verdict is not distinguishable: p is corrected for multiple "
            "comparisons, the interval is not."
        )
    return text


def _by_verdict(finding: Finding) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for comparison in finding.with_baseline.values():
        groups.setdefault(comparison.verdict, []).append(comparison)
    return groups


def sensitivity(finding: Finding) -> str:
    """The smallest detectable differences, and the seeds needed to show the observed ones."""
    with_spread = [c for c in finding.comparisons if c.detectable is not None]
    if not with_spread:
        if finding.baseline.best is None or any(c.paired.all_equal for c in finding.comparisons):
            return ""
        return "At least two seeds are needed to estimate the uncertainty."
    metric = finding.setting.metric
    sizes = sorted(c.detectable for c in with_spread if c.detectable is not None)
    counts = sorted({c.paired.count for c in with_spread})
    ends = (fixed(size, finding.decimals) for size in sorted({sizes[0], sizes[-1]}))
    size_range = f"{' to '.join(ends)} {unit(metric)}".rstrip()
    text = (
        f"Smallest detectable difference: with {listed([counted(n, 'seed') for n in counts], 'or')} and "
        f"{counted(with_spread[0].family, 'comparison')}, a true difference is shown in {100 * POWER:.0f} % of cases "
        f"only if it is at least {size_range}{', depending on the strategy' if len(sizes) > 1 else ''}."
    )
    undecided = [c for c in with_spread if c.verdict == SAME and c.seeds_needed]
    if undecided:
        needed = "; ".join(f"{_pair(c)}: {seeds(c.seeds_needed)}" for c in undecided)
        text += f" Seeds needed to show differences of the observed size: {needed}."
    if counts[0] <= FEW:
        low, high = spread_bounds(counts[0])
        text += (
            f" These numbers are rough: they assume that the true spread equals the observed one, but with {counts[0]} "
            f"seeds it may be {number(low, 2)} to {number(high, 2)} times as large."
        )
    return text


def _pair(comparison: Comparison) -> str:
    return f"{comparison.paired.first} and {comparison.paired.second}"


def total_decay(finding: Finding) -> list[str]:
    """Paragraphs on better strategies that also have a larger total decay than the baseline."""
    sentences = []
    base = finding.baseline.best.mean_decay if finding.baseline.best else None
    largest = max((c.mean_decay or 0.0 for c in finding.baseline.candidates if c.complete), default=0.0)
    for name in finding.winners:
        best = finding.of(name).best
        own = best.mean_decay if best else None
        if own is None or base is None or own <= LARGER * base:
            continue
        text = (
            f"{name} is better with a larger mean applied decay, {short(own)} against {short(base)} of "
            f"{finding.setting.baseline}: a larger total decay could explain the difference."
        )
        if largest >= own:
            text += (
                f" {finding.setting.baseline} was searched up to {short(largest)} and was best at {short(base)}, which "
                "is evidence against this explanation."
            )
        else:
            text += f" {finding.setting.baseline} was searched only up to {short(largest)}."
        sentences.append(text)
    return sentences


def cautions(finding: Finding) -> list[str]:
    """Reasons to doubt the verdict: edges of the search, missing runs, and differences without a spread."""
    paragraphs = _edge_words(finding)
    for tuned in finding.tuned:
        paragraphs += _missing_words(tuned)
    for comparison in finding.comparisons:
        if comparison.paired.all_equal and comparison.paired.mean:
            paragraphs.append(
                f"{_pair(comparison)} differ by the same amount in every seed, so there is no spread for a test."
            )
    return paragraphs


def _edge_words(finding: Finding) -> list[str]:
    """A paragraph per option whose best value is at the edge of the search for some strategies."""
    sides: dict[str, dict[tuple[bool, float], list[str]]] = {}
    for tuned in finding.tuned:
        for edge in tuned.edges:
            sides.setdefault(edge.option, {}).setdefault((edge.largest, edge.value), []).append(tuned.strategy)
    paragraphs = []
    for option, by_side in sides.items():
        name = "base decay" if option == "weight_decay" else option
        parts = [
            f"for {listed(names)} the {'largest' if largest else 'smallest'} searched ({short(value)})"
            for (largest, value), names in sorted(by_side.items())
        ]
        paragraphs.append(
            f"The best {name} is at the edge of the search: {'; '.join(parts)}. "
            "The optimum may be outside, and the comparison may then change."
        )
    return paragraphs


def _missing_words(tuned: Tuned) -> list[str]:
    """A sentence on a strategy of which not all planned runs have finished."""
    if tuned.complete:
        return []
    runs = sum(len(candidate.runs) for candidate in tuned.candidates)
    states = Counter(state for candidate in tuned.candidates for state in map(state_of, candidate.runs))
    others = listed([f"{count} {state}" for state, count in states.items() if state != "finished"])
    text = f"{tuned.strategy}: of {counted(runs, 'run')}, {others}."
    if tuned.best is None:
        text += " No run has finished."
    elif not tuned.best.complete:
        text += " No point of its search has all seeds; the best point with some seeds is used."
    else:
        text += " Points of its search with unfinished seeds are left out when the best point is chosen."
    return [text]


UNCONTROLLED = {"decay_budget": "free", "decay_control": "none", "decay_frozen": False}  # values without a control
MEANING = {
    "invert": "the order of the scores is reversed",
    "shuffle": "the same multipliers are assigned to other modules at random",
    "by-type": "every module has the mean multiplier of its role",
}


def controls(finding: Finding) -> list[str]:
    """A paragraph per strategy that differs from another one only by a control, and per other contrast."""
    paragraphs, described = [], set()
    plain = [tuned for tuned in finding.tuned if not _controls_of(tuned)]
    for control in finding.tuned:
        for original in plain:
            if _controls_of(control) and _differ_only_by_controls(control, original, finding.setting.searched):
                paragraphs.append(_control_words(finding, original, control))
                described.add(frozenset((original.strategy, control.strategy)))
    for contrast in finding.contrasts:
        if frozenset((contrast.paired.first, contrast.paired.second)) not in described:
            paragraphs.append(_contrast_words(finding, contrast))
    return paragraphs


def _controls_of(tuned: Tuned) -> Mapping[str, Any]:
    options = tuned.options
    return {name: options[name] for name, off in UNCONTROLLED.items() if options.get(name, off) != off}


def _differ_only_by_controls(a: Tuned, b: Tuned, searched: tuple[str, ...]) -> bool:
    ignored = {*UNCONTROLLED, *searched, "weight_decay"}
    one, other = ({k: v for k, v in tuned.options.items() if k not in ignored} for tuned in (a, b))
    return one == other


def _meaning(control: Tuned) -> str:
    options = _controls_of(control)
    parts = []
    if "decay_control" in options:
        parts.append(MEANING.get(options["decay_control"], f"decay_control {options['decay_control']}"))
    if "decay_budget" in options:
        parts.append(
            "its mean multiplier is kept at 1, so that its total decay equals that of uniform at the same base"
        )
    if "decay_frozen" in options:
        parts.append("the first assignment of decays is kept")
    return "; ".join(parts)


def _control_words(finding: Finding, original: Tuned, control: Tuned) -> str:
    name, other, baseline = original.strategy, control.strategy, finding.setting.baseline
    sentences = [f"Control {other}: {name}, but {_meaning(control)}."]
    before, now = finding.with_baseline.get(name), finding.with_baseline.get(other)
    if before is not None and now is not None:
        sentences.append(_advantage_words(name, other, baseline, before, now))
    direct = finding.between(name, other) or finding.between(other, name)
    if direct is not None:
        sentences.append(_direct(direct, finding))
    return " ".join(sentences)


def _advantage_words(name: str, other: str, baseline: str, before: Comparison, now: Comparison) -> str:
    """Whether the original's advantage over the baseline remains under the control."""
    if {before.verdict, now.verdict} & {ONE_SEED, NO_SEED}:
        return f"There are too few seeds to say whether it behaves like {name}."
    if before.verdict != BETTER:
        state = {BETTER: "is better than", WORSE: "is worse than", SAME: "is not distinguishable from"}[now.verdict]
        lacking = "is not shown to have an" if before.verdict == SAME else "has no"
        return f"{name} {lacking} advantage over {baseline} that could remain; {other} {state} {baseline}."
    if now.verdict == BETTER:
        return f"The advantage of {name} over {baseline} remains; {other} is better than {baseline} too."
    if now.verdict == WORSE:
        return f"The advantage of {name} over {baseline} becomes a disadvantage: {other} is worse."
    return (
        f"The advantage of {name} over {baseline} is not shown to remain: {other} is not distinguishable from "
        f"{baseline}, possibly because there are too few seeds."
    )


def _direct(comparison: Comparison, finding: Finding) -> str:
    first, second = comparison.paired.first, comparison.paired.second
    outcome = {
        BETTER: f"{first} is better than {second}: the difference between them matters here",
        WORSE: f"{first} is worse than {second}: the difference between them matters here, in the opposite direction",
        SAME: f"{first} and {second} are not distinguishable: the difference between them is not shown to matter",
        ONE_SEED: f"{first} and {second} have only one seed in common, which cannot show a difference",
        NO_SEED: f"no seed has finished in both {first} and {second}",
    }[comparison.verdict]
    if comparison.verdict == NO_SEED:
        return f"{outcome[0].upper()}{outcome[1:]}."
    sentence = f"Compared directly, {outcome} ({evidence(comparison, finding.decimals)})."
    return sentence + (_unequal_decay(finding, first, second) if comparison.verdict in (BETTER, WORSE) else "")


def _unequal_decay(finding: Finding, first: str, second: str) -> str:
    """A sentence if the mean applied decays of two strategies differ."""
    bests = [finding.of(name).best for name in (first, second)]
    decays = [best.mean_decay for best in bests if best is not None and best.mean_decay]
    if len(decays) < 2 or max(decays) <= LARGER * min(decays):
        return ""
    return f" Their mean applied decays differ too, {short(decays[0])} and {short(decays[1])}, which may be the reason."


def _contrast_words(finding: Finding, contrast: Comparison) -> str:
    return f"Contrast {contrast.paired.first} with {contrast.paired.second}. {_direct(contrast, finding)}"
