"""Cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is readable as plain text; the first column is text, the others are numbers."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    sides = [str.ljust, *[str.rjust] * (len(head) - 1)]
    lines = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def times(values: Sequence[float], form: str = "") -> str:
    """Format the edges of a box, such as 96 × 96 × 96."""
    return " × ".join(format(value, form) for value in values)


def megabytes(size: int) -> str:
    """Format a size in bytes as whole megabytes; a dash if it is 0, that is unknown."""
    return f"{size / 1e6:.0f}" if size else "–"
