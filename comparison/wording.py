"""Figures, intervals and lists as a reader has them; the same in the page, in Markdown and in the terminal."""

from collections.abc import Sequence

from comparison.programs import Metric
from comparison.statistics import MOST_SEEDS, Comparison, Interval

NOTHING = "-"


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


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign."""
    return number(value, digits) if not value or value < 0 else "+" + number(value, digits)


def span(interval: Interval | None) -> str:
    """Such as "-0.20 to +1.3"."""
    return NOTHING if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def p_value(p: float | None) -> str:
    """Two significant digits, down to 0.001."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def unit(metric: Metric) -> str:
    """Of a difference in the metric: what its label has behind "in"; of per cents, percentage points."""
    _, _, named = metric.label.rpartition(" in ") if " in " in metric.label else ("", "", "")
    return "percentage points" if named == "%" else named


def amount(value: float, metric: Metric) -> str:
    """A difference without its sign, with its unit."""
    return f"{number(abs(value), 3)} {unit(metric)}".strip()


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


def evidence(comparison: Comparison, metric: Metric) -> str:
    """What a verdict rests on, such as "+0.62 percentage points, 95 % interval +0.21 to +1.0, p 0.012"."""
    paired = comparison.paired
    words = [f"{signed(paired.mean)} {unit(metric)}".strip()]
    if paired.all_equal:
        words.append("the same in every seed")
    elif paired.interval is not None:
        words += [f"95 % interval {span(paired.interval)}", f"p {p_value(comparison.holm)}"]
    return ", ".join(words)
