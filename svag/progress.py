"""Progress on the terminal: a line for each run that ends, and the estimated time left."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from svag.analysis.wording import amount_of
from svag.entrants import entrant
from svag.lab.executors.contract import Event
from svag.lab.records import Record
from svag.lab.run import Run


class RunProgress:
    """Prints runs as they end, and the estimated time for the remaining ones.

    Args:
        console: where to print.
        expected: number of runs; a guess if step sizes are searched for.
    """

    def __init__(self, console: Console, expected: int) -> None:
        self._console = console
        self._expected = expected
        self._started = time.monotonic()
        self._ended = self._reused = 0
        self._partial: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def observe(self, event: Event, record: Record | None) -> None:
        """Count and print an event; ``record`` is that of the run, None unless it has ended."""
        self._partial.pop(event.run.id, None)
        if not event.ended:
            self._partial[event.run.id] = event.step / event.run.steps
        elif record is not None:
            self._reused += event.reused
            self._ended += not event.reused
            line = _line(event.run, record, reused=event.reused)
            self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        done = self._ended + sum(self._partial.values())
        total = max(self._expected - self._reused, self._ended + len(self._partial))
        left = "estimating the time left"
        if self._ended:
            seconds = (time.monotonic() - self._started) / done * (total - done)
            left = f"about {_duration(seconds)} left"
        self._bar.update(
            self._task,
            description=f"{self._ended + self._reused} runs done",
            completed=done / total if total else 1.0,
            left=left,
        )


def _line(run: Run, record: Record, *, reused: bool) -> str:
    end = record.end or {}
    value = end.get(f"test_{run.metric}")
    if record.status == "error":
        outcome = f"error: {end.get('message', '')}"
    elif record.status == "done" and value is not None:
        outcome = f"test {run.quantity.title} {amount_of(value, run.quantity)}"
    else:
        outcome = record.status
    note = "  (recorded earlier)" if reused else ""
    name = entrant(run.method).name
    return f"{name:<7} lr {run.lr:<8g} seed {run.seed:<4} {outcome}{note}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
