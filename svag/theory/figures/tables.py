"""Tables of numbers, as CSV for programs and as Markdown for people."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Rows: TypeAlias = Sequence[Sequence[object]]
Table: TypeAlias = tuple[list[str], list[list[object]]]
"""Head and rows."""


def write(directory: Path, stem: str, head: Sequence[str], rows: Rows) -> list[Path]:
    """Write a table twice.

    Args:
        directory: folder, which exists.
        stem: of ``stem.csv``, which has all digits, and ``stem.md``, which rounds them.
        head: names of the columns.
        rows: a cell for each column.

    Returns:
        Both paths.
    """
    file = directory / f"{stem}.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    page = directory / f"{stem}.md"
    page.write_text(markdown(head, rows), encoding="utf-8")
    return [file, page]


def markdown(head: Sequence[str], rows: Rows) -> str:
    """Write a table in Markdown; columns of numbers are set to the right."""
    numbers = [all(isinstance(row[n], int | float) for row in rows) for n in range(len(head))]
    rule = ["---:" if right else "---" for right in numbers]
    lines = [head, rule, *([text(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text(value: object) -> str:
    """Write a number with three significant digits, powers of ten where it is far from 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def interval(low: float, high: float) -> str:
    """Write an interval."""
    return f"{text(low)} to {text(high)}"
