"""Executes runs as tasks of a Ray cluster; records stream back, so no disk needs to be shared.

A task trains in its own folder on its node and yields new lines of the record as they are written,
and each checkpoint. The driver appends the lines and keeps the checkpoint, so that a run whose node
fails continues on another node.
"""

import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

from svag.lab.checkpoints import Checkpoints
from svag.lab.executors.cluster import ClusterError, RayCluster, reach
from svag.lab.executors.contract import TRIES, Event, LostAttempts, WorkPlace
from svag.lab.executors.streaming import Tail, Transcript
from svag.lab.executors.thread_count import environment
from svag.lab.run import Run

NODE_TRIES = 5
"""Most attempts at a run whose nodes fail."""

_POLL = 0.2
NAMESPACE = "svag"


class Piece(NamedTuple):
    """A message of a task: lines of the record, or a whole checkpoint."""

    lines: bytes = b""
    checkpoint: bytes | None = None


class Ray:
    """Carries runs out as core tasks of a Ray cluster.

    Args:
        cluster: its address, and the resources of a run.
        place: the problem's name on this machine, and the folder of the records.
        folder: folder of code to copy to the nodes; None for none.
        spec: the problem's name on the nodes; None for the same.

    Raises:
        ClusterError: ray is not installed, the cluster cannot be reached, or none of its nodes has
            the resources of a run.
    """

    def __init__(
        self,
        cluster: RayCluster,
        place: WorkPlace,
        folder: Path | None = None,
        spec: str | None = None,
    ) -> None:
        self._cluster, self._place = cluster, place
        self._there = replace(place, spec=spec or place.spec)
        self._ray = connect(cluster, folder)
        self._lost_attempts = LostAttempts(place)
        self._waiting: deque[Run] = deque()
        self._tasks: dict[Any, Transcript] = {}
        self._task = self._ray.remote(_attempt).options(
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            memory=cluster.memory,
            resources=dict(cluster.resources),
            max_retries=0,
        )
        try:
            self._check_room()
        except ClusterError:
            self._ray.shutdown()
            raise

    @property
    def idle(self) -> int:
        """Number of further runs that the nodes have room for."""
        return max(0, self._room() - len(self._tasks) - len(self._waiting))

    def submit(self, run: Run) -> None:
        """Submit a run to the cluster, or queue it."""
        self._waiting.append(run)
        self._dispatch()

    def events(self) -> Iterator[Event]:
        """Yield events as they stream in.

        Raises:
            RecordError: the records cannot be written on this machine.
            ClusterError: the cluster cannot be reached any more.
        """
        while self._tasks or self._waiting:
            self._dispatch()
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
            for stream in ready:
                yield from self._received(stream)

    def close(self) -> None:
        """Stop the tasks; their records end in status ``interrupted``."""
        for stream, transcript in self._tasks.items():
            self._ray.cancel(stream, force=True)
            transcript.interrupt()
        self._tasks.clear()
        self._waiting.clear()
        self._ray.shutdown()

    def _dispatch(self) -> None:
        most = self._cluster.workers
        while self._waiting and (most is None or len(self._tasks) < most):
            run = self._waiting.popleft()
            checkpoint = Checkpoints(self._place.directory, run, None).path
            content = checkpoint.read_bytes() if checkpoint.is_file() else None
            stream = self._task.remote(self._there, self._place.spec, run, content)
            self._tasks[stream] = Transcript(self._place.directory, run)

    def _received(self, stream: Any) -> Iterator[Event]:
        """Process the next message of a task, or its end."""
        transcript = self._tasks[stream]
        run = transcript.run
        try:
            piece: Piece = self._ray.get(next(stream))
        except StopIteration:
            yield self._ended(stream, "the task ended without a word")
            return
        except self._ray.exceptions.RayError as error:
            yield self._ended(stream, _reason(error), _tries(error))
            return
        if piece.checkpoint is not None:
            transcript.keep_checkpoint(piece.checkpoint)
        for step in transcript.append(piece.lines):
            yield Event(run, step, ended=False)

    def _ended(self, stream: Any, reason: str, tries: int = TRIES) -> Event:
        """Record how an attempt ended; submit its run again if it was lost."""
        transcript = self._tasks.pop(stream)
        run = transcript.run
        if transcript.ended:
            Checkpoints(self._place.directory, run, None).remove()
            return Event(run, run.steps, ended=True)
        again = self._lost_attempts.note(run, reason, tries=tries)
        if again:
            self._waiting.appendleft(run)
        return Event(run, 0, ended=not again)

    def _room(self) -> int:
        """Return the number of runs that fit on the nodes at a time."""
        fitting = sum(_fits(node, self._cluster.needs) for node in self._nodes())
        return fitting if self._cluster.workers is None else min(fitting, self._cluster.workers)

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _check_room(self) -> None:
        if self._room() == 0:
            needs = ", ".join(f"{amount:g} {name}" for name, amount in self._cluster.needs.items())
            has = "; ".join(
                ", ".join(f"{node.get(name, 0):g} {name}" for name in self._cluster.needs)
                for node in self._nodes()
            )
            raise ClusterError(
                f"a run takes {needs}, and no node of the cluster at {self._cluster.address} has "
                f"that (they have {has}); ask for less in the cluster file"
            )


def connect(cluster: RayCluster, folder: Path | None = None) -> Any:
    """Connect to a cluster; return the module ``ray``.

    Args:
        cluster: the cluster.
        folder: folder of code to copy to the nodes.

    Raises:
        ClusterError: ray is not installed, or there is no cluster at the address.
    """
    reach(cluster)
    import ray

    threads = cluster.threads or max(1, int(cluster.num_cpus))
    code = cluster.working_dir or (None if folder is None else str(folder))
    copied = {} if code is None else {"working_dir": code}
    try:
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {**environment(threads), **_passed_on()}, **copied},
        )
    except Exception as error:  # ray raises many kinds of errors if there is no cluster
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"no Ray cluster can be used at {cluster.address!r} ({reason}); start svag on one of "
            "its nodes: `ray start --head` makes one, `ray start --address=HOST:PORT` joins it"
        ) from error
    return ray


def _passed_on() -> dict[str, str]:
    """Return the environment variables to pass on to the nodes."""
    return {name: os.environ[name] for name in ("SVAG_DATA",) if name in os.environ}


def _attempt(there: WorkPlace, source: str, run: Run, checkpoint: bytes | None) -> Iterator[Piece]:
    """Train one run on a node, in its own folder; yield new lines of its record and checkpoints."""
    directory = Path(tempfile.mkdtemp(prefix="svag-"))
    there = replace(there, directory=directory)
    kept = Checkpoints(directory, run, None).path
    if checkpoint is not None:
        kept.parent.mkdir(parents=True)
        kept.write_bytes(checkpoint)
    tail = Tail(directory, run)
    news, failures = threading.Event(), deque[BaseException]()

    def train() -> None:
        try:
            _server(there, source).carry_out(run, there, lambda step: news.set())
        except BaseException as error:
            failures.append(error)
        finally:
            news.set()

    training = threading.Thread(target=train, daemon=True)
    training.start()
    try:
        while training.is_alive():
            news.wait(_POLL)
            news.clear()
            if (lines := tail.lines()) or tail.checkpointed():
                yield Piece(lines, tail.checkpoint())
        if lines := tail.lines():
            yield Piece(lines)
        if failures:
            raise failures[0]
    finally:
        rmtree(directory, ignore_errors=True)


@lru_cache(maxsize=1)
def _server_of(spec: str, data_dir: Path | None, source: str) -> Any:
    from svag.lab.executors.worker import Worker

    return Worker(WorkPlace(spec, data_dir, Path()), source)


def _server(there: WorkPlace, source: str) -> Any:
    """Return this process's worker, which loads problem and data once for all runs."""
    return _server_of(there.spec, there.data_dir, source)


def _reason(error: BaseException) -> str:
    """Describe in one line how a task was lost."""
    name = type(error).__name__
    cause = getattr(error, "cause", None)
    text = " ".join(str(cause if cause is not None else error).split())
    return f"the task was lost ({name}: {text[:200]})"


def _tries(error: BaseException) -> int:
    """Return the most attempts at a run; more if its node failed, which is not the run's fault."""
    node_left = type(error).__name__ in ("NodeDiedError", "LocalRayletDiedError")
    return NODE_TRIES if node_left else TRIES


def _fits(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """Return the number of runs that fit on a node at a time."""
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items())
