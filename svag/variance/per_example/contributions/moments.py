"""Sums of many rows and of their squares, in one pass over them."""

import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svag.compiled import threads

_WORTH_A_THREAD = 2**15  # entries of all rows that are worth one more thread


class Moments:
    """Accumulates sum_k (c_k - s) and sum_k (c_k - s)^2, entry by entry.

    The shift s, one of the c_k, avoids cancellation if the mean is much larger than the deviations.

    Args:
        shift: s, ``(width,)``.

    Attributes:
        total: sum of the differences, ``(width,)``.
        squares: sum of their squares, ``(width,)``.
    """

    def __init__(self, shift: Tensor) -> None:
        self._shift = shift.resolve_neg().contiguous()
        self.total, self.squares = torch.zeros_like(self._shift), torch.zeros_like(self._shift)
        self._numba = _numba() if shift.device.type == "cpu" else None
        if self._numba is None or shift.dtype not in self._numba.DTYPES:
            self._numba = None
            return
        self._job: Any = np.zeros(1, self._numba.JOB)
        self._job["width"] = len(shift)
        for name in ("shift", "total", "squares"):
            tensor = self._shift if name == "shift" else getattr(self, name)
            self._job[name] = tensor.data_ptr()

    def add(self, rows: Tensor) -> None:
        """Add ``(count, width)`` rows, which may be overwritten."""
        if self._numba is None:
            rows.sub_(self._shift)
            ones = rows.new_ones(len(rows))
            self.total.addmv_(rows.t(), ones)
            self.squares.addmv_(rows.square_().t(), ones)
            return
        rows = rows.to(self._shift.dtype).resolve_neg().contiguous()
        self._job["rows"], self._job["count"], self._job["next"] = rows.data_ptr(), len(rows), 0
        blocks = -(-rows.shape[1] // self._numba.BLOCK)
        count = min(torch.get_num_threads(), blocks, max(1, rows.numel() // _WORTH_A_THREAD))
        threads.run(self._numba.code(rows.dtype), self._job.ctypes.data, count)


@functools.cache
def _numba() -> ModuleType | None:
    """Return the module with the compiled loop; None if Numba is not installed."""
    try:
        from svag.variance.per_example.contributions import numba_moments
    except ImportError:
        return None
    return numba_moments
