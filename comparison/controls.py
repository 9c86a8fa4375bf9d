"""What controls say: whether an advantage remains at a matched budget, and once decays are dealt to other modules."""

from collections.abc import Mapping
from typing import Any

from comparison.findings import Finding
from comparison.statistics import BETTER, NO_SEED, ONE_SEED, SAME, WORSE, Comparison
from comparison.tuning import Tuned
from comparison.wording import LARGER, evidence, short

CONTROLS = {"decay_budget": "free", "decay_control": "none", "decay_frozen": False}  # and what is no control
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
    return {name: options[name] for name, off in CONTROLS.items() if options.get(name, off) != off}


def _same_but_for_controls(a: Tuned, b: Tuned, searched: tuple[str, ...]) -> bool:
    aside = {*CONTROLS, *searched, "weight_decay"}
    return {k: v for k, v in a.options.items() if k not in aside} == {
        k: v for k, v in b.options.items() if k not in aside
    }


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
