"""How much memory a run allocates, by whatever library."""

import ctypes
import tracemalloc
from typing import Final, Protocol

import torch


class Timed(Protocol):
    """What can be made ready, untimed, and then run."""

    def prepare(self) -> None:
        """Do what precedes every run."""

    def run(self) -> object:
        """Do what is timed."""


def bytes_allocated(timed: Timed, device: str) -> int | None:
    """Return what a step allocates beyond what was there before, None where that cannot be told.

    On CUDA it is the peak by torch's allocator. On a CPU it is an upper bound, the sum of two:
    the peak of what Python's own allocators see, NumPy's included, and all the pages that the
    process touches anew after the C library has given back every page it had free, whichever
    library asked for them; the least of several steps, since other things fetch pages as well.
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
    """Return the bytes of the pages that a run faults in; on Linux with GNU's C library only."""
    try:
        import resource

        libc = ctypes.CDLL(None)
        trim, control = libc.malloc_trim, libc.prctl
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    control(_DISABLE_LARGE_PAGES, 1, 0, 0, 0)  # one fault, one page
    try:
        timed.prepare()
        trim(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        timed.run()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    finally:
        control(_DISABLE_LARGE_PAGES, 0, 0, 0, 0)
    return faults * resource.getpagesize()
