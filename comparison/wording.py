"""Figures, intervals and lists as a reader has them; the same in the page, in Markdown and in the terminal."""

from collections.abc import Sequence
from math import floor, log10

from comparison.programs import Metric
from comparison.statistics import MOST_SEEDS, Comparison, Interval

NOTHING = "-"
LARGER = 1.05  # times another mean applied decay, from which a larger total decay is mentioned


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; a dash for None."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"


def short(value: float | None) -> str:
    """An option's value, such as a decay: four significant digits at most, none of them a trailing 0."""
    return NOTHING if value is None else f"{value:.4g}"


def fixed(value: float | None, decimals: int) -> str:
    """So many decimals, so that a column's points stand below each other."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int) -> str:
    """With its sign; what rounds to 0 has none."""
    if value is None:
        return NOTHING
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def span(interval: Interval | None, decimals: int) -> str:
    """Such as "-0.20 to +1.30"."""
    return NOTHING if interval is None else f"{signed(interval[0], decimals)} to {signed(interval[1], decimals)}"


def decimals_for(spreads: Sequence[float], values: Sequence[float]) -> int:
    """Decimals that show a typical spread to two digits; without spreads, values to four."""
    typical = sorted(spread for spread in spreads if spread > 0)
    if typical:
        return min(6, max(0, 1 - floor(log10(typical[len(typical) // 2]))))
    largest = max(map(abs, values), default=0.0)
    return min(6, max(0, 3 - floor(log10(largest)))) if largest else 2


def p_value(p: float | None) -> str:
    """Two significant digits, down to 0.001."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def unit(metric: Metric) -> str:
    """Of a difference in the metric: what its label has behind "in"; of per cents, percentage points."""
    _, _, named = metric.label.rpartition(" in ") if " in " in metric.label else ("", "", "")
    return "percentage points" if named == "%" else named


def seeds(count: int | None) -> str:
    """How many seeds are needed."""
    if count is None:
        return NOTHING
    return f"more than {MOST_SEEDS}" if count > MOST_SEEDS else str(count)


def listed(words: Sequence[str], last: str = "and") -> str:
    """Such as "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def counted(count: int, noun: str) -> str:
    """Such as "1 run" or "3 runs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def evidence(comparison: Comparison, decimals: int) -> str:
    """What a verdict rests on, such as "+0.62, 95 % interval +0.21 to +1.03, p 0.012"."""
    paired = comparison.paired
    words = [signed(paired.mean, decimals)]
    if paired.all_equal:
        words.append("the same in every seed")
    elif paired.interval is not None:
        words += [f"95 % interval {span(paired.interval, decimals)}", f"p {p_value(comparison.holm)}"]
    return ", ".join(words)
