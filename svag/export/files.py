"""Tables as files: CSV by the standard library, Parquet by pyarrow."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from svag.errors import InvalidOption, RecordError
from svag.export.tables import Cell, Table


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV in UTF-8; numbers are written so that they read back exactly.

    None and the empty text are both written as an empty field.

    Raises:
        RecordError: the file cannot be written.
    """

    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.types)
            writer.writerows([_written(cell) for cell in row] for row in table.rows)

    _whole(path, write)


def write_parquet(table: Table, path: Path) -> None:
    """Write a table as Parquet, with the table's column types.

    Raises:
        InvalidOption: pyarrow is not installed.
        RecordError: the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InvalidOption(
            "Parquet files need pyarrow; pip install 'svag[export]', or choose csv"
        ) from error
    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        bool: pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in table.types.items()])
    columns = {name: table.column(name) for name in table.types}
    content = pyarrow.table(columns, schema=schema)
    _whole(path, lambda scratch: parquet.write_table(content, str(scratch)))


def write_text(text: str, path: Path) -> None:
    """Write a text in UTF-8; lone surrogates, which UTF-8 lacks, are escaped.

    Raises:
        RecordError: the file cannot be written.
    """
    content = text.encode(errors="backslashreplace")
    _whole(path, lambda scratch: scratch.write_bytes(content))


def _written(cell: Cell) -> str:
    """Write a value; ``repr`` of a float is the shortest text that reads back as the same."""
    if cell is None:
        return ""
    return repr(cell) if isinstance(cell, float) else str(cell)


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a scratch file and rename it to ``path``, so that no partial file is ever there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        scratch.replace(path)
    except OSError as error:
        raise RecordError(
            f"cannot write {path}: {error.strerror or error}; choose another file with --out"
        ) from error
    finally:
        if scratch.exists():
            scratch.unlink()
