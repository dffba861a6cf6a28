"""Executes runs as jobs of a Slurm cluster, through submitit, on a folder that all nodes share.

A job carries out one or more runs in worker processes, which write to ``DIR/records``, one file for
each run, so no lock is needed. The driver reads the progress of a run from its file, and asks Slurm
whether its job is alive. Jobs in flight are listed in ``DIR/jobs``, so that a driver that is
started again waits for them instead of repeating their runs.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svag.errors import RecordError
from svag.lab.executors import submission
from svag.lab.executors.cluster import SlurmCluster
from svag.lab.executors.contract import Event, LostAttempts, WorkPlace
from svag.lab.executors.local import Pool
from svag.lab.executors.streaming import Tail, progress_in
from svag.lab.executors.thread_count import cores
from svag.lab.records import find, path_of
from svag.lab.run import Run

_POLL = {"slurm": 2.0, "local": 0.2}


class RunsOfJob:
    """The work of a job: carries runs out, and continues them if Slurm starts the job again."""

    def __init__(
        self, place: WorkPlace, runs: list[Run], workers: int | None, threads: int
    ) -> None:
        self.place, self.runs = place, runs
        self.workers, self.threads = workers, threads

    def __call__(self) -> None:
        """Carry out the runs that have not finished, by default one at a time on each core."""
        waiting = [run for run in self.runs if not _finished(self.place.directory, run)]
        workers = self.workers or max(1, cores() // self.threads)
        pool = Pool(self.place, max(1, min(workers, len(waiting))), self.threads)
        with submission.interrupted_by_sigterm():
            try:
                for run in waiting:
                    pool.submit(run)
                for _ in pool.events():
                    pass
            finally:
                pool.close()

    def checkpoint(self) -> Any:
        """Return what submitit requeues when the job's time is over: the same work again."""
        return submission.once_more(self)


@dataclass
class _Job:
    """A job in flight, and those of its runs that have not ended."""

    handle: Any
    runs: dict[str, Run]
    tails: dict[str, Tail] = field(default_factory=dict)


class Slurm:
    """Carries runs out as jobs of a Slurm cluster.

    Runs that a dead job has not finished are tried once more, from their checkpoints if there are
    any, and then end in status ``error``.

    Args:
        cluster: the settings of a job, and its number of runs.
        place: where problem and data are, and where to write records; the paths have to be the same
            on the nodes.

    Raises:
        ClusterError: submitit is not installed or does not know a key, or Slurm cannot be reached.
    """

    def __init__(self, cluster: SlurmCluster, place: WorkPlace) -> None:
        self._cluster, self._place = cluster, place
        self._folder = place.directory / "jobs"
        self._queue = submission.Queue(cluster, self._folder)
        self._lost_attempts = LostAttempts(place)
        self._waiting: deque[Run] = deque()
        self._jobs: dict[str, _Job] = {}
        self._adopted = dict(self._left_by_another_driver())

    @property
    def idle(self) -> int:
        """Number of further runs that could start at once."""
        room = self._cluster.jobs * self._cluster.runs_per_job
        return max(0, room - sum(len(job.runs) for job in self._jobs.values()) - len(self._waiting))

    def submit(self, run: Run) -> None:
        """Append a run to the queue, unless a job of an earlier driver still carries it out."""
        job_id = self._adopted.pop(run.id, None)
        if job_id is None:
            self._waiting.append(run)
            return
        job = self._jobs.setdefault(job_id, _Job(self._queue.handle(job_id), {}))
        job.runs[run.id] = run
        job.tails[run.id] = Tail(self._place.directory, run)

    def events(self) -> Iterator[Event]:
        """Yield events, from the records of runs in progress.

        Raises:
            RecordError: a record cannot be written on this machine.
            ClusterError: Slurm does not accept a job.
        """
        while self._waiting or any(job.runs for job in self._jobs.values()):
            self._send()
            time.sleep(_POLL[self._cluster.executor])
            dead = self._queue.dead([job.handle for job in self._jobs.values()])
            for job_id, job in list(self._jobs.items()):
                yield from self._progress(job)
                if job_id in dead:
                    yield from self._job_died(job_id, job, dead[job_id])

    def close(self) -> None:
        """Cancel the jobs; their workers close the records."""
        for job in self._jobs.values():
            if job.runs:
                self._queue.cancel(job.handle)
        limit = time.monotonic() + 30
        while self._jobs and time.monotonic() < limit:
            for job_id in self._queue.dead([job.handle for job in self._jobs.values()]):
                self._drop(job_id)
            time.sleep(0.2)
        self._jobs.clear()

    def _send(self) -> None:
        """Submit waiting runs, spread evenly over as many jobs as may be in flight."""
        while self._waiting and (free := self._cluster.jobs - self._busy()) > 0:
            share = -(-len(self._waiting) // free)
            count = min(share, self._cluster.runs_per_job)
            runs = [self._waiting.popleft() for _ in range(count)]
            tails = {run.id: self._tail(run) for run in runs}
            work = RunsOfJob(self._place, runs, self._cluster.workers, self._cluster.threads or 1)
            handle = self._queue.submit(work)
            self._jobs[handle.job_id] = _Job(handle, {run.id: run for run in runs}, tails)
            self._note(handle.job_id, [run.id for run in runs])

    def _busy(self) -> int:
        """Return the number of jobs with unfinished runs."""
        return sum(bool(job.runs) for job in self._jobs.values())

    def _tail(self, run: Run) -> Tail:
        path = path_of(self._place.directory, run)
        return Tail(self._place.directory, run, path.stat().st_size if path.exists() else 0)

    def _progress(self, job: _Job) -> Iterator[Event]:
        """Yield events from new lines in the records of a job's runs."""
        for run in list(job.runs.values()):
            last, ended = None, False
            for step, ended in progress_in(job.tails[run.id].lines()):  # noqa: B007
                last = step if step is not None else last
            if ended:
                del job.runs[run.id]
                yield Event(run, run.steps, ended=True)
            elif last is not None:
                yield Event(run, last, ended=False)

    def _job_died(self, job_id: str, job: _Job, state: str) -> Iterator[Event]:
        """Record the lost attempts of a dead job's unfinished runs, and queue them once more."""
        yield from self._progress(job)  # lines written since the last look
        self._drop(job_id)
        for run in job.runs.values():
            if _finished(self._place.directory, run):
                yield Event(run, run.steps, ended=True)
                continue
            message = f"job {job_id} ended as {state} ({self._queue.log(job.handle)})"
            again = self._lost_attempts.note(run, message)
            if again:
                self._waiting.append(run)
            yield Event(run, 0, ended=not again)

    def _note(self, job_id: str, runs: list[str]) -> None:
        """List a job in ``DIR/jobs``, for a driver that is started later."""
        path = self._folder / f"{job_id}.json"
        try:
            path.write_text(json.dumps({"executor": self._cluster.executor, "runs": runs}))
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error

    def _drop(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        with suppress(OSError):
            (self._folder / f"{job_id}.json").unlink(missing_ok=True)

    def _left_by_another_driver(self) -> Iterator[tuple[str, str]]:
        """Yield the runs that jobs of an earlier driver still carry out, with the jobs' ids."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                left = json.loads(path.read_text())
                executor, runs = left["executor"], left["runs"]
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue
            if executor == self._cluster.executor and self._queue.lives(path.stem):
                yield from ((run, path.stem) for run in runs)
            elif executor == self._cluster.executor:
                path.unlink(missing_ok=True)


def _finished(directory: Path, run: Run) -> bool:
    record = find(directory, run)
    return record is not None and record.finished
