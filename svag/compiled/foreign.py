"""Calls of C functions from compiled code, by their address.

Arguments are pointers or integers of 64 bits.
"""

import ctypes
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from svag.compiled.machine_code import Address


def address_of(function: Any) -> Address:
    """Return where a function of a library loaded by ctypes is; 0 for None."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _call(result: Any, llvm_result: ir.Type, *arguments: Any) -> Any:
    """Return what calls a C function, given its address and integers or pointers as such."""
    words = (ir.IntType(64),) * len(arguments)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(llvm_result, words).as_pointer()
        returned = builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value() if result is types.none else returned

    return result(types.int64, *arguments), generate


@intrinsic
def ask(typing, function, argument):
    """Call a function of a pointer that returns one."""
    return _call(types.int64, ir.IntType(64), types.int64)


@intrinsic
def tell(typing, function, argument):
    """Call a function of a pointer that returns nothing."""
    return _call(types.none, ir.VoidType(), types.int64)


@intrinsic
def have_done(typing, parallel, function, argument, threads, flags):
    """Call GOMP_parallel, which has some threads call a function of a pointer."""
    return _call(types.none, ir.VoidType(), *(types.int64,) * 4)


@intrinsic
def test(typing, function, argument):
    """Call a function of a pointer that returns a bool."""
    return _call(types.int8, ir.IntType(8), types.int64)


@intrinsic
def write(typing, function, argument, to):
    """Call a function that writes what it says of ``argument``, and returns 0 if it could."""
    return _call(types.int32, ir.IntType(32), types.int64, types.int64)


@intrinsic
def pick(typing, function, argument, index):
    """Call a function of a pointer and a number that returns a pointer."""
    return _call(types.int64, ir.IntType(64), types.int64, types.int64)


@intrinsic
def walk(typing, function, dictionary, position, key, value):
    """Call PyDict_Next, which returns 0 at the end."""
    return _call(types.int32, ir.IntType(32), *(types.int64,) * 4)
