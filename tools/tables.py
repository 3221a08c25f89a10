"""Cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is; the first column is text, the others are numbers."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    sides = [str.ljust, *[str.rjust] * (len(head) - 1)]
    lines = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def times(values: Sequence[float], form: str = "") -> str:
    """Edges of a box."""
    return " × ".join(format(value, form) for value in values)


def megabytes(size: int) -> str:
    """Whole megabytes; nothing where none are known."""
    return f"{size / 1e6:.0f}" if size else "–"
