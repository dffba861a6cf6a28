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

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.core.errors import NumbaWarning
from numba.extending import intrinsic
from numba.np import arrayobj

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


@intrinsic
def pointer(typing, address):
    """Return a pointer for an integer."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def array_at(typing, address, count, dtype):
    """Return the array of some numbers or records at an address.

    As :func:`numba.carray`, which compiles a function anew for each dtype.
    """
    kind = types.Array(dtype.dtype, 1, "C", aligned=True)

    def generate(context, builder, signature, args):
        array = arrayobj.make_array(kind)(context, builder)
        item = context.get_data_type(kind.dtype)
        size = context.get_constant(types.intp, context.get_abi_sizeof(item))
        data = builder.inttoptr(args[0], item.as_pointer())
        arrayobj.populate_array(
            array, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None
        )
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), generate


@intrinsic
def fetch(typing, address):
    """Begin to read the cache line at an address, whatever is there."""

    def generate(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [builder.inttoptr(args[0], byte), number(0), number(3), number(1)])

    return types.none(types.int64), generate


@intrinsic
def take(typing, counter):
    """Return a count, and raise it by one for whichever thread asks next."""

    def generate(context, builder, signature, args):
        count = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", count, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), generate


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
