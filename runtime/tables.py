"""Small tables and progress bars for the terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from alphadecay.tables import aligned


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header, columns aligned: text to the left, numbers to the right, None as a dash."""
    texts = {i for i in range(len(header)) if not all(isinstance(row[i], int | float | None) for row in rows)}
    return aligned(header, [[_text(cell) for cell in row] for row in rows], texts)


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def say(text: str = "") -> None:
    """Write a line for the user to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class PlainProgress:
    """Progress where there is no terminal: a line at most every minute, and one for each evaluation."""

    INTERVAL = 60.0  # seconds

    def __init__(self, total: int, done: int, unit: str, label: str) -> None:
        self.total, self.n, self.unit, self.label = total, done, unit, label
        self._first, self._began = done, time.monotonic()
        self._said = self._began
        self._figures = ""

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.n > self._first:
            self.line("")

    def update(self, n: int = 1) -> None:
        """Count so many more."""
        self.n += n
        if time.monotonic() - self._said >= self.INTERVAL:
            self.line(self._figures)

    def set_postfix(self, figures: Mapping[str, Any] | None = None, refresh: bool = True, **more: Any) -> None:
        """Figures for the next line."""
        self._figures = "".join(f", {name} {_text(value)}" for name, value in {**(figures or {}), **more}.items())

    def line(self, more: str) -> None:
        """Write how far it is, at which rate, how long it still takes, and what else is to be said."""
        self._said = time.monotonic()
        rate = (self.n - self._first) / max(self._said - self._began, 1e-9)
        left = timedelta(seconds=round((self.total - self.n) / rate)) if rate else "unknown"
        counts = f"{self.n:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s, {left} left"
        sys.stderr.write(f"{self.label}: {counts}{more}\n")
        sys.stderr.flush()


def progress(total: int, done: int, unit: str, label: str, shown: bool) -> "tqdm | PlainProgress":
    """A bar on standard error with rate and time left; where that is no terminal, plain lines."""
    if shown and not sys.stderr.isatty():
        return PlainProgress(total, done, unit, label)
    return tqdm(
        total=total, initial=done, unit=unit, desc=label, disable=not shown, dynamic_ncols=True, mininterval=0.2,
        maxinterval=0.2, unit_scale=True,
    )  # fmt: skip


def tell_evaluation(bar: "tqdm | PlainProgress", step: int, figures: Mapping[str, Any]) -> None:
    """Show the figures of an evaluation beside the bar, or in a line of their own."""
    bar.set_postfix(figures, refresh=False)
    if isinstance(bar, PlainProgress):
        bar.line(f"; step {step}" + "".join(f", {name} {_text(value)}" for name, value in figures.items()))
