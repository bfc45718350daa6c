"""Plain text tables: aligned, never wrapped, fit to be pasted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as text without a trailing newline. Columns whose cells are all numbers are right-aligned."""
    table = [tuple(row) for row in rows]
    cells = [[row[i] for row in table] for i in range(len(head))]
    widths = [max(len(cell) for cell in (title, *column)) for title, column in zip(head, cells, strict=True)]
    right = [any(column) and all(_is_number(cell) for cell in column if cell) for column in cells]
    lines = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (tuple(head), *table)
    ]
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
