"""Functions compiled by Numba that are called by their address, and kept on disk."""

import functools
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias, cast

from numba import cfunc, njit, types
from numba.core.errors import NumbaWarning

Address: TypeAlias = int

EXACT: Final[dict[str, Any]] = {"error_model": "numpy"}
"""IEEE arithmetic with every operation rounded, as torch has it: no product fused into a sum."""

compiled: Final[Any] = functools.partial(njit, nogil=True, **EXACT)


class _Progress:
    """Says once a process that it is compiling, if that takes longer than two seconds in all."""

    def __init__(self) -> None:
        self._left = 2.0
        self._timer: threading.Timer | None = None

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if self._left > 0:
            self._timer = threading.Timer(self._left, self._say)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left -= time.perf_counter() - self._began

    def _say(self) -> None:
        print(
            "svag: compiling the fused step for this processor; the next process finds it on disk",
            file=sys.stderr,
            flush=True,
        )


_PROGRESS: Final = _Progress()
_KEPT: Final[list[Any]] = []  # compiled functions, whose code must not be freed


def address_of(
    function: Callable[[Any], None], *, variant: object = None, sources: Iterable[ModuleType] = ()
) -> Address:
    """Compile a function of one address, or get its machine code from disk if it is there.

    Args:
        function: what to compile.
        variant: tells apart the functions that one piece of source makes.
        sources: the modules that its code comes from, beside its own and this one. Numba compiles
            anew only when the file of the function itself has changed.
    """
    # Numba numbers the files of one name: two processes might give two functions the same.
    files = [__file__, *(str(module.__file__) for module in sources)]
    read = b"".join(Path(file).read_bytes() for file in files)
    function.__qualname__ += f"_{zlib.crc32(repr((variant, zlib.crc32(read))).encode()):08x}"
    signature = types.void(types.int64)
    with warnings.catch_warnings(), _PROGRESS:
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            code = cfunc(signature, cache=True, **EXACT)(function)
        except Exception:  # there is no folder to keep it in, or it is full or damaged
            code = cfunc(signature, **EXACT)(function)
    _KEPT.append(code)
    return cast(int, code.address)
