"""The interface of executors: they accept runs and report their progress and end.

The results of a run are in its record. An attempt whose worker dies ends in status ``interrupted``
if the run is tried again, and in ``error`` if it was the last try.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from svag.lab.checkpoints import EVERY
from svag.lab.records import RecordWriter
from svag.lab.run import Run

TRIES = 2
"""Most attempts at a run whose workers die."""


class Event(NamedTuple):
    """Progress of a run: steps taken, whether it has ended, and whether its record was reused."""

    run: Run
    step: int
    ended: bool
    reused: bool = False


class Executor(Protocol):
    """Carries out runs."""

    @property
    def idle(self) -> int:
        """Number of further runs that could start at once."""

    def submit(self, run: Run) -> None:
        """Accept a run, which starts when a worker is free."""

    def events(self) -> Iterator[Event]:
        """Yield events until every submitted run has ended; runs may be submitted meanwhile."""

    def close(self) -> None:
        """Stop; runs in progress are recorded as interrupted."""


@dataclass(frozen=True)
class WorkPlace:
    """Where a worker finds problem and data, where it writes records, and limits of a run.

    Attributes:
        spec: the text that names the problem, see :func:`svag.problems.get`.
        data_dir: folder of original data files; None for ``$SVAG_DATA`` or a download.
        directory: its subfolder ``records`` receives the records.
        timeout: seconds after which a run ends in error; None for no limit.
        checkpoint_every: seconds between two checkpoints; None for no checkpoints.
    """

    spec: str
    data_dir: Path | None
    directory: Path
    timeout: float | None = None
    checkpoint_every: float | None = EVERY


class LostAttempts:
    """Counts the attempts of runs whose workers died, and writes the end of their records."""

    def __init__(self, place: WorkPlace) -> None:
        self._place = place
        self._lost: Counter[str] = Counter()

    def note(self, run: Run, message: str, *, tries: int = TRIES) -> bool:
        """Write to a run's record that its attempt was lost.

        Args:
            run: the run.
            message: why the attempt was lost.
            tries: most attempts at the run.

        Returns:
            Whether the run should be tried again.

        Raises:
            RecordError: the record cannot be written.
        """
        self._lost[run.id] += 1
        again = self._lost[run.id] < tries
        with RecordWriter(self._place.directory, run, source=self._place.spec) as recorder:
            recorder.end("interrupted" if again else "error", message=message)
        return again
