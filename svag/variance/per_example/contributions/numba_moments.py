"""The loop that Numba compiles for :class:`~.moments.Moments`."""

import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from svag.compiled import instructions, machine_code
from svag.compiled.instructions import array_at, pointer, take
from svag.compiled.machine_code import Address

JOB: Final = np.dtype(
    [
        ("next", np.int64),  # next block that a thread takes
        ("count", np.int64),  # number of rows
        ("width", np.int64),
        ("rows", np.int64),  # this and the following fields are addresses
        ("shift", np.int64),
        ("total", np.int64),
        ("squares", np.int64),
    ]
)

BLOCK: Final = 2048
"""Entries of a block: their sums stay in a core's L1 cache while all rows are added."""

DTYPES: Final = {torch.float32: np.float32, torch.float64: np.float64}


@functools.cache
def code(dtype: torch.dtype) -> Address:
    """Return the address of the machine code for a dtype."""
    return machine_code.address_of(loop_of(DTYPES[dtype]), variant=dtype, sources=(instructions,))


def loop_of(real: Any) -> Callable[[Any], None]:
    """Return the loop over blocks of entries, a function of a job's address."""
    size = np.dtype(real).itemsize

    def loop(job_address):
        job = array_at(job_address, 1, JOB)[0]
        blocks = (job.width + BLOCK - 1) // BLOCK
        while True:
            begin = take(pointer(job_address)) * BLOCK
            if begin >= blocks * BLOCK:
                break
            n = min(BLOCK, job.width - begin)
            shift = array_at(job.shift + begin * size, n, real)
            total = array_at(job.total + begin * size, n, real)
            squares = array_at(job.squares + begin * size, n, real)
            for k in range(job.count):
                row = array_at(job.rows + (k * job.width + begin) * size, n, real)
                for i in range(n):
                    difference = row[i] - shift[i]
                    total[i] += difference
                    squares[i] += difference * difference

    return loop
