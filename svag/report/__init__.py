"""Writes the report on studies, Figure 5 and an HTML page, from analyses; recomputes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path

from svag.analysis.several_problems import Several
from svag.analysis.study import Analysis
from svag.errors import RecordError
from svag.report.content import PagePlace
from svag.report.figure5_picture import figure5
from svag.report.page import page, page_of_several

__all__ = ["figure5", "page", "page_of_several", "write", "write_several"]


def write(
    analysis: Analysis, directory: Path, records: Path | None = None, target: float | None = None
) -> Path:
    """Write ``figure5.png``, ``figure5.svg`` and ``report.html`` on one problem into a folder.

    Args:
        analysis: the analysis to report.
        directory: the folder to write to.
        records: folder of the records, for links and for commands on the page; by default the same.
        target: value of the metric for the table of speed; None for the mean of the worst method.

    Returns:
        Path of the page.

    Raises:
        RecordError: the folder or a file in it cannot be written.
        InvalidOption: the target is not a value that the metric can have.

    Example:
        >>> import tempfile
        >>> from svag.analysis.study import analyse
        >>> records = Path("results/paper-step-sizes/fmnist-2c2d")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(analyse(records), Path(folder), records).name
        'report.html'
    """
    place = PagePlace(directory, directory if records is None else records, target=target)
    return _written([analysis], directory, lambda: page(analysis, place))


def write_several(several: Several, directory: Path, records: Sequence[Path]) -> Path:
    """Write the same files on several problems into a folder.

    Args:
        several: the studies to report.
        directory: the folder to write to.
        records: each study's folder of records, in the order of ``several.analyses``.

    Returns:
        Path of the page.

    Raises:
        RecordError: the folder or a file in it cannot be written.

    Example:
        >>> import tempfile
        >>> from svag.analysis.several_problems import together
        >>> from svag.analysis.study import analyse
        >>> names = "within-batch/digits", "paper-step-sizes/fmnist-2c2d"
        >>> folders = [Path("results", name) for name in names]
        >>> found = together([analyse(folder) for folder in folders])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_several(found, Path(folder), folders).name
        'report.html'
    """
    return _written(
        several.analyses, directory, lambda: page_of_several(several, directory, records)
    )


def _written(analyses: Sequence[Analysis], directory: Path, write_page: Callable[[], None]) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        figure5(analyses, directory)
        write_page()
    except OSError as error:
        where = error.filename or directory
        raise RecordError(
            f"cannot write {where}: {error.strerror}; choose another folder with --out"
        ) from error
    return directory / "report.html"
