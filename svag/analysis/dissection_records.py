"""Reads the records of a dissection: ``dissect.jsonl``, one flat JSON object a line.

They are made by :mod:`svag.diagnosis.findings`, which says what each line is. A number that is not
finite is null.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

from svag.errors import RecordError, in_one_line

FILE: Final = "dissect.jsonl"

Row: TypeAlias = dict[str, Any]


def read(directory: Path) -> list[Row]:
    """Return the records in a folder, as they were written.

    Raises:
        RecordError: there are none, or a line is no JSON object.
    """
    path = directory / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{path} cannot be read: {in_one_line(error)}; `svag dissect PROBLEM --out "
            f"{directory}` writes it"
        ) from error
    if not all(isinstance(row, dict) and "kind" in row for row in rows):
        raise RecordError(f"{path} has a line that is no record of a kind; it is not svag's")
    if not rows or rows[0]["kind"] != "dissection":
        raise RecordError(f"{path} does not begin with a dissection; it is not svag's")
    return rows


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the records of a kind."""
    return [row for row in rows if row["kind"] == kind]
