"""Measures how much memory a run allocates, in any library."""

import ctypes
import tracemalloc
from typing import Final, Protocol

import torch


class Timed(Protocol):
    """A benchmark with a preparation, which is not timed, and a run, which is."""

    def prepare(self) -> None:
        """Prepare a run; this is not timed."""

    def run(self) -> object:
        """Run what is timed."""


def bytes_allocated(timed: Timed, device: str) -> int | None:
    """Return the bytes that a step allocates; None if they cannot be measured.

    On CUDA it is the peak of torch's allocator. On a CPU it is an upper bound, the sum of two
    numbers: the peak of Python's and NumPy's allocations, and the size of all pages that the step
    faults in after the C library has returned its free pages to the system, which counts every
    library. The least of several steps is taken, since other threads fault in pages, too.
    """
    if device == "cuda":
        timed.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed.run()
        return torch.cuda.max_memory_allocated() - before
    touched = [bytes_ for _ in range(5) if (bytes_ := _touched_anew(timed)) is not None]
    return _seen_by_python(timed) + min(touched) if touched else None


def _seen_by_python(timed: Timed) -> int:
    tracemalloc.start()
    try:
        timed.prepare()
        timed.run()
        timed.prepare()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        timed.run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


_DISABLE_LARGE_PAGES: Final = 41  # PR_SET_THP_DISABLE of prctl(2)


def _touched_anew(timed: Timed) -> int | None:
    """Return the bytes of the pages that a run faults in; None except on Linux with glibc."""
    try:
        import resource

        libc = ctypes.CDLL(None)
        trim, control = libc.malloc_trim, libc.prctl
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    control(_DISABLE_LARGE_PAGES, 1, 0, 0, 0)  # so that every fault is of one small page
    try:
        timed.prepare()
        trim(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        timed.run()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    finally:
        control(_DISABLE_LARGE_PAGES, 0, 0, 0, 0)
    return faults * resource.getpagesize()
