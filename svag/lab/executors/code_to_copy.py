"""Collects the user's code to copy to nodes that do not share this machine's folders.

Copied are the Python files in the folder of the problem's file and in its subfolders, those beside
optimizers from outside, and the files in the problem's ``depends_on``. If something is missing, the
problem has another version on the node, and the run is refused there.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from svag.entrants import entrant
from svag.errors import is_installed
from svag.lab.executors.cluster import ClusterError
from svag.problems import Problem

_MOST_FILES, _MOST_BYTES = 2000, 100 * 2**20
_OUTSIDE = "outside"


class CodeCopy(NamedTuple):
    """A folder to copy to the nodes, and the text that names the problem in it."""

    folder: Path | None
    spec: str


def pack(problem: Problem, methods: Iterable[str], spec: str, scratch: Path) -> CodeCopy:
    """Copy the user's code into a folder, without built-in and installed code.

    Args:
        problem: the problem; the files in its ``depends_on`` are copied, too.
        methods: keys; the files of optimizers in files are copied.
        spec: the text that names the problem on this machine.
        scratch: an empty folder.

    Raises:
        ClusterError: there are too many files, which are probably not only the problem's.
    """
    place = _file_of(spec)
    own = [path for key in methods if (path := _file_of(entrant(key).optimizer)) is not None]
    if place is None and not own:
        return CodeCopy(None, spec)
    bytes_left, count = _MOST_BYTES, 0
    files = dict.fromkeys(file for path in (place, *own) if path for file in _beside(path))
    if place is not None:
        files |= dict.fromkeys(_declared(place.parent, problem))
    for file in files:
        count, bytes_left = count + 1, bytes_left - file.stat().st_size
        if count > _MOST_FILES or bytes_left < 0:
            raise ClusterError(
                f"the files beside {place or own[0]} are more than {_MOST_FILES} or "
                f"{_MOST_BYTES >> 20} MB; move the problem to a folder of its own"
            )
        target = scratch / _name_in_copy(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if place is None or not spec.rpartition(":")[0].endswith(".py"):
        return CodeCopy(scratch, spec)
    return CodeCopy(scratch, f"{_name_in_copy(place)}:{spec.rpartition(':')[2]}")


def _file_of(spec: str) -> Path | None:
    """Return the file of ``path/to/file.py:name`` or ``module:name``; None if it is installed."""
    name = spec.rpartition(":")[0]
    if name.endswith(".py"):
        path = Path(name).expanduser().absolute()
        return None if is_installed(path) else Path(os.path.normpath(path))
    below = Path.cwd() / Path(*name.split(".")) if name else None
    if below is not None:
        for path in (below.with_suffix(".py"), below / "__init__.py"):
            if path.is_file() and not is_installed(path):
                return path
    return None


def _beside(path: Path) -> Iterator[Path]:
    """Yield the Python files of a file's folder, or of the outermost package that contains it."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left(Path(place, name)))
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".py"))


def _is_left(folder: Path) -> bool:
    """Whether a folder is not copied: hidden folders, caches and virtual environments."""
    name = folder.name
    return name.startswith(".") or name == "__pycache__" or (folder / "pyvenv.cfg").exists()


def _declared(folder: Path, problem: Problem) -> Iterator[Path]:
    """Yield the files in a problem's ``depends_on``."""
    for given in problem.depends_on:
        place = folder / Path(given).expanduser()
        if place.is_file():
            yield place
        yield from (path for path in sorted(place.rglob("*")) if path.is_file())


def _name_in_copy(path: Path) -> str:
    """Return a file's path in the copy: relative to the current folder, else in its own folder."""
    cwd = Path.cwd()
    if path.is_relative_to(cwd):
        return path.relative_to(cwd).as_posix()
    return f"{_OUTSIDE}/{path.as_posix().lstrip('/')}"
