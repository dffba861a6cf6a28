"""Chooses the number of threads of a worker by measuring, and sets it before torch starts.

A worker has one pool of threads, torch's own, which svag's compiled loops use as well
(``svag.compiled.threads``): idle threads of a second pool would spin on cores of the first.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables from which libraries read their number of threads when loaded."""

_WORTH = 1.1


class Division(NamedTuple):
    """How runs share the cores: number of processes, threads of each, and seconds of a run."""

    workers: int
    threads: int
    seconds: float


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """Return the environment variables that limit a new process to a number of threads."""
    return dict.fromkeys(VARIABLES, str(threads))


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Limit processes that are started inside the context to a number of threads."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(environment(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def chosen(measured: Callable[[int], float], workers: int | None = None) -> Division:
    """Choose the number of threads of a run such that most runs are carried out per hour.

    More threads are chosen only if they give a tenth more runs than fewer, since with one thread
    and one run per core no core waits for another. ``OMP_NUM_THREADS`` is the upper limit.

    Args:
        measured: returns the seconds of a run, given a number of threads.
        workers: number of processes; None: as many as fit.

    Returns:
        The layout.
    """
    available = cores()
    best: Division | None = None
    for threads in _powers_of_two(_most(available, workers)):
        layout = Division(workers or available // threads, threads, measured(threads))
        if best is None or _rate(layout) > _WORTH * _rate(best):
            best = layout
    assert best is not None
    return best


def kept(file: Path, choose: Callable[[], Division], workers: int | None = None) -> Division:
    """Return the layout that was chosen on this machine before; choose and store it if none was.

    A study that is continued should keep its number of threads, which changes the order of sums.

    Args:
        file: file of the stored layout.
        choose: returns a layout.
        workers: number of processes that the user asked for; a layout stored for another number is
            not used.
    """
    place = [socket.gethostname(), cores(), os.environ.get(VARIABLES[0]), workers]
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(file.read_text())
        layout = Division(*found["layout"])
        if found["place"] == place and _is_whole(layout):
            return layout
    layout = choose()
    with suppress(OSError):  # if the folder cannot be written, the first record raises
        file.write_text(json.dumps({"place": place, "layout": layout}))
    return layout


def plain(workers: int | None = None) -> Division:
    """Return a layout without measuring: by default one run per core, else equal shares."""
    count = workers or cores()
    return Division(count, _most(cores(), count), 0.0)


def _is_whole(layout: Division) -> bool:
    """Whether a layout that was read has values that a layout can have."""
    counts = all(type(count) is int and count >= 1 for count in layout[:2])
    return counts and type(layout.seconds) in (int, float) and layout.seconds >= 0


def _most(available: int, workers: int | None) -> int:
    """Return the largest number of threads that a worker can have."""
    given = os.environ.get(VARIABLES[0], "")
    most = max(1, available // (workers or 1))
    return min(most, int(given)) if given.isdecimal() and int(given) else most


def _rate(layout: Division) -> float:
    return layout.workers / max(layout.seconds, 1e-9)


def _powers_of_two(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length())]
