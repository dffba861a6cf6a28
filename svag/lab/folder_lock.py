"""Lets one process at a time record in a folder: a lock on this machine, a heartbeat for others.

The lock (``flock``) ends with its process, but on some shared folders other machines do not see it.
They see the file ``records/.claim``, which names host and process; the process that holds the claim
touches it every few seconds. Its age is the difference of two times of the file server, so that
the machines' clocks need not agree.
"""

import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from svag.errors import RecordError

BEAT, STALE = 10.0, 60.0
"""Seconds between two heartbeats, and seconds after which a claim without heartbeat is void."""


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Claim a folder, so that no other process records in it meanwhile; create it if necessary.

    The claim ends with the process, even if that is killed; for other machines that share the
    folder it ends a minute after the last heartbeat. A process that was suspended and has lost its
    claim gets SIGINT when it resumes.

    Raises:
        RecordError: the folder cannot be written, or another process has claimed it.
    """
    folder = directory / "records"
    with _acquired(folder) as token:
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(folder, token, stop), daemon=True)
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            if _read(folder / ".claim").get("token") == token:
                with suppress(OSError):
                    (folder / ".claim").unlink(missing_ok=True)


@contextmanager
def _acquired(folder: Path) -> Iterator[str]:
    """Hold the lock and write the claim; yield the claim's token."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / ".lock").open("a"))
            _lock(lock, folder)
            token = _take(folder)
        except RecordError:
            raise
        except OSError as error:
            raise RecordError(
                f"cannot write to {folder}: {error.strerror}; choose another folder with --out"
            ) from error
        yield token


def holder(directory: Path) -> str | None:
    """Return the name of the process that has claimed a folder; None if there is no valid claim."""
    folder = directory / "records"
    held = _read(folder / ".claim")
    if not held:
        return None
    if held.get("host") == socket.gethostname():
        try:
            with (folder / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError:
            return _name(held)
    age = _age(folder)
    return _name(held) if age is not None and age < STALE else None


def _lock(lock: IO[str], folder: Path) -> None:
    """Take the lock; on file systems without locks the claim file alone decides."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordError(_taken(folder, "another process")) from error
    except OSError:
        return


def _take(folder: Path) -> str:
    """Write this process's claim into the folder; return its token."""
    token = uuid.uuid4().hex
    path, host = folder / ".claim", socket.gethostname()
    content = json.dumps({"host": host, "pid": os.getpid(), "token": token})
    scratch = folder / f".claim.{token}"
    scratch.write_text(content)
    try:
        try:
            path.hardlink_to(scratch)  # fails if the file exists, on NFS as well
        except FileExistsError:
            _succeed(folder, scratch)
        except OSError:  # a file system without hard links
            with path.open("x") as file:
                file.write(content)
    finally:
        scratch.unlink(missing_ok=True)
    return token


def _succeed(folder: Path, scratch: Path) -> None:
    """Replace a claim that is void; a file ensures that only one process does so."""
    held = _read(folder / ".claim")
    here = held.get("host") == socket.gethostname()  # it is void, since this process has the lock
    age = _age(folder)
    if held and not here and age is not None and age < STALE:
        name = f"{_name(held)}, seen {age:.0f} s ago,"
        raise RecordError(_taken(folder, name, f"; if it is dead, try again in {STALE:.0f} s"))
    right = folder / f".claim.after.{held.get('token', 'none')}"
    try:
        right.touch(exist_ok=False)
    except FileExistsError as error:
        raise RecordError(
            f"another process is just taking over {folder}; if that is not so, remove {right}"
        ) from error
    try:
        scratch.replace(folder / ".claim")
    finally:
        right.unlink(missing_ok=True)


def _beat(folder: Path, token: str, stop: threading.Event) -> None:
    """Touch the claim until ``stop`` is set; interrupt the main thread if the claim is lost."""
    while not stop.wait(BEAT):
        held = _read(folder / ".claim")
        if held and held.get("token") != token:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
        with suppress(OSError):  # the file server may be unreachable for a while
            os.utime(folder / ".claim")


def _age(folder: Path) -> float | None:
    """Seconds since the last heartbeat by the clock of the file server; None without a claim."""
    probe = folder / f".claim.now.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / ".claim").stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError:  # the folder cannot be written: use this machine's clock
        with suppress(OSError):
            return time.time() - (folder / ".claim").stat().st_mtime
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(held: dict[str, Any]) -> str:
    return f"process {held.get('pid')} on {held.get('host')}"


def _taken(folder: Path, who: str, more: str = "") -> str:
    return (
        f"{who} is recording in {folder}; wait for it, or choose another folder with --out "
        f"(records of both can be copied together afterwards){more}"
    )
