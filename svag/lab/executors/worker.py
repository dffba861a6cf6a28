"""The work of a worker on any executor: load problem and data once, then train run after run."""

from collections.abc import Callable
from dataclasses import replace

from svag import problems
from svag.errors import in_one_line
from svag.lab.executors.contract import WorkPlace
from svag.lab.records import RecordWriter
from svag.lab.run import Run
from svag.lab.train import train
from svag.problems import Data, Problem


class Worker:
    """Trains runs of one problem; if the problem cannot be loaded, each run ends in that error.

    Args:
        place: where problem and data are, and where to write records.
        source: the problem's name in the records; by default ``place.spec``.
    """

    def __init__(self, place: WorkPlace, source: str | None = None) -> None:
        self._place, self._source = place, source or place.spec
        self._loaded: tuple[Problem, Data] | None = None
        self._failure: str | None = None
        try:
            problem = replace(problems.get(place.spec), source=self._source)
            self._loaded = problem, problems.load(problem, place.data_dir)
        except Exception as error:
            self._failure = in_one_line(error)

    def carry_out(self, run: Run, place: WorkPlace, report: Callable[[int], None]) -> None:
        """Train a run and write its record.

        Args:
            run: the run.
            place: where to write the record; limits of the run.
            report: called after each evaluation with the number of steps taken.

        Raises:
            RecordError: the record cannot be written.
        """
        failure = self._failure
        if self._loaded is not None and run.version != self._loaded[0].version:
            failure = f"the code of {self._source} has changed since the study began"
        elif self._loaded is not None and run.data != self._loaded[1].fingerprint:
            failure = (
                f"the data of {self._source} are not those that the study began with; have its "
                "load function return the same at every call and on every machine"
            )
        if self._loaded is None or failure is not None:
            with RecordWriter(place.directory, run, source=self._source) as recorder:
                recorder.end("error", message=str(failure))
            return
        problem, data = self._loaded
        train(
            problem,
            data,
            run,
            place.directory,
            progress=report,
            timeout=place.timeout,
            checkpoint_every=place.checkpoint_every,
        )
