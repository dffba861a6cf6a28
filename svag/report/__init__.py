"""The report on a study: Figure 5 and a page, from an analysis alone; nothing is recomputed."""

from pathlib import Path

from svag.errors import RecordError
from svag.lab.analysis import Analysis
from svag.report.figures import figure5
from svag.report.page import page

__all__ = ["figure5", "page", "write"]


def write(analysis: Analysis, directory: Path) -> Path:
    """Write ``figure5.png``, ``figure5.svg`` and ``report.html`` into a folder.

    Returns:
        Where the page is.

    Raises:
        RecordError: the folder or a file in it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        figure5(analysis, directory)
        page(analysis, directory)
    except OSError as error:
        where = error.filename or directory
        raise RecordError(
            f"cannot write {where}: {error.strerror}; choose another folder with --out"
        ) from error
    return directory / "report.html"
