"""What the caller of an optimizer or the user of the lab can put right.

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
    """A gradient has no variance, or one that belonged to an earlier gradient."""


class TooFewSamples(SvagError, RuntimeError):
    """A variance was asked of fewer than two micro-batches, ranks or examples."""


class PerExampleError(SvagError, RuntimeError):
    """The gradients of single examples do not exist, or not all of them could be seen."""


class EngineUnavailable(SvagError, RuntimeError):
    """A fused step was asked for, and no fused engine can take it."""


class UnknownName(SvagError, ValueError):
    """A problem or a method that nothing is registered under."""


class ProblemError(SvagError, ValueError):
    """A user's own problem could not be found, loaded or built."""


class DataError(SvagError, OSError):
    """A data set is missing, cannot be fetched, or is not the file it should be."""


class RecordError(SvagError, OSError):
    """Records cannot be read, or nothing can be written where they should go."""


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def in_one_line(error: BaseException) -> str:
    """Say what was raised, and in which line of the user's own code if any was running.

    Lines of Python, of svag and of installed packages say nothing to the user; ``svag --debug``
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
    """Whether a file is no user's own: of the standard library, of svag or installed.

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
