"""The rule on a CPU: one call of compiled code over all tensors.

A table holds the addresses of each tensor, a second one cuts the tensors into chunks, and threads
take chunks until there are none left. Numba keeps the machine code on disk, so that a kernel is
compiled once on a machine.
"""

import functools
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import torch
from numba import cfunc, types
from numba.core.errors import NumbaWarning
from numpy.typing import NDArray
from torch import Tensor

from svag.optim.engines import bits, threads
from svag.optim.engines.bits import EXACT
from svag.optim.engines.kernel import ADDRESSES, OPTIONS, Kernel, options
from svag.optim.engines.numba_kernel import CHUNK, JOB, NUMBERS, SOURCES, beginning, loop_of
from svag.optim.rule import Rule

DTYPES: Final = bits.DTYPES
"""Dtypes of parameters and averages that this engine updates."""

# Elements. Measured on two cores: chunks of 131,072 are 4 % faster than chunks of 65,536 and 10 %
# faster than chunks of 32,768 where memory is the limit, larger ones no faster.
_SMALLEST: Final = 8192
_LARGEST: Final = 131072
_WORTH_A_THREAD: Final = 131072

_KEPT: Final[list[Any]] = []  # compiled functions, whose code must not be freed


@functools.cache
def _machine_code(kernel: Kernel | None) -> threads.Address:
    """Return the machine code of a kernel's loop, or of the beginning, from disk if it is there."""
    function = beginning() if kernel is None else loop_of(kernel)
    # Numba numbers the files of one name: two processes might give two kernels the same.
    function.__qualname__ += f"_{zlib.crc32(repr((kernel, SOURCES)).encode()):08x}"
    signature = types.void(types.voidptr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            code = cfunc(signature, cache=True, **EXACT)(function)
        except Exception:  # there is no folder to keep it in, or it is full or damaged
            code = cfunc(signature, **EXACT)(function)
    _KEPT.append(code)
    return cast(int, code.address)


class Table:
    """The tensors that one kernel updates in one call.

    Args:
        kernel: what their update is made of.
        device: the CPU.
        sizes: their numbers of elements, complex ones counting twice.
        groups: the row of options that each of them takes.
        streams: numbers that tell their noise in stochastic rounding apart.
    """

    def __init__(
        self,
        kernel: Kernel,
        device: torch.device,
        *,
        sizes: Sequence[int],
        groups: Sequence[int],
        streams: Sequence[int],
    ) -> None:
        count = len(sizes)
        self._addresses = np.zeros(count, ADDRESSES)
        self._kernel = kernel
        self._loop, self._begin = _machine_code(kernel), _machine_code(None)
        self._elements = sum(sizes)
        self._options = np.zeros(max(groups) + 1, OPTIONS)
        self._used = sorted(set(groups))
        chunks = _chunks(sizes, _chunk_size(self._elements))
        numbers = np.zeros(count, NUMBERS)
        group_table, stream_table = np.array(groups, np.int64), np.array(streams, np.int64)
        self._tables = (chunks, numbers, group_table, stream_table)  # kept alive
        self._job = np.zeros(1, JOB)
        self._job["tensors"], self._job["chunks"] = count, len(chunks)
        self._job["groups"] = len(self._options)
        for name, table in {
            "addresses": self._addresses,
            "numbers": numbers,
            "chunk_table": chunks,
            "group_table": group_table,
            "stream_table": stream_table,
            "options": self._options,
        }.items():
            self._job[name] = table.ctypes.data
        for name in ("momentum", "sign", "raw", "adam", "within_batch"):
            self._job[name] = getattr(kernel, name)
        self._address = self._job.ctypes.data

    def place(self, column: str, addresses: Sequence[int]) -> None:
        """Say where the tensors of one column are."""
        self._addresses[column] = addresses

    def launch(
        self, rules: Sequence[Rule], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Take a step with every tensor, each by its group's rule."""
        if found_inf is not None and found_inf.item():
            return
        scale = 1.0 if grad_scale is None else grad_scale.item()
        for group in self._used:
            self._options[group] = options(rules[group], grad_scale=scale)
        threads.run(self._begin, self._address, 1)
        count = min(torch.get_num_threads(), max(1, self._elements // _WORTH_A_THREAD))
        loop = self._loop
        if grad_scale is not None:
            loop = _machine_code(self._kernel._replace(scales=True))
        threads.run(loop, self._address, count)


def _chunk_size(elements: int) -> int:
    """Cut finely enough to occupy all threads to the end, and no finer."""
    share = elements // (4 * torch.get_num_threads())
    return max(_SMALLEST, min(_LARGEST, share // _SMALLEST * _SMALLEST))


def _chunks(sizes: Sequence[int], chunk: int) -> NDArray[Any]:
    counts = [-(-size // chunk) for size in sizes]
    table = np.empty(sum(counts), CHUNK)
    table["tensor"] = np.repeat(np.arange(len(sizes)), counts)
    firsts = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
    table["begin"] = (np.arange(len(table)) - firsts) * chunk
    table["end"] = np.minimum(table["begin"] + chunk, np.repeat(sizes, counts))
    return table
