"""The report on a study: Figure 5 and a page, from an analysis alone; nothing is recomputed."""

from pathlib import Path

from svag.analysis.study import Analysis
from svag.errors import RecordError
from svag.report.figures import figure5
from svag.report.page import page

__all__ = ["figure5", "page", "write"]


def write(analysis: Analysis, directory: Path, records: Path | None = None) -> Path:
    """Write ``figure5.png``, ``figure5.svg`` and ``report.html`` into a folder.

    Args:
        analysis: what is reported.
        directory: the folder.
        records: the folder of the records, for the commands on the page; the same by default.

    Returns:
        Where the page is.

    Raises:
        RecordError: the folder or a file in it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        figure5(analysis, directory)
        page(analysis, directory, directory if records is None else records)
    except OSError as error:
        where = error.filename or directory
        raise RecordError(
            f"cannot write {where}: {error.strerror}; choose another folder with --out"
        ) from error
    return directory / "report.html"
