"""What every executor does: it takes runs and reports what becomes of them.

What a run found out is in its record. An attempt that was cut short ends in status
``interrupted`` if its run is tried again, and in ``error`` if that was the last try.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from svag.lab.checkpoints import EVERY
from svag.lab.records import RecordWriter, Run

TRIES = 2
"""How often a run is begun whose worker dies."""


class Event(NamedTuple):
    """Progress of a run: steps taken so far, whether it has ended, and if so, long ago."""

    run: Run
    step: int
    ended: bool
    reused: bool = False


class Executor(Protocol):
    """What carries a plan out."""

    @property
    def idle(self) -> int:
        """How many more runs could be carried out at once."""

    def submit(self, run: Run) -> None:
        """Accept a run, to be carried out when there is room."""

    def events(self) -> Iterator[Event]:
        """Yield progress until every submitted run has ended; runs may be submitted meanwhile."""

    def close(self) -> None:
        """Stop; a run in flight is recorded as interrupted."""


@dataclass(frozen=True)
class WorkPlace:
    """Where a worker finds problem and data, where it records, and how a run is treated.

    Attributes:
        spec: what the problem is called.
        data_dir: folder of original data.
        directory: its folder ``records`` receives the records.
        timeout: seconds after which a run ends in error; None for as long as it takes.
        checkpoint_every: seconds between two checkpoints; None for none.
    """

    spec: str
    data_dir: Path | None
    directory: Path
    timeout: float | None = None
    checkpoint_every: float | None = EVERY


class Losses:
    """Counts the attempts of runs that were cut short, and notes them in their records."""

    def __init__(self, place: WorkPlace) -> None:
        self._place = place
        self._lost: Counter[str] = Counter()

    def note(self, run: Run, message: str, *, tries: int = TRIES) -> bool:
        """Note in a run's record that its attempt was cut short.

        Args:
            run: what was lost.
            message: how.
            tries: how often it is begun at most.

        Returns:
            Whether it is to be tried again.

        Raises:
            RecordError: the record cannot be written.
        """
        self._lost[run.id] += 1
        again = self._lost[run.id] < tries
        with RecordWriter(self._place.directory, run, source=self._place.spec) as recorder:
            recorder.end("interrupted" if again else "error", message=message)
        return again
