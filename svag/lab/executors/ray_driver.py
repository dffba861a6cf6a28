"""A detached driver on Ray: an actor that runs the command and keeps the records on its node.

``svag status``, or the same command again, copies new records from the node. When all have been
copied and the command has ended, the actor is removed.
"""

import hashlib
import json
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple, Self

from svag.errors import RecordError
from svag.lab.executors.cluster import ClusterError, RayCluster
from svag.lab.executors.driver_process import END, LOG, drive, exit_code
from svag.lab.executors.ray_cluster import NAMESPACE, connect

_WAIT = 60.0
_SENT = ("records/*.jsonl", "studies/*.json", "checkpoints/*.pt")
_FETCHED = ("records/*.jsonl", LOG, END)


class News(NamedTuple):
    """An actor's answer: changed files, stamps of all files, and the exit code if it has ended."""

    files: dict[str, bytes]
    known: dict[str, tuple[int, int]]
    code: int | None


class RayDriver:
    """A connection to the actor that carries out the study of a folder; a context manager.

    Args:
        cluster: the Ray cluster.
        directory: folder of the records on this machine.
        folder: folder of code to copy to the cluster.

    Raises:
        ClusterError: ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, cluster: RayCluster, directory: Path, folder: Path | None = None) -> None:
        self._directory, self._cluster = directory, cluster
        key = f"{socket.gethostname()}:{directory.absolute()}"
        self.name = f"svag-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        self._known: dict[str, tuple[int, int]] = {}
        self._ray = connect(cluster, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def start(self, command: Sequence[str]) -> None:
        """Start the actor with the folder's files; it goes on after this process has ended.

        Raises:
            ClusterError: the actor does not start.
        """
        with suppress(ValueError):  # removes the actor of an earlier study, if there is one
            self._ray.kill(self._ray.get_actor(self.name, namespace=NAMESPACE))
        made = self._ray.remote(_DriverActor).options(
            name=self.name, lifetime="detached", num_cpus=0, max_restarts=0
        )
        try:
            actor = made.remote(_contents(self._directory, {}, _SENT)[0])
            cluster = {**asdict(self._cluster), "working_dir": None}
            self._ray.get(actor.start.remote(list(command), cluster), timeout=_WAIT)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise ClusterError(f"the driver did not start ({reason})") from error

    def fetch(self) -> tuple[bool, int | None]:
        """Copy new files; return whether the driver is running, and its exit code.

        Raises:
            RecordError: a file cannot be written on this machine.
            ClusterError: the driver does not answer.
        """
        try:
            actor = self._ray.get_actor(self.name, namespace=NAMESPACE)
            news: News = self._ray.get(actor.news.remote(self._known), timeout=_WAIT)
        except ValueError:  # no such actor: it may have ended, with all files copied
            return False, exit_code(self._directory)
        except self._ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"the driver did not answer within {_WAIT:g} s") from error
        except self._ray.exceptions.RayError:
            return False, None
        _write(self._directory, news.files)
        self._known = news.known
        if news.code is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(actor.remove.remote(), timeout=_WAIT)
            self._ray.kill(actor)
        return news.code is None, news.code


class _DriverActor:
    """The actor, on a node of the cluster: runs the command in its own folder."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="svag-driver-"))
        _write(self._directory, files)

    def start(self, command: Sequence[str], cluster: Mapping[str, Any]) -> None:
        """Run the command in a thread."""
        import ray

        given = {name: value for name, value in cluster.items() if value is not None}
        given |= {"kind": "ray", "address": ray.get_runtime_context().gcs_address}
        file = self._directory / "cluster.yml"
        file.write_text(json.dumps(given))  # which is YAML too
        more = ["--out", str(self._directory), "--cluster", str(file)]
        arguments = (self._directory, [*command, *more], ".")
        threading.Thread(target=drive, args=arguments, daemon=True).start()

    def news(self, known: Mapping[str, tuple[int, int]]) -> News:
        """Return the files whose stamps differ from the known ones."""
        code = exit_code(self._directory)  # read first, since it is written after all other files
        files, now = _contents(self._directory, known)
        return News(files, now, code)

    def remove(self) -> None:
        """Remove the folder, after all files were copied."""
        rmtree(self._directory, ignore_errors=True)


def _contents(
    directory: Path, known: Mapping[str, tuple[int, int]], patterns: Sequence[str] = _FETCHED
) -> tuple[dict[str, bytes], dict[str, tuple[int, int]]]:
    """Read the files whose stamps differ from the known ones; return them and all stamps."""
    files: dict[str, bytes] = {}
    now: dict[str, tuple[int, int]] = {}
    for path in sorted(path for pattern in patterns for path in directory.glob(pattern)):
        with suppress(FileNotFoundError):
            found = path.stat()
            name = path.relative_to(directory).as_posix()
            now[name] = (found.st_size, found.st_mtime_ns)
            if known.get(name) != now[name]:
                files[name] = path.read_bytes()
    return files, now


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder; each is renamed into place, so that none is partial."""
    try:
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"{path.name}.part")
            scratch.write_bytes(content)
            scratch.replace(path)
    except OSError as error:
        raise RecordError(f"cannot write to {directory}: {error.strerror}") from error
