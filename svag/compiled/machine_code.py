"""Functions compiled by Numba that are called by their address, and kept on disk."""

import ctypes
import functools
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
from numpy.typing import NDArray

Address: TypeAlias = int

EXACT: Final[dict[str, Any]] = {"error_model": "numpy"}
"""IEEE arithmetic with every operation rounded, as torch has it: no product fused into a sum."""

compiled: Final[Any] = functools.partial(njit, nogil=True, **EXACT)

_KEPT: Final[list[Any]] = []  # compiled functions, whose code must not be freed


@intrinsic
def pointer(typing, address):
    """Return a pointer for an integer."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            code = cfunc(signature, cache=True, **EXACT)(function)
        except Exception:  # there is no folder to keep it in, or it is full or damaged
            code = cfunc(signature, **EXACT)(function)
    _KEPT.append(code)
    return cast(int, code.address)


@functools.cache
def holding_gil(
    function: Callable[[Any], None], *, sources: tuple[ModuleType, ...] = ()
) -> Callable[[Address], None]:
    """Compile a function of one address that reads what Python owns, to be called from Python.

    Threads that it starts may only read meanwhile, and must call nothing that may wait for the GIL.
    """
    address = address_of(function, sources=sources)
    return ctypes.PYFUNCTYPE(None, ctypes.c_int64)(address)


class Words:
    """The fields of a job, all of 64 bits, to be read and written as integers.

    NumPy takes several times as long for a field of a record.
    """

    def __init__(self, job: NDArray[Any]) -> None:
        names = job.dtype.names or ()
        self._place = {name: place for place, name in enumerate(names)}
        self._words = (ctypes.c_int64 * len(names)).from_buffer(job.data)

    def __getitem__(self, name: str) -> int:
        return self._words[self._place[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self._place[name]] = value
