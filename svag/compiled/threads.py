"""Run compiled code on torch's own threads.

A second pool beside torch's would fight with it for the cores: its workers still spin when the
backward pass has ended. So the loop is handed to the OpenMP library that torch has loaded. Where
torch is built on something else, threads of Python's run it.
"""

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeAlias

import torch

Address: TypeAlias = int

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def parallel() -> Any:
    """Return GOMP_parallel(function, argument, threads, flags) of torch's OpenMP, None if absent.

    GNU's, LLVM's and Intel's have it alike.
    """
    try:
        # Looked up in the libraries that this one has brought along.
        found = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    found.restype = None
    return found


@functools.cache
def _pool(process: int, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="svag")


@functools.cache
def _callable(function: Address) -> Any:
    return _Function(function)


def run(function: Address, argument: Address, count: int) -> None:
    """Call a C function of one pointer on ``count`` threads at once; return when all have.

    The GIL is released meanwhile.
    """
    if count == 1:
        _callable(function)(argument)
    elif (gomp_parallel := parallel()) is not None:
        gomp_parallel(function, argument, count, 0)
    else:
        call = _callable(function)
        others = [_pool(os.getpid(), count - 1).submit(call, argument) for _ in range(count - 1)]
        call(argument)
        wait(others)
