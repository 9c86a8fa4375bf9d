"""Small tables and progress bars for the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header, columns aligned: text to the left, numbers to the right, None as a dash."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    lines = [list(header), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)).rstrip()
        for line in lines
    )


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def say(text: str = "") -> None:
    """Write a line for the user to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def progress(total: int, done: int, unit: str, label: str, shown: bool) -> tqdm:
    """A bar on standard error with rate and time left; where that is no terminal, a line every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, initial=done, unit=unit, desc=label, disable=not shown,
        dynamic_ncols=sys.stderr.isatty(), mininterval=interval, maxinterval=interval, unit_scale=True,
    )  # fmt: skip
