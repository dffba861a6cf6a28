"""Carries out the plans of several methods at once, on any executor; recorded runs are reused."""

from collections.abc import Callable, Mapping
from pathlib import Path

from svag.lab import records
from svag.lab.checkpoints import Checkpoints
from svag.lab.executors.contract import Event, Executor
from svag.lab.protocol import Plan
from svag.lab.records import Record
from svag.lab.run import Run
from svag.lab.search import Request


def carry_out(
    plans: Mapping[str, Plan],
    executor: Executor,
    directory: Path,
    observe: Callable[[Event, Record | None], None] = lambda event, record: None,
) -> list[Record]:
    """Carry out plans until each has ended.

    Idle workers carry out runs that a plan will probably need next. This does not change what the
    plan decides.

    Args:
        plans: a plan for each method, by key.
        executor: carries out runs that are not yet recorded.
        directory: folder of the records.
        observe: called with every event (a run's start, progress or end), and with the run's record
            if it has ended, else None.

    Returns:
        The records of all runs that the plans needed.
    """
    return _Conductor(plans, executor, directory, observe).conduct()


class _Conductor:
    """Knows which plan waits for which runs, and sends records to the plans."""

    def __init__(
        self,
        plans: Mapping[str, Plan],
        executor: Executor,
        directory: Path,
        observe: Callable[[Event, Record | None], None],
    ) -> None:
        self._plans, self._executor = plans, executor
        self._directory, self._observe = directory, observe
        self._requests: dict[str, Request] = {}
        self._submitted: dict[str, Run] = {}
        self._known: dict[str, Record] = {}
        self._needed: dict[str, Record] = {}

    def conduct(self) -> list[Record]:
        for key, plan in self._plans.items():
            self._take(key, next(plan, None))
        self._advance()
        for event in self._executor.events():
            if not event.ended:
                self._observe(event, None)
                continue
            ended = records.find(self._directory, event.run)
            assert ended is not None
            self._known[event.run.id] = ended
            self._submitted.pop(event.run.id, None)
            self._observe(event, ended)
            self._advance()
            if not self._requests:  # runs that are not finished were only carried out ahead
                break
        return list(self._needed.values())

    def _advance(self) -> None:
        """Continue every plan whose runs have ended, then submit runs ahead to idle workers."""
        for key in list(self._requests):
            while (request := self._requests.get(key)) and self._answered(request):
                answers = {run.id: self._known[run.id] for run in request.needed}
                self._needed.update(answers)
                try:
                    self._take(key, self._plans[key].send(answers))
                except StopIteration:
                    del self._requests[key]
        ahead = [run for request in self._requests.values() for run in request.ahead]
        for run in ahead:
            if self._executor.idle:
                self._submit(run)

    def _take(self, key: str, request: Request | None) -> None:
        """Store a plan's request and submit the runs that it needs."""
        if request is None:
            return
        self._requests[key] = request
        for run in request.needed:
            self._submit(run)

    def _answered(self, request: Request) -> bool:
        return all(run.id in self._known for run in request.needed)

    def _submit(self, run: Run) -> None:
        if run.id in self._known or run.id in self._submitted:
            return
        record = records.find(self._directory, run)
        if record is not None and record.finished:
            self._known[run.id] = record
            Checkpoints(self._directory, run, None).remove()  # a kill after the end may leave one
            self._observe(Event(run, run.steps, ended=True, reused=True), record)
        else:
            self._submitted[run.id] = run
            self._executor.submit(run)
