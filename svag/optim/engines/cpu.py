"""The rule on a CPU: compiled code over all tensors, on torch's own threads.

A table holds the addresses of each tensor, others say which thread updates which elements. Numba
keeps the machine code on disk, so that a kernel is compiled once on a machine.
"""

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from svag.compiled import instructions, machine_code, threads
from svag.compiled.machine_code import Address
from svag.optim import rule
from svag.optim.engines import half_precision, kernel_spec, numba_noise, work_partition
from svag.optim.engines.kernel_spec import ADDRESSES, OPTIONS, Kernel
from svag.optim.engines.numba_loop import JOB, NUMBERS, beginning, loop_of
from svag.optim.rule import Settings, Switches

DTYPES: Final = half_precision.DTYPES
"""Dtypes of parameters and averages that this engine updates."""

_WORTH_A_THREAD: Final = 65536
_SOURCES: Final = (
    *(rule, instructions, half_precision),
    *(kernel_spec, numba_noise, work_partition),
)


@functools.cache
def _loop(kernel: Kernel) -> Address:
    return machine_code.address_of(loop_of(kernel), variant=kernel, sources=_SOURCES)


@functools.cache
def _beginning(switches: Switches) -> Address:
    return machine_code.address_of(beginning(switches), variant=switches, sources=_SOURCES)


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
        self._kernel = kernel
        self._elements = sum(sizes)
        self._used = sorted(set(groups))
        self._settings: Sequence[Settings] = ()  # which the options were written from
        self._scale = 1.0
        chunks, portions, ranges = work_partition.partition(sizes, torch.get_num_threads())
        # The numbers of a step depend on no option that is a number itself.
        plain = kernel.with_options(decays=False, alters=False).switches
        self._begin = _beginning(plain._replace(factor="none", within_batch=False, amsgrad=False))
        self._gradients = np.zeros(len(sizes), np.int64)
        self._addresses = np.zeros(len(sizes), ADDRESSES)
        self._options = np.zeros(max(groups) + 1, OPTIONS)
        tables = {
            "gradients": self._gradients,
            "addresses": self._addresses,
            "numbers": np.zeros(len(sizes), NUMBERS),
            "chunk_table": chunks,
            "portion_table": portions,
            "range_table": ranges,
            "group_table": np.array(groups, np.int64),
            "stream_table": np.array(streams, np.int64),
            "options": self._options,
        }
        self._held = tables  # whose addresses stand in the job
        self._job = np.zeros(1, JOB)
        self._job["tensors"], self._job["groups"] = len(sizes), len(self._options)
        for name, table in (("chunks", chunks), ("portions", portions), ("ranges", ranges)):
            self._job[name] = len(table)
        for name, table in tables.items():
            self._job[name] = table.ctypes.data
        self._address = self._job.ctypes.data

    def place(self, column: str, addresses: Sequence[int]) -> None:
        """Say where the tensors of one column are; a gradient at 0 leaves its parameter out."""
        if column == "grad":
            self._gradients[:] = addresses
        else:
            self._addresses[column] = addresses

    def launch(
        self, settings: Sequence[Settings], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Take a step with every tensor, each by its group's settings."""
        if found_inf is not None and found_inf.item():
            return
        kernel, scale = self._kernel, 1.0
        if grad_scale is not None:
            scale = grad_scale.item()
            kernel = kernel.with_options(decays=kernel.switches.decays, alters=True)
        if settings is not self._settings or scale != self._scale:
            for group in self._used:
                row = settings[group]
                self._options[group] = tuple(
                    map(float, row._replace(gradient=row.gradient / scale))
                )
            self._settings, self._scale = settings, scale
        count = min(torch.get_num_threads(), max(1, self._elements // _WORTH_A_THREAD))
        loop = _loop(kernel)  # compiled before anything is counted
        threads.run(self._begin, self._address, 1)
        threads.run(loop, self._address, count)
