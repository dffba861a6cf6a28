"""One launcher a folder: a lock for this machine, a file with a heartbeat for all others.

The lock (``flock``) ends with its process, but on some shared folders it is not seen by other
machines. ``records/.claim`` is: it names host and process, and its holder touches it every few
seconds. Ages are differences of times that the file server gave, so that clocks need not agree.
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
"""Seconds between two heartbeats; without one for so long, a claim of another machine is void."""


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Make a folder ready to record in, and keep other processes from recording in it meanwhile.

    The claim ends with the process, however that ends; on a shared folder a minute later, as seen
    from other machines. A process that was suspended for so long and has lost its claim is
    interrupted when it goes on.

    Raises:
        RecordError: nothing can be written there, or another process has claimed it.
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
    """Hold the lock and own the file; yield its token."""
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
    """Say who is recording in a folder; None if nobody is, as far as this machine can see."""
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
    """Take the lock; where the folder has none to give, the file with the heartbeat decides."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordError(_taken(folder, "another process")) from error
    except OSError:
        return


def _take(folder: Path) -> str:
    """Put our own claim into the folder; return its token."""
    token = uuid.uuid4().hex
    path, host = folder / ".claim", socket.gethostname()
    content = json.dumps({"host": host, "pid": os.getpid(), "token": token})
    scratch = folder / f".claim.{token}"
    scratch.write_text(content)
    try:
        try:
            path.hardlink_to(scratch)  # which fails if it is there, on NFS as well
        except FileExistsError:
            _succeed(folder, scratch)
        except OSError:  # a folder without links
            with path.open("x") as file:
                file.write(content)
    finally:
        scratch.unlink(missing_ok=True)
    return token


def _succeed(folder: Path, scratch: Path) -> None:
    """Take the place of a claim whose holder is gone; only one can, since the right is a file."""
    held = _read(folder / ".claim")
    here = held.get("host") == socket.gethostname()  # then the lock that we have says it is gone
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
    """Touch the claim until told to stop; interrupt the main thread if another has taken it."""
    while not stop.wait(BEAT):
        held = _read(folder / ".claim")
        if held and held.get("token") != token:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return
        with suppress(OSError):  # a file server that is away for a while
            os.utime(folder / ".claim")


def _age(folder: Path) -> float | None:
    """Seconds since the last heartbeat by the clock of the file server; None without a claim."""
    probe = folder / f".claim.now.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / ".claim").stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError:  # a folder that cannot be written: the clocks have to agree
        with suppress(OSError):
            return time.time() - (folder / ".claim").stat().st_mtime
        return None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _name(held: dict[str, Any]) -> str:
    return f"process {held.get('pid')} on {held.get('host')}"


def _taken(folder: Path, who: str, more: str = "") -> str:
    return (
        f"{who} is recording in {folder}; wait for it, or choose another folder with --out "
        f"(records of both can be copied together afterwards){more}"
    )
