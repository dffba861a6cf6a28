"""Reads pickles of plain values and arrays of bytes without running code from them.

A pickle may name any function for the reader to call. Here the names that NumPy's arrays need are
replaced by classes of this module that only keep bytes, and every other name is refused.

References:
    Python's documentation of ``pickle``, "Restricting Globals".
"""

import math
import pickle
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svag.errors import DataError


class _Type:
    """Replaces ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order and other fields, which bytes do not need."""


class _Bytes:
    """Replaces a NumPy array, which a pickle creates empty before it sets its state."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        """Read a state of version, shape, type, order and content."""
        _, shape, kind, by_columns, content = state
        if not (isinstance(kind, _Type) and kind.code in ("u1", b"u1", "|u1", b"|u1")):
            raise pickle.UnpicklingError("an array of something else than unsigned bytes")
        if len(content) != math.prod(shape):
            raise pickle.UnpicklingError(f"{len(content)} bytes for an array of shape {shape}")
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): "ndarray",  # first argument of the next function, which ignores it
    ("numpy.core.multiarray", "_reconstruct"): _Bytes,
    ("numpy._core.multiarray", "_reconstruct"): _Bytes,
}


class _Reader(pickle.Unpickler):
    """An unpickler that accepts only the names that an array of bytes needs."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a name.

        Raises:
            pickle.UnpicklingError: the name has no replacement.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return _ALLOWED[module, name]


def read_plain(content: bytes, source: str) -> dict[bytes, Any]:
    """Read a pickled dictionary of plain values and arrays of unsigned bytes.

    Args:
        content: the pickle, as Python 2 or 3 wrote it.
        source: name of the pickle in messages.

    Returns:
        The dictionary; strings that Python 2 wrote are bytes, arrays are arrays of ``uint8``.

    Raises:
        DataError: it is damaged, is no dictionary, or holds other objects or calls of functions.

    Example:
        >>> read_plain(pickle.dumps({b"labels": [3, 1]}), "an example")
        {b'labels': [3, 1]}
    """
    try:
        found = _Reader(BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise any exception
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} is no pickle of plain values and arrays of bytes "
            f"({type(error).__name__}: {reason}); get it again"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{source} holds no dictionary; get it again")
    return {k: v.values if isinstance(v, _Bytes) else v for k, v in found.items()}
