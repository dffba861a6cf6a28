"""The version of a user's code: a hash of its source and of the files that it declares.

The hash covers the user's own modules that the code reaches, see :mod:`svag.problems.reach`, and
the files in ``depends_on``. It does not cover modules that a function imports under a name computed
at run time, files that are read but not declared, or installed packages.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from svag.errors import ProblemError
from svag.problems.reach import reached
from svag.problems.user_code import installed

_DIGITS = 12


def version(
    module: ModuleType, name: str, *, salt: str = "", depends_on: Sequence[str | Path] = ()
) -> str:
    """Hash a function with the code that it reaches and the files that it declares.

    Args:
        module: the function's module, as :func:`svag.problems.user_code.resolve` returns it.
        name: name of the function in the module.
        salt: a further text to hash, such as ``Problem.version``.
        depends_on: files and folders, relative to the file that defines the function.

    Returns:
        12 hexadecimal digits. Comments, docstrings, formatting and the location of the files do not
        change them.

    Raises:
        ProblemError: a source or a declared file is missing, cannot be read, or is not Python.
    """
    parts = {
        "function": name,
        "salt": salt,
        "code": sorted(reached(module)),
        "files": sorted(_declared(_folder_of(module, name), depends_on)),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]


def _folder_of(module: ModuleType, name: str) -> Path:
    """Return the folder of the file that defines a function, which ``module`` may only import."""
    maker = sys.modules.get(str(getattr(getattr(module, name), "__module__", None)))
    defining = module if maker is None or installed(maker) else maker
    return Path(str(defining.__file__)).resolve().parent


def _declared(folder: Path, depends_on: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """Yield name and hash of every declared file."""
    for path in map(Path, depends_on):
        place = folder / path.expanduser()
        try:
            for label, file in _files(path.name, place):
                with file.open("rb") as content:
                    yield label, hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise ProblemError(
                f"depends_on names {str(path)!r}, of which {error.filename} cannot be read: "
                f"{error.strerror}"
            ) from error


def _files(name: str, place: Path) -> list[tuple[str, Path]]:
    """Return a declared file, or all files of a declared folder, with names relative to it."""
    if place.is_dir():
        return [(f"{name}/{file.relative_to(place).as_posix()}", file) for file in _inside(place)]
    if place.is_file():
        return [(name, place)]
    raise ProblemError(
        f"depends_on names {name!r}, but there is no file or folder {place}; paths are relative "
        "to the file that defines the function"
    )


def _inside(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders; links are followed."""
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = [
            name
            for name in folders
            if name != "__pycache__" and os.path.realpath(Path(place, name)) not in entered
        ]
        # is_file() leaves out pipes, which would block when read.
        yield from (path for path in (Path(place, name) for name in files) if path.is_file())


def _raise(error: OSError) -> None:
    raise error
