"""Exceptions for errors that the user can correct.

Every message quotes the value, the allowed set and the remedy. The optimizer's exceptions also
subclass what ``torch.optim`` raises in the same place, so that existing handlers keep working.
"""

import sys
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path


class SvagError(Exception):
    """Base class of every error that svag raises on purpose."""


class InvalidOption(SvagError, ValueError):
    """An option has a value outside its set, or two options contradict each other."""


class ConflictingOptions(InvalidOption, RuntimeError):
    """Two options that exclude each other; torch raises a RuntimeError there."""


class UnknownOption(SvagError, TypeError):
    """A keyword that this optimizer does not have."""


class SparseGradient(SvagError, RuntimeError):
    """A sparse gradient reached an optimizer that needs dense ones."""


class MissingVariance(SvagError, RuntimeError):
    """A gradient has no within-batch variance, or only that of an earlier gradient."""


class NoStepYet(SvagError, RuntimeError):
    """Something was asked of an optimizer that it knows only after a step."""


class TooFewSamples(SvagError, RuntimeError):
    """A variance was to be estimated from fewer than two micro-batches, ranks or examples."""


class PerExampleError(SvagError, RuntimeError):
    """Per-example gradients do not exist, or svag could not record all of them."""


class EngineUnavailable(SvagError, RuntimeError):
    """``fused=True`` was given, and no fused engine can update these parameters."""


class MissingPackage(SvagError, ImportError):
    """A package that is needed for this is not installed."""


class UnknownName(SvagError, ValueError):
    """No problem or method has this name."""


class ProblemError(SvagError, ValueError):
    """A user's own problem could not be found, loaded or built."""


class DataError(SvagError, OSError):
    """A data set is missing, cannot be fetched, or is not the file it should be."""


class DissectionError(SvagError, RuntimeError):
    """A model, loss or batch cannot be dissected as it is."""


class RecordError(SvagError, OSError):
    """Records cannot be read, or nothing can be written where they should go."""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name; empty if none is close.

    Args:
        name: the unknown name.
        known: the valid names.
        cutoff: least similarity in [0, 1], as in :func:`difflib.get_close_matches`.
    """
    close = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def in_one_line(error: BaseException) -> str:
    """Describe an exception in one line, with the last line of the user's own code in its trace.

    Lines of the standard library, of svag and of installed packages are left out; ``svag --debug``
    shows them.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not _installed(frame.filename)]
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
        error = type(error)(error.msg)
    elif users:
        place = f" ({users[-1].filename}:{users[-1].lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def is_installed(path: Path) -> bool:
    """Whether a file belongs to the standard library, to svag or to an installed package.

    Installed packages lie in ``site-packages``, in ``dist-packages``, or in a folder of
    ``sys.path`` that ``pip install --target`` has filled.
    """
    return any(
        {"site-packages", "dist-packages"} & set(place.parts)
        or any(place.is_relative_to(folder) for folder in _LIBRARY)
        or any(entry and place.is_relative_to(entry) and _is_target(entry) for entry in sys.path)
        for place in {path.absolute(), path.resolve()}  # a link in site-packages is installed too
    )


_LIBRARY = {
    folder
    for root in (
        Path(__file__).parent,
        *map(Path, map(sysconfig.get_path, ("stdlib", "platstdlib"))),
    )
    for folder in (root.absolute(), root.resolve())
}


@cache
def _is_target(folder: str) -> bool:
    """Whether pip has installed packages right into a folder."""
    return any(Path(folder).glob("*.dist-info"))


def _installed(filename: str) -> bool:
    return filename.startswith("<") or is_installed(Path(filename))
