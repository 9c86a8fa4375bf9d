"""The verdict on a setting in plain language: every sentence follows from its figures."""

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

FEW = 5  # seeds up to which the spread is said to be uncertain


def verdict(finding: Finding) -> list[str]:
    """Paragraphs: who is better, what it would take to tell, what the controls say, what to be careful about."""
    parts = [lead(finding), how_much(finding), what_it_takes(finding)]
    parts += [*controls(finding), *total_decay(finding), *cautions(finding)]
    return [part for part in parts if part]


def lead(finding: Finding) -> str:
    """Which strategies are better, worse or not distinguishable from the baseline."""
    baseline = finding.setting.baseline
    if finding.baseline.best is None:
        return f"No run of the baseline, {baseline}, has finished: there is nothing to compare with yet."
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
        (ONE_SEED, f"One seed only, which says nothing on differences to {baseline}"),
        (NO_SEED, f"No seed has finished in both {baseline} and the strategy"),
    ):
        if name in groups:
            sentences.append(f"{opening}: {', '.join(c.paired.first for c in groups[name])}.")
    return " ".join(sentences)


def how_much(finding: Finding) -> str:
    """By how much strategies differ from the baseline."""
    metric, baseline = finding.setting.metric, finding.setting.baseline
    found = [c for c in finding.with_baseline.values() if c.paired.mean is not None]
    if not found:
        return ""
    each = "; ".join(f"{c.paired.first} {evidence(c, finding.decimals)}" for c in found)
    measure = f"; differences in {unit(metric)}" if unit(metric) else ""
    direction = "higher" if metric.higher_is_better else "lower"
    text = f"By how much, as strategy minus {baseline} ({metric.label}, {direction} is better{measure}): {each}."
    if any(c.paired.interval and c.paired.interval[0] * c.paired.interval[1] > 0 for c in found if c.verdict == SAME):
        text += (
            " Intervals are those of one comparison alone: where one leaves out 0 and the verdict is still not "
            "distinguishable, that is for the number of comparisons, which p is corrected for."
        )
    return text


def _by_verdict(finding: Finding) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for comparison in finding.with_baseline.values():
        groups.setdefault(comparison.verdict, []).append(comparison)
    return groups


def what_it_takes(finding: Finding) -> str:
    """The smallest differences that could have been shown, and the seeds it takes to show the observed ones."""
    told = [c for c in finding.comparisons if c.detectable is not None]
    if not told:
        spread = any(c.paired.all_equal for c in finding.comparisons)
        return (
            "" if spread or finding.baseline.best is None else "At least two seeds are needed to say how sure this is."
        )
    metric = finding.setting.metric
    shown = sorted(c.detectable for c in told if c.detectable is not None)
    counts = sorted({c.paired.count for c in told})
    ends = (fixed(size, finding.decimals) for size in sorted({shown[0], shown[-1]}))
    sizes = f"{' to '.join(ends)} {unit(metric)}".rstrip()
    text = (
        f"What it would take to tell: with {listed([counted(n, 'seed') for n in counts], 'or')} and "
        f"{counted(told[0].family, 'comparison')}, a true difference is shown in {100 * POWER:.0f} % of cases only if "
        f"it is as large as {sizes}{', depending on the strategy' if len(shown) > 1 else ''}."
    )
    open_ones = [c for c in told if c.verdict == SAME and c.seeds_needed]
    if open_ones:
        each = "; ".join(f"{_pair(c)}: {seeds(c.seeds_needed)}" for c in open_ones)
        text += f" Seeds needed to show differences of the size seen here: {each}."
    if counts[0] <= FEW:
        low, high = spread_bounds(counts[0])
        text += (
            f" All this is rough: it takes the spread seen for the true one, which with {counts[0]} seeds may be "
            f"{number(low, 2)} to {number(high, 2)} times as large."
        )
    return text


def _pair(comparison: Comparison) -> str:
    return f"{comparison.paired.first} and {comparison.paired.second}"


def total_decay(finding: Finding) -> list[str]:
    """Where a better strategy also has more decay in total than the baseline, that it could be the reason."""
    sentences = []
    base = finding.baseline.best.mean_decay if finding.baseline.best else None
    reached = max((p.mean_decay or 0.0 for p in finding.baseline.points if p.complete), default=0.0)
    for name in finding.winners:
        best = finding.of(name).best
        own = best.mean_decay if best else None
        if own is None or base is None or own <= LARGER * base:
            continue
        text = (
            f"{name} does better with a larger mean applied decay, {short(own)} against {short(base)} of "
            f"{finding.setting.baseline}: a larger total decay could explain the difference."
        )
        if reached >= own:
            text += (
                f" {finding.setting.baseline} was searched up to {short(reached)} and did best at {short(base)}, which "
                "speaks against it."
            )
        else:
            text += f" {finding.setting.baseline} was searched only up to {short(reached)}."
        sentences.append(text)
    return sentences


def cautions(finding: Finding) -> list[str]:
    """What weakens the verdict: edges of the search, runs that are missing, and differences without a spread."""
    found = _edge_words(finding)
    for tuned in finding.tuned:
        found += _missing_words(tuned)
    for comparison in finding.comparisons:
        if comparison.paired.all_equal and comparison.paired.mean:
            found.append(
                f"{_pair(comparison)} differ by the same amount in every seed: there is no spread that a test could "
                "judge it by."
            )
    return found


def _edge_words(finding: Finding) -> list[str]:
    """A sentence on each option whose best value is at the edge of its search, with the strategies of which it is."""
    sides: dict[str, dict[tuple[bool, float], list[str]]] = {}
    for tuned in finding.tuned:
        for edge in tuned.edges:
            sides.setdefault(edge.option, {}).setdefault((edge.largest, edge.value), []).append(tuned.strategy)
    found = []
    for option, by_side in sides.items():
        what = "base decay" if option == "weight_decay" else option
        each = [
            f"of {listed(names)} the {'largest' if largest else 'smallest'} searched ({short(value)})"
            for (largest, value), names in sorted(by_side.items())
        ]
        found.append(
            f"The best {what} is at the edge of the search: {'; '.join(each)}. "
            "The optimum may lie outside, and the comparison may then change."
        )
    return found


def _missing_words(tuned: Tuned) -> list[str]:
    """Of a strategy whose planned runs have not all finished."""
    if tuned.complete:
        return []
    runs = sum(len(point.runs) for point in tuned.points)
    states = Counter(state for point in tuned.points for state in map(state_of, point.runs))
    others = listed([f"{count} {state}" for state, count in states.items() if state != "finished"])
    text = f"{tuned.strategy}: of {counted(runs, 'run')}, {others}."
    if tuned.best is None:
        text += " No run has finished."
    elif not tuned.best.complete:
        text += " No point of its search has all seeds; the best of those with some is taken."
    else:
        text += " Points of its search that lack seeds are left out when the best one is chosen."
    return [text]


UNCONTROLLED = {"decay_budget": "free", "decay_control": "none", "decay_frozen": False}  # and what is no control
MEANING = {
    "invert": "the order of the scores is reversed",
    "shuffle": "the same multipliers are dealt to other modules at random",
    "by-type": "every module has the mean multiplier of its role",
}


def controls(finding: Finding) -> list[str]:
    """A paragraph for each strategy that is another one but for a control, and for each other contrast."""
    paragraphs, told = [], set()
    plain = [tuned for tuned in finding.tuned if not _controls_of(tuned)]
    for control in finding.tuned:
        for original in plain:
            if _controls_of(control) and _same_but_for_controls(control, original, finding.setting.searched):
                paragraphs.append(_control_words(finding, original, control))
                told.add(frozenset((original.strategy, control.strategy)))
    for contrast in finding.contrasts:
        if frozenset((contrast.paired.first, contrast.paired.second)) not in told:
            paragraphs.append(_contrast_words(finding, contrast))
    return paragraphs


def _controls_of(tuned: Tuned) -> Mapping[str, Any]:
    options = tuned.options
    return {name: options[name] for name, off in UNCONTROLLED.items() if options.get(name, off) != off}


def _same_but_for_controls(a: Tuned, b: Tuned, searched: tuple[str, ...]) -> bool:
    aside = {*UNCONTROLLED, *searched, "weight_decay"}
    one, other = ({k: v for k, v in each.options.items() if k not in aside} for each in (a, b))
    return one == other


def _meaning(control: Tuned) -> str:
    options = _controls_of(control)
    parts = []
    if "decay_control" in options:
        parts.append(MEANING.get(options["decay_control"], f"decay_control {options['decay_control']}"))
    if "decay_budget" in options:
        parts.append("its mean multiplier is held at 1, so that at one base decay its total decay is that of uniform")
    if "decay_frozen" in options:
        parts.append("the first assignment of decays is kept")
    return "; ".join(parts)


def _control_words(finding: Finding, original: Tuned, control: Tuned) -> str:
    name, other, baseline = original.strategy, control.strategy, finding.setting.baseline
    sentences = [f"Control {other}: {name}, but {_meaning(control)}."]
    before, now = finding.with_baseline.get(name), finding.with_baseline.get(other)
    if before is not None and now is not None:
        sentences.append(_remains(name, other, baseline, before, now))
    direct = finding.between(name, other) or finding.between(other, name)
    if direct is not None:
        sentences.append(_direct(direct, finding))
    return " ".join(sentences)


def _remains(name: str, other: str, baseline: str, before: Comparison, now: Comparison) -> str:
    """Whether what the original gains over the baseline is there with the control too."""
    if {before.verdict, now.verdict} & {ONE_SEED, NO_SEED}:
        return f"There are too few seeds to say whether it does as {name} does."
    if before.verdict != BETTER:
        state = {BETTER: "is better than", WORSE: "is worse than", SAME: "is not distinguishable from"}[now.verdict]
        lacking = "is not shown to have an" if before.verdict == SAME else "has no"
        return f"{name} {lacking} advantage over {baseline} that could remain; {other} {state} {baseline}."
    if now.verdict == BETTER:
        return f"The advantage of {name} over {baseline} remains; {other} is better than {baseline} too."
    if now.verdict == WORSE:
        return f"The advantage of {name} over {baseline} is turned into its opposite: {other} is worse."
    return (
        f"The advantage of {name} over {baseline} is not shown to remain: {other} is not distinguishable from "
        f"{baseline}, which may be for lack of seeds."
    )


def _direct(comparison: Comparison, finding: Finding) -> str:
    first, second = comparison.paired.first, comparison.paired.second
    what = {
        BETTER: f"{first} is better than {second}: what sets them apart matters here",
        WORSE: f"{first} is worse than {second}: what sets them apart matters here, the other way round",
        SAME: f"{first} and {second} are not distinguishable: what sets them apart is not shown to matter",
        ONE_SEED: f"{first} and {second} have one seed in common, which says nothing on their difference",
        NO_SEED: f"no seed has finished in both {first} and {second}",
    }[comparison.verdict]
    if comparison.verdict == NO_SEED:
        return f"{what[0].upper()}{what[1:]}."
    told = f"Compared directly, {what} ({evidence(comparison, finding.decimals)})."
    return told + (_unequal(finding, first, second) if comparison.verdict in (BETTER, WORSE) else "")


def _unequal(finding: Finding, first: str, second: str) -> str:
    """That two strategies also differ in how much they decay in total, if they do."""
    bests = [finding.of(name).best for name in (first, second)]
    decays = [best.mean_decay for best in bests if best is not None and best.mean_decay]
    if len(decays) < 2 or max(decays) <= LARGER * min(decays):
        return ""
    return f" Their mean applied decays differ too, {short(decays[0])} and {short(decays[1])}: it may be the amount."


def _contrast_words(finding: Finding, contrast: Comparison) -> str:
    return f"Contrast {contrast.paired.first} with {contrast.paired.second}. {_direct(contrast, finding)}"
