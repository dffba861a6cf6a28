"""Records as two tables: one row a run, and one row a figure of an evaluation (long form)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from svag.export.folders import Folder
from svag.lab.records import Record
from svag.lab.run import Run

Cell: TypeAlias = str | int | float | bool | None
TableRow: TypeAlias = Mapping[str, Cell]

EVALUATION: tuple[str, ...] = (
    *("folder", "run", "problem", "method", "lr", "seed", "status", "study", "role"),
    *("kind", "step", "wall_time", "split", "figure", "value"),
)
"""Columns of the table of evaluations."""

_FIRST = ("folder", "run", "study", "role", "status")
_LEFT_OUT = ("kind", "traceback")
_WHOLE = {
    *("seed", "step", "steps", "batch_size", "eval_every", "eval_examples", "threads", "resumed"),
}
_SPLITS = ("train", "test", "validation")


@dataclass(frozen=True)
class Table:
    """Rows with the same columns, each column of one type; unknown values are None.

    Attributes:
        types: of the columns, by name and in order: ``str``, ``int``, ``float`` or ``bool``.
        rows: values in the order of the columns.
    """

    types: Mapping[str, type]
    rows: Sequence[Sequence[Cell]]

    def column(self, name: str) -> list[Cell]:
        """Return the values of a column."""
        place = list(self.types).index(name)
        return [row[place] for row in self.rows]


def evaluations(folders: Iterable[Folder]) -> Table:
    """Return one row a figure: a split's loss or metric after some steps of a run.

    Rows of kind ``eval`` were evaluated on at most ``eval_examples`` examples of a split, those of
    kind ``end`` on all. A figure that was not finite is None.
    """
    rows = [row for folder in folders for row in _evaluations_of(folder)]
    return _table(EVALUATION, rows)


def runs(folders: Iterable[Folder]) -> Table:
    """Return one row a run: what determines it, where it ran, how it ended, its final figures."""
    rows = [row for folder in folders for row in _runs_of(folder)]
    known = (*_FIRST, *(field.name for field in fields(Run)))
    further = {name: None for row in rows for name in row if name not in known}
    return _table((*known, *further), rows)


def _evaluations_of(folder: Folder) -> Iterator[TableRow]:
    for name, record in folder.records.items():
        shared = {
            **_place(folder, name, record),
            **{field: record.run[field] for field in ("problem", "method", "lr", "seed")},
        }
        for line in (*record.evals, *([record.end] if record.end else [])):
            own = {field: line.get(field) for field in ("kind", "step", "wall_time")}
            for field, value in line.items():
                split, _, figure = field.partition("_")
                if split in _SPLITS and figure:
                    yield {**shared, **own, "split": split, "figure": figure, "value": value}


def _runs_of(folder: Folder) -> Iterator[TableRow]:
    for name, record in folder.records.items():
        noted = {**record.run, **(record.end or {})}
        noted = {field: value for field, value in noted.items() if field not in _LEFT_OUT}
        yield {**noted, **_place(folder, name, record)}


def _place(folder: Folder, name: str, record: Record) -> dict[str, Any]:
    part = folder.parts.get(name)
    return {
        "folder": str(folder.path),
        "run": name,
        "study": part and part.study,
        "role": part and part.role,
        "status": record.status,
    }


def _table(columns: Sequence[str], rows: Sequence[TableRow]) -> Table:
    types = {name: _type(name, [row.get(name) for row in rows]) for name in columns}
    cells = [[_cell(row.get(name), kind) for name, kind in types.items()] for row in rows]
    return Table(types, cells)


def _type(name: str, values: Iterable[Cell]) -> type:
    """Return a type that holds every value of a column; only the columns of counts are int."""
    found = {type(value) for value in values if value is not None}
    if found <= {bool} and found:
        return bool
    if found <= {int, float} and found:
        return int if name in _WHOLE and found == {int} else float
    return str


def _cell(value: Cell, kind: type) -> Cell:
    """Convert a value to its column's type; lone surrogates, which UTF-8 lacks, are escaped."""
    if value is None:
        return None
    if kind is str:
        return str(value).encode(errors="backslashreplace").decode()
    converted: Cell = kind(value)
    return converted
