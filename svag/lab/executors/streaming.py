"""Streams a record from the node that writes it to the machine that keeps it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from svag.errors import RecordError
from svag.lab.checkpoints import Checkpoints
from svag.lab.record_format import ends_a_line
from svag.lab.records import path_of
from svag.lab.run import Run


class Tail:
    """Reads new whole lines of a run's record, and its new checkpoints.

    Args:
        directory: folder of records and checkpoints.
        run: the run.
        start: bytes at the start of the record to skip.
    """

    def __init__(self, directory: Path, run: Run, start: int = 0) -> None:
        self._path = path_of(directory, run)
        self._kept = Checkpoints(directory, run, None).path
        self._at, self._seen = start, self._stamp()

    def lines(self) -> bytes:
        """Return the whole lines that were written since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return b""
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole

    def checkpointed(self) -> bool:
        """Whether there is a checkpoint that has not been read yet."""
        return self._stamp() not in (None, self._seen)

    def checkpoint(self) -> bytes | None:
        """Return the checkpoint if it has not been read yet, else None."""
        stamp = self._stamp()
        if stamp in (None, self._seen):
            return None
        try:
            content = self._kept.read_bytes()
        except FileNotFoundError:  # the run has ended
            return None
        self._seen = stamp
        return content

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._kept.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns


class Transcript:
    """Writes the record of one attempt from the lines that a worker elsewhere sends.

    Args:
        directory: its subfolder ``records`` receives the record.
        run: the run.

    Attributes:
        run: the run.
        ended: whether the attempt has ended with a status other than ``interrupted``.
    """

    def __init__(self, directory: Path, run: Run) -> None:
        self.run, self.ended = run, False
        self._directory, self._path = directory, path_of(directory, run)
        self._begun = False

    def append(self, lines: bytes) -> Iterator[int]:
        """Write whole lines; yield the steps of the evaluations among them.

        Raises:
            RecordError: they cannot be written.
        """
        if not lines:
            return
        self._write(lines)
        for step, ended in progress_in(lines):
            self.ended = ended
            if step is not None:
                yield step

    def keep_checkpoint(self, content: bytes) -> None:
        """Write a checkpoint; an OSError is ignored, so that the run goes on without it."""
        path = Checkpoints(self._directory, self.run, None).path
        scratch = path.with_suffix(".part")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(content)
            scratch.replace(path)

    def interrupt(self) -> None:
        """Record that the attempt was interrupted, if it has begun."""
        if self._begun and not self.ended:
            self._write(b'{"kind": "end", "status": "interrupted"}\n')

    def _write(self, lines: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torn = not self._begun and self._path.exists() and not ends_a_line(self._path)
            with self._path.open("ab", buffering=0) as file:
                text = (b"\n" if torn else b"") + lines
                if file.write(text) != len(text):
                    raise RecordError(f"cannot write {self._path}: only a part was written")
        except OSError as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"cannot write {self._path}: {error.strerror}") from error
        self._begun = True


def progress_in(lines: bytes) -> Iterator[tuple[int | None, bool]]:
    """Yield for each line its step (None unless it is an evaluation) and whether the run ended."""
    for text in lines.splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a torn line of an earlier attempt
            continue
        ended = line.get("kind") == "end" and line.get("status") != "interrupted"
        yield (line["step"] if line.get("kind") == "eval" else None), ended
