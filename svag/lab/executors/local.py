"""Executes runs on this machine: one by one in this process, or in parallel worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple

import torch

from svag.errors import RecordError
from svag.lab.executors.contract import Event, LostAttempts, WorkPlace
from svag.lab.executors.thread_count import cores, limited
from svag.lab.executors.worker import Worker
from svag.lab.records import find
from svag.lab.run import Run
from svag.lab.train import train
from svag.problems import Data, Problem


class Failure(NamedTuple):
    """A worker cannot write its records, which ends the study; the message says why."""

    message: str


class InProcess:
    """Carries runs out in this process, one after the other."""

    def __init__(self, problem: Problem, data: Data, place: WorkPlace) -> None:
        self._problem, self._data, self._place = problem, data, place
        self._waiting: deque[Run] = deque()

    @property
    def idle(self) -> int:
        """0, so that no run is carried out ahead."""
        return 0

    def submit(self, run: Run) -> None:
        """Append a run to the queue."""
        self._waiting.append(run)

    def events(self) -> Iterator[Event]:
        """Carry out one run after the other; progress within a run is reported with its end."""
        while self._waiting:
            run = self._waiting.popleft()
            yield Event(run, 0, ended=False)
            train(
                self._problem,
                self._data,
                run,
                self._place.directory,
                timeout=self._place.timeout,
                checkpoint_every=self._place.checkpoint_every,
            )
            yield Event(run, run.steps, ended=True)

    def close(self) -> None:
        """Do nothing, since no run is in progress between two events."""


class Pool:
    """Carries runs out in ``workers`` processes, which share the cores evenly.

    All are started with the first run, since each takes seconds to start. A worker that dies is
    replaced, and its run is tried a second time, from its checkpoint if there is one. If the worker
    dies again, the run ends in status ``error``. Both attempts are in the record.

    Args:
        place: where problem and data are, and where to write records.
        workers: number of processes.
        threads: threads of each; by default an equal share of the cores.
    """

    def __init__(self, place: WorkPlace, workers: int, threads: int | None = None) -> None:
        self._place = place
        self._workers = workers
        self._threads = threads or max(1, cores() // workers)
        self._context = multiprocessing.get_context("spawn")
        self._waiting: deque[Run] = deque()
        self._busy: dict[Connection, tuple[BaseProcess, Run]] = {}
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._lost_attempts = LostAttempts(place)

    @property
    def idle(self) -> int:
        """Number of workers without a run."""
        return max(0, self._workers - len(self._busy) - len(self._waiting))

    def submit(self, run: Run) -> None:
        """Send a run to an idle worker, or queue it."""
        self._waiting.append(run)
        self._dispatch()

    def events(self) -> Iterator[Event]:
        """Yield the workers' reports as they arrive.

        Raises:
            RecordError: a worker cannot write its records.
        """
        while self._busy:
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                process, run = self._busy[connection]
                try:
                    event = connection.recv()
                except (EOFError, OSError):
                    event = self._worker_died(connection, process, run)
                if isinstance(event, Failure):
                    raise RecordError(event.message)
                if event.ended:
                    if self._busy.pop(connection, None) is not None and process.is_alive():
                        self._idle.append((connection, process))
                    self._dispatch()
                yield event

    def close(self) -> None:
        """End all workers; each closes its record first."""
        processes = [process for process, _ in self._busy.values()]
        processes += [process for _, process in self._idle]
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=10)
            process.kill()

    def _dispatch(self) -> None:
        self._idle = [(c, p) for c, p in self._idle if p.is_alive()]
        while self._waiting and len(self._busy) + len(self._idle) < self._workers:
            self._idle.append(self._start_worker())
        while self._waiting and self._idle:
            connection, process = self._idle.pop()
            run = self._waiting.popleft()
            with suppress(OSError):  # events() notices a worker that has died
                connection.send(run)
            self._busy[connection] = (process, run)

    def _start_worker(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._place, self._threads), daemon=True
        )
        with _ignoring_interrupts(), limited(self._threads):  # the new process inherits both
            process.start()
        theirs.close()
        return ours, process

    def _worker_died(self, connection: Connection, process: BaseProcess, run: Run) -> Event:
        """Record the lost attempt of a dead worker's run, and queue the run once more."""
        connection.close()
        process.join()
        del self._busy[connection]
        record = find(self._place.directory, run)
        if record is not None and record.finished:
            self._dispatch()
            return Event(run, run.steps, ended=True)
        again = self._lost_attempts.note(
            run, f"the worker process died (exit code {process.exitcode})"
        )
        if again:
            self._waiting.appendleft(run)
        self._dispatch()
        return Event(run, 0, ended=not again)


def _work(connection: Connection, place: WorkPlace, threads: int) -> None:
    """Carry out runs in a worker process, until SIGTERM or the end of the parent process."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        worker = Worker(place)
        while True:
            run: Run = connection.recv()

            def report(step: int, run: Run = run) -> None:
                try:
                    connection.send(Event(run, step, ended=False))
                except OSError:  # the parent process has ended
                    raise KeyboardInterrupt from None

            try:
                worker.carry_out(run, place, report)
            except RecordError as error:
                connection.send(Failure(str(error)))
                return
            connection.send(Event(run, run.steps, ended=True))
    except (KeyboardInterrupt, EOFError, OSError):
        return


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore SIGINT inside the context; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
