"""The rule on a GPU: one launch of one Triton kernel over the elements of all tensors.

As on a CPU (:mod:`svag.optim.engines.cpu`), a table holds the addresses of each tensor and a
second one cuts the tensors into chunks; a program of the grid takes a chunk. The tables lie on the
device, and so does whatever changes from step to step: the kernel reads the step, the scale of
the loss and whether to leave the step out, so that nothing is waited for and a captured CUDA
graph does at every replay what the step would have done.
"""

import functools
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from triton import knobs

from svag.errors import EngineUnavailable
from svag.optim.engines.kernel_spec import ADDRESSES, OPTIONS, Kernel
from svag.optim.engines.triton_kernel import bound
from svag.optim.rule import Settings

if not (
    knobs.runtime.interpret
    or knobs.build.impl
    or os.environ.get("CC")
    or shutil.which("gcc")
    or shutil.which("clang")
):
    # Triton would say so too, but only in the first step.
    raise ImportError("it needs a C compiler and there is none: install gcc or clang, or set CC")

# bfloat16 is rounded by its bits, as on a CPU, so the kernel loads it as integers.
_STORAGE: Final = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.uint16,
    torch.float16: tl.float16,
}

DTYPES: Final = frozenset(_STORAGE)
"""Dtypes of parameters and averages that this engine updates."""

# Reckoned for an H100 (132 multiprocessors, 3.35 TB/s) from the machine code, not measured. A
# thread loads 16 bytes at once, twice from each float32 tensor, so that a program has 16 KB of
# M-SVAG's four tensors under way; with some 80 registers a thread, 6 programs fit on a
# multiprocessor: 96 KB, where bandwidth times latency (700 ns) asks for 18. M-SVAG takes 50
# instructions an element, of 240 that can be issued while its 28 bytes pass; all in bfloat16 with
# noise 85 of 120, the least room there is. About 800 programs run at once, and chunks are so many
# times more that they end together. A program starts with some 2000 cycles of loads that wait for
# one another, 5 % of the time that the smallest chunk takes, while others' traffic goes on.
_BLOCK: Final = 1024
_WARPS: Final = 4
_PROGRAMS: Final = 16384
_SMALLEST: Final = 4096
_LARGEST: Final = 65536

# What captured graphs read and write. A graph may outlive its optimizer's tables and does
# not tell when it is destroyed, so these few kilobytes a capture are never freed.
_CAPTURED: Final[list[Any]] = []

_ADDRESS: Final = {name: place for place, name in enumerate(ADDRESSES.names or ())}
_OPTION: Final = {name: place for place, name in enumerate(OPTIONS.names or ())}


_bound = functools.cache(bound)


class _Mirror:
    """A table that the host writes, and its copy on the device."""

    def __init__(self, table: NDArray[Any], device: torch.device) -> None:
        self.table = table
        self._device = device
        self._copy = self._on_device()
        self._stale = True
        self._spare: tuple[Tensor, Tensor] | None = None

    def write(self, index: Any, values: Any) -> None:
        """Change some of the numbers."""
        self.table[index] = values
        self._stale = True

    def current(self) -> Tensor:
        """Return the copy on the device, brought up to date."""
        if self._stale:
            # torch keeps pinned memory from being used again before the copy has been made.
            self._copy.copy_(self._filled(self._on_host()), non_blocking=True)
            self._stale = False
        if self._spare is None:
            self._spare = self._on_host(), self._on_device()
        return self._copy

    def captured(self) -> Tensor:
        """Return a copy on the device that belongs to the graph being captured.

        A capture records the copying but does none of it, and every replay does it again. So the
        graph gets a host table that nothing writes any more and a device table that no other step
        reads: neither a replay nor a step between replays can then change what the other sees.
        Both were allocated in an earlier step: pinned memory because allocating it may wait for
        events, which a capture forbids, and the device table because it would keep the graph's
        memory pool from being freed.
        """
        host, copy = self._spare or (self._on_host(), self._on_device())
        self._spare = None
        copy.copy_(self._filled(host), non_blocking=True)
        _CAPTURED.append((host, copy))
        return copy

    def _on_device(self) -> Tensor:
        return torch.empty(self.table.shape, dtype=_dtype(self.table), device=self._device)

    def _on_host(self) -> Tensor:
        pinned = self._device.type == "cuda"
        return torch.empty(self.table.shape, dtype=_dtype(self.table), pin_memory=pinned)

    def _filled(self, host: Tensor) -> Tensor:
        host.numpy()[...] = self.table
        return host


class Table:
    """The tensors that one kernel updates in one launch.

    Args:
        kernel: what their update is made of.
        device: the GPU; the CPU in Triton's interpreter.
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
        self._device = device
        if self._captures():
            raise EngineUnavailable(
                "the tables of the fused step cannot be made while a CUDA graph is captured; take "
                "a few steps with the same parameters and gradients before, as torch recommends"
            )
        self._used = sorted(set(groups))
        self._addresses = _Mirror(np.zeros((len(sizes), len(_ADDRESS)), np.int64), device)
        self._options = _Mirror(np.zeros((max(groups) + 1, len(_OPTION)), np.float64), device)
        self._rows: list[tuple[float, ...]] = []
        chunks, counts = _chunks(sizes, _chunk_size(sum(sizes)))
        tensors = np.stack([np.array(groups), np.array(streams), counts], axis=1).astype(np.int64)
        self._aligned = True
        self._programs = len(chunks)
        self._fixed = (
            torch.from_numpy(chunks).to(device),
            torch.from_numpy(tensors).to(device),
        )
        self._finished = torch.zeros(len(sizes), dtype=torch.int32, device=device)
        self._no_scale = torch.ones((), dtype=torch.float32, device=device)
        self._no_inf = torch.zeros((), dtype=torch.float32, device=device)
        real = torch.float64 if kernel.param == torch.float64 else torch.float32
        # Gradients are always divided by a scale, which may be 1.
        self._bound = _bound(kernel.switches._replace(alters=True), real)
        self._switches = {
            **_switches(kernel),
            "block": _BLOCK // 2 if kernel.param == torch.float64 else _BLOCK,
            "num_warps": _WARPS,
            # Products stay out of sums, as in the other engines and in torch.
            "enable_fp_fusion": False,
        }

    def place(self, column: str, addresses: Sequence[int]) -> None:
        """Say where the tensors of one column are."""
        self._addresses.write((slice(None), _ADDRESS[column]), addresses)
        # Then 16 bytes can be loaded at once from every tensor; the step is read by itself.
        self._aligned = not np.any(self._addresses.table[:, : _ADDRESS["step"]] & 15)

    def launch(
        self, settings: Sequence[Settings], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Take a step with every tensor, each by its group's settings.

        A step size, decay rate or weight decay that is a tensor on the device is not read here: the
        kernel finds its value at the time, also when a captured graph is replayed.
        """
        with _on(self._device):
            scale = self._no_scale if grad_scale is None else self._scalar(grad_scale)
            skip = self._no_inf if found_inf is None else self._scalar(found_inf)
            rows = (self._row(settings[group]) for group in self._used)
            numbers, tensors = zip(*rows, strict=True)
            if list(numbers) != self._rows:
                self._rows = list(numbers)
                self._options.write(self._used, self._rows)
            if self._captures():
                addresses, row_table = self._addresses.captured(), self._options.captured()
                _CAPTURED.append((self._fixed, self._finished, self._no_scale, self._no_inf))
            else:
                addresses, row_table = self._addresses.current(), self._options.current()
            for group, of_group in zip(self._used, tensors, strict=True):
                for column, tensor in of_group.items():
                    row_table[group, column].copy_(tensor.reshape(()))
            self._bound.step[(self._programs,)](
                *self._fixed,
                addresses,
                row_table,
                self._finished,
                scale,
                skip,
                element=self._bound.element,
                numbers=self._bound.numbers,
                aligned=self._aligned,
                **self._switches,
            )

    def _row(self, settings: Settings) -> tuple[tuple[float, ...], dict[int, Tensor]]:
        """Return a group's row of options, and the columns of it that tensors on the device give.

        Those are NaN in the row.
        """
        tensors = {
            place: value
            for place, value in enumerate(settings)
            if isinstance(value, Tensor) and value.device == self._device
        }
        row = (math.nan if place in tensors else float(v) for place, v in enumerate(settings))
        return tuple(row), tensors

    def _scalar(self, value: Tensor) -> Tensor:
        return value.to(self._device, torch.float32, non_blocking=True)

    def _captures(self) -> bool:
        return self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device) -> AbstractContextManager[None]:
    """Make a device the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _dtype(table: NDArray[Any]) -> torch.dtype:
    return torch.float64 if table.dtype == np.float64 else torch.int64


def _switches(kernel: Kernel) -> dict[str, Any]:
    """Return the constants that a kernel is compiled with."""
    switches = kernel.switches
    return {
        "averages_gradient": switches.averages_gradient,
        "averages_square": switches.averages_square,
        "averages_variance": switches.within_batch and switches.momentum,
        "within_batch": switches.within_batch,
        "amsgrad": switches.amsgrad,
        "counts": "step" in kernel.columns,
        "dither_param": kernel.dither_param,
        "dither_state": kernel.dither_state,
        "stored": _STORAGE[kernel.param],
        "kept": _STORAGE[kernel.state],
        "real": tl.float64 if kernel.param == torch.float64 else tl.float32,
    }


def _chunk_size(elements: int) -> int:
    """Cut finely enough to occupy all multiprocessors to the end, and no finer."""
    share = elements // _PROGRAMS
    return max(_SMALLEST, min(_LARGEST, share // _SMALLEST * _SMALLEST))


def _chunks(sizes: Sequence[int], chunk: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tensor, first element and size of every chunk, and how many each tensor has.

    An empty tensor has one as well, which counts its step.
    """
    lengths = np.array(sizes, np.int64)
    counts = np.maximum(1, -(-lengths // chunk))
    tensor = np.repeat(np.arange(len(lengths)), counts)
    begin = (np.arange(len(tensor)) - np.repeat(np.cumsum(counts) - counts, counts)) * chunk
    size = np.minimum(chunk, lengths[tensor] - begin)
    return np.stack([tensor, begin, size], axis=1), counts
