"""Writes the page of a dissection, from its records alone; recomputes nothing."""

from pathlib import Path
from typing import Final

from jinja2 import TemplateError

from svag.analysis.dissection_records import FILE, read
from svag.errors import RecordError, SvagError, in_one_line
from svag.report.dissection.page import page
from svag.report.dissection.sorted_records import Found

__all__ = ["PAGE", "write"]

PAGE: Final = "dissect.html"


def write(records: Path, directory: Path | None = None) -> Path:
    """Write ``dissect.html`` from a folder's ``dissect.jsonl``.

    Args:
        records: folder of the records.
        directory: folder of the page; by default the same.

    Returns:
        Path of the page.

    Raises:
        RecordError: the records cannot be read, or the page cannot be written.
    """
    path = (directory or records) / PAGE
    rows = read(records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page(Found(rows), path, records)
    except SvagError:
        raise
    except OSError as error:
        where = error.filename or path
        raise RecordError(
            f"cannot write {where}: {error.strerror}; choose another folder with --out"
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        raise RecordError(
            f"{records / FILE} lacks a field or has one of another type ({in_one_line(error)}); "
            f"`svag dissect PROBLEM --out {records}` writes it"
        ) from error
    return path
