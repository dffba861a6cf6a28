"""Detached drivers, which carry out a study without a terminal: start, state and output.

The search is adaptive, so a process has to decide which run is next: the driver. With ``--detach``
the driver is the same command on the cluster: a job of one core on Slurm, an actor on Ray, a
process in its own session on this machine. ``DIR/driver.json`` says where it runs,
``DIR/driver.log`` has its output, ``DIR/driver.end`` its exit code.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svag.errors import RecordError
from svag.lab import folder_lock
from svag.lab.executors import submission
from svag.lab.executors.cluster import Cluster, ClusterError, RayCluster, SlurmCluster
from svag.lab.executors.driver_process import DETACHED, END, LOG, drive, exit_code
from svag.lab.executors.ray_driver import RayDriver

_POLL = 1.0
_PLACE = "driver.json"


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Where a detached driver runs.

    Attributes:
        kind: kind of its cluster: ``local``, ``ray`` or ``slurm``.
        id: id of its process, job or actor.
        host: host that it was started from.
        study: id of the study that it carries out.
        address: address of the Ray cluster.
        executor: submitit's executor on a Slurm cluster.
        started: time of its start.
    """

    kind: str
    id: str
    host: str
    study: str
    address: str = ""
    executor: str = ""
    started: str = ""


@dataclass(frozen=True)
class State:
    """Whether a driver is running, its exit code if it has ended, and a sentence about both."""

    alive: bool
    code: int | None
    said: str


def here() -> bool:
    """Whether this process is a detached driver."""
    return DETACHED in os.environ


def launch(
    directory: Path,
    cluster: Cluster,
    command: Sequence[str],
    study: str,
    folder: Path | None = None,
) -> Driver:
    """Start the driver and return at once.

    Args:
        directory: folder of the records.
        cluster: the cluster to run on.
        command: arguments of the command ``svag``, without ``--detach``.
        study: id of the study that it carries out.
        folder: folder of code to copy to a Ray cluster.

    Raises:
        ClusterError: the cluster cannot be reached or does not accept the driver.
        RecordError: the folder cannot be written.
    """
    driver = Driver(kind=cluster.kind, id="", host=socket.gethostname(), study=study)
    driver = replace(driver, started=datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (END, LOG):
            (directory / name).unlink(missing_ok=True)
        if isinstance(cluster, RayCluster):
            with RayDriver(cluster, directory, folder) as actor:
                actor.start(command)
            driver = replace(driver, id=actor.name, address=cluster.address)
        elif isinstance(cluster, SlurmCluster):
            queue = submission.Queue(_alone(cluster), directory / "jobs")
            job = queue.submit(Drive(directory.absolute(), list(command), str(Path.cwd())))
            driver = replace(driver, id=str(job.job_id), executor=cluster.executor)
        else:
            driver = replace(driver, id=_start_process(directory, command))
        scratch = directory / f"{_PLACE}.part"
        scratch.write_text(json.dumps(asdict(driver)) + "\n")
        scratch.replace(directory / _PLACE)
    except OSError as error:
        if isinstance(error, ClusterError):
            raise
        raise RecordError(f"cannot write to {directory}: {error.strerror}") from error
    return driver


def found(directory: Path) -> Driver | None:
    """Return the driver that was last started for a folder; None if there was none."""
    try:
        driver = Driver(**json.loads((directory / _PLACE).read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(value, str) for value in asdict(driver).values())
    known = texts and driver.kind in _WHAT
    return driver if known and (driver.kind != "local" or driver.id.isdecimal()) else None


def state(directory: Path, driver: Driver) -> State:
    """Return a driver's state; the records of a driver on Ray are fetched.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    with _asking(directory, driver) as ask:
        return _described(driver, *ask())


def follow(directory: Path, driver: Driver, say: Callable[[str], None]) -> State:
    """Wait until a driver has ended, and pass on the lines that it prints.

    Args:
        directory: folder of the records.
        driver: the driver.
        say: called with each line.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    seen = 0
    with _asking(directory, driver) as ask:
        while True:
            now = _described(driver, *ask())
            with suppress(OSError):
                printed = (directory / LOG).read_bytes()
                whole = printed.rfind(b"\n") + 1
                for line in printed[seen:whole].decode(errors="replace").splitlines():
                    say(line)
                seen = max(seen, whole)
            if not now.alive:
                return now
            time.sleep(_POLL)


class Drive:
    """The driver as a job."""

    def __init__(self, directory: Path, command: list[str], cwd: str) -> None:
        self.directory, self.command, self.cwd = directory, command, cwd

    def __call__(self) -> None:
        """Run the command."""
        with submission.interrupted_by_sigterm():
            drive(self.directory, self.command, self.cwd)

    def checkpoint(self) -> Any:
        """Return what submitit requeues when the job's time is over: the same driver again."""
        return submission.once_more(self)


_WHAT = {"local": "the driver, process", "slurm": "the driver, job", "ray": "the driver, actor"}
_KEPT = ("partition", "account", "qos", "constraint", "setup", "wckey", "comment")


def _alone(cluster: SlurmCluster) -> SlurmCluster:
    """Return the settings of the driver's job: one core, without the resources of runs."""
    kept = {key: cluster.slurm[key] for name in _KEPT if (key := f"slurm_{name}") in cluster.slurm}
    one = {"slurm_cpus_per_task": 1, "slurm_use_srun": False, "slurm_job_name": "svag-driver"}
    return replace(cluster, slurm={**kept, **one, **cluster.driver})


def _start_process(directory: Path, command: Sequence[str]) -> str:
    """Start the driver on this machine, in a new session, so that it outlives this terminal."""
    code = (
        "import sys; from pathlib import Path; "
        "from svag.lab.executors.driver_process import drive; "
        "drive(Path(sys.argv[1]), sys.argv[2:], '.')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(directory.absolute()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.returncode = 0  # so that Popen does not warn that it is still running
    return str(process.pid)


@contextmanager
def _asking(directory: Path, driver: Driver) -> Iterator[Callable[[], tuple[bool, int | None]]]:
    """Yield a function that returns whether a driver is running, and its exit code."""
    if driver.kind == "ray":
        with RayDriver(RayCluster(address=driver.address), directory) as actor:
            yield actor.fetch
        return
    lives = _lives(directory, driver)

    def ask() -> tuple[bool, int | None]:
        alive = lives()  # before the exit code is read, which is written before the driver ends
        code = exit_code(directory)
        return alive and code is None, code

    yield ask


def _lives(directory: Path, driver: Driver) -> Callable[[], bool]:
    if driver.kind == "slurm":
        queue = submission.Queue(SlurmCluster(executor=driver.executor), directory / "jobs")
        return lambda: queue.lives(driver.id)
    if driver.host == socket.gethostname():
        return lambda: submission.runs(int(driver.id))
    return lambda: folder_lock.holder(directory) is not None


def _described(driver: Driver, alive: bool, code: int | None) -> State:
    where = f"{_WHAT[driver.kind]} {driver.id}"
    if alive:
        return State(True, None, f"{where}, is at work since {driver.started}")
    if code is None:
        return State(False, None, f"{where}, ended without an exit code; the same command goes on")
    return State(False, code, f"{where}, has ended with exit code {code}")
