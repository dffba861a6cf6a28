"""How many threads a worker has: chosen by measuring, set before torch starts.

A worker has one pool of threads, torch's own, which svag's compiled loops use as well
(``svag.compiled.threads``). Two pools would wait for each other's cores, spinning.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries that keep threads take their number from when they are loaded."""

_WORTH = 1.1


class Division(NamedTuple):
    """How runs share the cores: processes, threads of each, and seconds that a run takes so."""

    workers: int
    threads: int
    seconds: float


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """Return the variables that limit a new process to so many threads."""
    return dict.fromkeys(VARIABLES, str(threads))


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Let processes that are started meanwhile have so many threads."""
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
    """Choose how runs share the cores: what carries out most runs in an hour.

    More threads a run have to be worth a tenth more runs than the choice before: with one thread a
    run and a run a core, no core ever waits for another. ``OMP_NUM_THREADS`` is the most.

    Args:
        measured: seconds that a run takes with so many threads.
        workers: processes, where their number is settled.

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
    """Return the layout that was chosen on this machine before, or choose, and keep the choice.

    The number of threads changes the order of sums: a study that goes on keeps it.
    """
    place = [socket.gethostname(), cores(), os.environ.get(VARIABLES[0]), workers]
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_text())
        if found["place"] == place:
            return Division(*found["layout"])
    layout = choose()
    with suppress(OSError):  # the records will say that the folder cannot be written
        file.write_text(json.dumps({"place": place, "layout": layout}))
    return layout


def plain(workers: int | None = None) -> Division:
    """Return the layout for what cannot be measured: a run a core, or equal shares."""
    count = workers or cores()
    return Division(count, _most(cores(), count), 0.0)


def _most(available: int, workers: int | None) -> int:
    """Return how many threads a worker can have."""
    given = os.environ.get(VARIABLES[0], "")
    most = max(1, available // (workers or 1))
    return min(most, int(given)) if given.isdecimal() and int(given) else most


def _rate(layout: Division) -> float:
    return layout.workers / max(layout.seconds, 1e-9)


def _powers_of_two(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length())]
