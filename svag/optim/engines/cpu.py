"""The rule on a CPU: one call of compiled code over all tensors.

A table holds the addresses of each tensor, others say which thread updates which elements. Numba
keeps the machine code on disk, so that a kernel is compiled once on a machine.
"""

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from svag.compiled import foreign, machine_code, threads
from svag.compiled.machine_code import Address
from svag.optim.engines import bits
from svag.optim.engines import kernel as kernels
from svag.optim.engines import schedule as schedules
from svag.optim.engines.kernel import ADDRESSES, OPTIONS, Kernel, options
from svag.optim.engines.numba_kernel import JOB, NUMBERS, beginning, loop_of
from svag.optim.rule import Rule

DTYPES: Final = bits.DTYPES
"""Dtypes of parameters and averages that this engine updates."""

_WORTH_A_THREAD: Final = 65536


@functools.cache
def _machine_code(kernel: Kernel | None) -> Address:
    """Return where the code of a kernel's loop is, or of what begins a step."""
    function = beginning() if kernel is None else loop_of(kernel)
    return machine_code.address_of(
        function, variant=kernel, sources=(foreign, bits, kernels, schedules)
    )


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
        chunks, portions, ranges = schedules.schedule(sizes, torch.get_num_threads())
        numbers = np.zeros(count, NUMBERS)
        group_table, stream_table = np.array(groups, np.int64), np.array(streams, np.int64)
        self._job = np.zeros(1, JOB)
        self._job["tensors"], self._job["chunks"] = count, len(chunks)
        self._job["portions"], self._job["ranges"] = len(portions), len(ranges)
        self._job["groups"] = len(self._options)
        self._grads: Sequence[int] = ()
        self._tables = {
            "addresses": self._addresses,
            "numbers": numbers,
            "chunk_table": chunks,
            "portion_table": portions,
            "range_table": ranges,
            "group_table": group_table,
            "stream_table": stream_table,
            "options": self._options,
        }
        for name, table in self._tables.items():
            self._job[name] = table.ctypes.data
        for name in ("momentum", "sign", "raw", "adam", "within_batch"):
            self._job[name] = getattr(kernel, name)
        self._job["parallel"] = foreign.address_of(threads.parallel())
        self._address, self._words = self._job.ctypes.data, machine_code.Words(self._job)
        self._rules: Sequence[Rule] = ()  # which the options were written by
        self._scale = 1.0

    def place(self, column: str, addresses: Sequence[int]) -> None:
        """Say where the tensors of one column are.

        An array of gradients' addresses is read where it is, whatever is written to it later.
        """
        if column != "grad":
            self._addresses[column] = addresses
        elif addresses is not self._grads:
            self._grads, table = addresses, np.asarray(addresses, np.int64)
            self._tables["grad"] = table
            self._words["grad_table"], self._words["grad_step"] = table.ctypes.data, *table.strides

    def launch(
        self, rules: Sequence[Rule], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Take a step with every tensor, each by its group's rule."""
        if found_inf is not None and found_inf.item():
            return
        scale = 1.0 if grad_scale is None else grad_scale.item()
        if rules is not self._rules or scale != self._scale:
            for group in self._used:
                self._options[group] = options(rules[group], grad_scale=scale)
            self._rules, self._scale = rules, scale
        count = min(torch.get_num_threads(), max(1, self._elements // _WORTH_A_THREAD))
        loop = self._loop
        if grad_scale is not None:
            loop = _machine_code(self._kernel._replace(alters=True))
        seen_to = count == 1 or self._words["parallel"] != 0
        self._words["threads"], self._words["loop"] = count if seen_to else 0, loop
        threads.run(self._begin, self._address, 1)
        if not seen_to:
            threads.run(loop, self._address, count)
