"""Tables as aligned text and as HTML."""

from collections.abc import Sequence
from html import escape
from typing import Any

Rows = Sequence[Sequence[str]]
FORMULA = tuple("=+-@\t\r＝＋－＠")  # spreadsheets read a cell that begins with one of these as a formula
# No colours of its own, so that it is readable on light and dark pages; the header stays visible while rows scroll.
STYLE = """
.alphadecay {max-height: 36em; overflow: auto}
.alphadecay table {border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0}
.alphadecay th, .alphadecay td {padding: .2em .7em; text-align: right; white-space: nowrap; border: 0}
.alphadecay table th.text, .alphadecay table td.text {text-align: left}
.alphadecay td:last-child {white-space: normal; min-width: 10em}
.alphadecay td {border-top: 1px solid rgba(128, 128, 128, .25)}
.alphadecay th {position: sticky; top: 0; box-shadow: 0 1px 0 rgba(128, 128, 128, .8);
  background: var(--jp-layout-color0, var(--vscode-editor-background, var(--colab-primary-surface-color, Canvas)))}
""".strip()


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with `digits` decimals, never minus zero; "-" for None."""
    return "-" if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def escaped(text: str) -> str:
    """Text on one line with unprintable characters as escape sequences, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def harmless(value: Any) -> Any:
    """A value for a CSV cell; text that a spreadsheet would read as a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    if value.startswith(FORMULA) and not _is_number(value):
        value = "'" + value
    return escaped(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def aligned(head: Sequence[str], rows: Rows, texts: set[int]) -> str:
    """Rows under a header as text; columns whose index is in `texts` are left-aligned, the others right-aligned."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def in_html(head: Sequence[str], rows: Rows, texts: set[int]) -> str:
    """The same table in HTML, escaped; it needs no other file."""
    classes = [' class="text"' if i in texts else "" for i in range(len(head))]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{name}>{escape(cell)}</{tag}>" for cell, name in zip(cells, classes, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="alphadecay"><style>\n{STYLE}\n</style>\n<table>\n<thead><tr>{line(head, "th")}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
