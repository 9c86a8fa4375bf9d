"""Small tables and progress bars for the terminal."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from alphadecay.tables import aligned


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header with aligned columns: text on the left, numbers on the right, None as a dash."""
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
    """Progress without a terminal: at most one line per minute, and one per evaluation."""

    INTERVAL = 60.0  # seconds

    def __init__(self, total: int, done: int, unit: str, label: str) -> None:
        self.total, self.n, self.unit, self.label = total, done, unit, label
        self._first, self._began = done, time.monotonic()
        self._written = self._began  # time of the last line
        self._metrics = ""

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.n > self._first:
            self.line("")

    def update(self, n: int = 1) -> None:
        """Add `n` to the count."""
        self.n += n
        if time.monotonic() - self._written >= self.INTERVAL:
            self.line(self._metrics)

    def set_postfix(self, metrics: Mapping[str, Any] | None = None, refresh: bool = True, **others: Any) -> None:
        """Set the metrics for the next line."""
        self._metrics = "".join(f", {name} {_text(value)}" for name, value in {**(metrics or {}), **others}.items())

    def line(self, suffix: str) -> None:
        """Write a line with the count, the rate, the time left and a suffix."""
        self._written = time.monotonic()
        rate = (self.n - self._first) / max(self._written - self._began, 1e-9)
        left = timedelta(seconds=round((self.total - self.n) / rate)) if rate else "unknown"
        counts = f"{self.n:,} of {self.total:,} {self.unit}, {rate:,.0f} {self.unit}/s, {left} left"
        sys.stderr.write(f"{self.label}: {counts}{suffix}\n")
        sys.stderr.flush()


def progress(total: int, done: int, unit: str, label: str, shown: bool) -> "tqdm | PlainProgress":
    """A bar on standard error with rate and time left; plain lines if standard error is not a terminal."""
    if shown and not sys.stderr.isatty():
        return PlainProgress(total, done, unit, label)
    return tqdm(
        total=total, initial=done, unit=unit, desc=label, disable=not shown, dynamic_ncols=True, mininterval=0.2,
        maxinterval=0.2, unit_scale=True,
    )  # fmt: skip


def show_evaluation(bar: "tqdm | PlainProgress", step: int, metrics: Mapping[str, Any]) -> None:
    """Show the metrics of an evaluation next to the bar, or in a separate line."""
    bar.set_postfix(metrics, refresh=False)
    if isinstance(bar, PlainProgress):
        bar.line(f"; step {step}" + "".join(f", {name} {_text(value)}" for name, value in metrics.items()))
