"""Submits jobs through submitit, to Slurm or as processes of this machine, and asks their state."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from svag.errors import nearest
from svag.lab.executors.cluster import ClusterError, SlurmCluster

_PATIENCE = 20
_REQUEUES = 1000
"""Most times that a job is requeued when its time is over; runs have their own time limit."""

_ALIVE = frozenset(
    {
        *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING"),
        *("REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "SIGNALING", "STOPPED"),
        "RESV_DEL_HOLD",
    }
)
"""States of live jobs, by ``squeue``'s names."""


class Queue:
    """Submits jobs and asks for their states.

    Args:
        cluster: the settings of each job.
        folder: folder of submitit's files.

    Raises:
        ClusterError: submitit is not installed, Slurm cannot be reached, or submitit does not know
            a key.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        reach(cluster)
        import submitit

        self._submitit, self._folder = submitit, folder.absolute()
        self._local = cluster.executor == "local"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._executor = submitit.AutoExecutor(
                self._folder, cluster=cluster.executor, slurm_max_num_timeout=_REQUEUES
            )
        except OSError as error:
            raise ClusterError(f"cannot write {self._folder}: {error.strerror}") from error
        self._update(_parameters(cluster))

    def submit(self, work: Any) -> Any:
        """Submit a job; return submitit's handle.

        Raises:
            ClusterError: Slurm does not accept it.
        """
        try:
            with (
                self._submitit.helpers.clean_env()
            ):  # without Slurm's variables of this job, if any
                return self._executor.submit(work)
        except self._submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split())[-400:]
            raise ClusterError(f"Slurm did not take the job: {reason}") from error

    def handle(self, job_id: str) -> Any:
        """Return the handle of a job that another process submitted."""
        made = self._submitit.LocalJob if self._local else self._submitit.SlurmJob
        return made(folder=self._folder, job_id=job_id)

    def lives(self, job_id: str) -> bool:
        """Whether a job that another process submitted is alive."""
        return job_id not in self.dead([self.handle(job_id)])

    def dead(self, handles: Sequence[Any]) -> dict[str, str]:
        """Return the jobs that have ended, each with its state."""
        if self._local:
            return {h.job_id: state for h in handles if (state := _local_end(h)) is not None}
        if not handles:
            return {}
        try:
            states = _squeue()
        except ClusterError:  # Slurm does not answer: assume that no job has ended
            return {}
        gone = [h for h in handles if states.get(h.job_id, "") not in _ALIVE]
        return {h.job_id: states.get(h.job_id) or _accounted(h.job_id) for h in gone}

    def cancel(self, handle: Any) -> None:
        """Cancel a job; its workers close their records first."""
        if not self._local:
            handle.cancel(check=False)
            return
        with suppress(OSError):  # it has ended
            os.kill(int(handle.job_id), signal.SIGINT)

    def log(self, handle: Any) -> str:
        """Return the path of a job's log."""
        return str(handle.paths.stderr)

    def _update(self, parameters: dict[str, Any]) -> None:
        try:
            self._executor.update_parameters(**parameters)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            known = self._known()
            wrong = [key for key in parameters if known and key not in known]
            if wrong:
                raise ClusterError(
                    f"submitit knows no {wrong[0]!r}.{nearest(wrong[0], known)} Known: "
                    f"{', '.join(sorted(known))}; all else goes into slurm_additional_parameters"
                ) from error
            raise ClusterError(f"submitit refuses {parameters}: {error}") from error

    def _known(self) -> set[str]:
        known = {f"slurm_{name}" for name in self._submitit.SlurmExecutor._valid_parameters()}
        return known | {"timeout_min", "name", "cpus_per_task"}


def reach(cluster: SlurmCluster) -> None:
    """Check within seconds that a Slurm cluster can be used from this machine.

    Raises:
        ClusterError: submitit is not installed, or Slurm cannot be reached.
    """
    if find_spec("submitit") is None:
        raise ClusterError("--cluster needs submitit; pip install 'svag[slurm]'")
    if cluster.executor == "slurm":
        _squeue()


def _parameters(cluster: SlurmCluster) -> dict[str, Any]:
    """Return submitit's parameters of a job."""
    given = dict(cluster.slurm)
    if "slurm_time" not in given:
        given.setdefault("timeout_min", cluster.timeout_min)
    given.setdefault("name" if "slurm_job_name" not in given else "slurm_job_name", "svag")
    return given


def once_more(work: Any) -> Any:
    """Return what submitit requeues."""
    import submitit

    return submitit.helpers.DelayedSubmission(work)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, which ``scancel`` sends, and when the parent ends."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _squeue() -> dict[str, str]:
    """Return the states of this user's jobs by ``squeue``, which needs no accounting database.

    Raises:
        ClusterError: Slurm is not installed on this machine, or does not answer.
    """
    if shutil.which("squeue") is None or shutil.which("sbatch") is None:
        raise ClusterError(
            "there is no Slurm here: sbatch is not found; start svag on a login node, or write "
            "executor: local into the cluster file to try it on this machine"
        )
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"Slurm did not answer within {_PATIENCE} s (squeue)") from error
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"Slurm does not answer: {reason}")
    pairs = (line.split() for line in answer.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _accounted(job_id: str) -> str:
    """Return the state of a job that ``squeue`` no longer lists, from Slurm's accounting."""
    command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State"]
    try:
        answer = subprocess.run(
            [*command, f"--jobs={job_id}"], capture_output=True, text=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired):
        return "a state that Slurm no longer knows"
    return " ".join(answer.stdout.split()) or "a state that Slurm no longer knows"


def _local_end(handle: Any) -> str | None:
    """Return how a process of this machine has ended; None while it is running."""
    state = str(handle.state)
    if state == "RUNNING" or (state != "FINISHED" and runs(int(handle.job_id))):
        return None
    if handle.paths.result_pickle.exists():
        return "FINISHED"
    return None if _has_processes(handle.job_id) else "FAILED"


def _has_processes(job_id: str) -> bool:
    """Whether worker processes of a job still run after its first process has ended."""
    mark = f"SUBMITIT_LOCAL_JOB_ID={job_id}\0".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has ended, or is another user's
            if mark in environment.read_bytes():
                return True
    return False


def runs(pid: int) -> bool:
    """Whether a process of this machine is running that svag or submitit started."""
    with suppress(OSError):  # reaps a child of this process that has ended
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
        called = Path(f"/proc/{pid}/cmdline").read_bytes()
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
    return b"svag" in called or b"submitit" in called
