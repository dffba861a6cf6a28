"""What a run leaves behind: append-only JSONL, one file a run, named by what determines the run.

Every line is a flat JSON object with a ``"kind"``: first ``run``, then ``eval`` (and
``agreement``, for methods that take their variance from the mini-batch), last ``end``. A
file can hold several attempts; the last ``run`` line starts the one that counts. A file without
``end`` is of a run that was interrupted, and so is one whose last line is torn. Folders of two
machines merge by copying: equal names hold runs that differ by rounding at most (the number of
threads changes the order of sums).
"""

import fcntl
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from svag.errors import RecordError

Status = Literal["done", "diverged", "interrupted", "error"]
Select = Literal["test", "validation"]

FINISHED: tuple[Status, ...] = ("done", "diverged")
"""Statuses of runs that are not run again."""

SEARCH_SEED = 0
"""Seed of the runs that search for a step size; replications have 1, 2, ..."""

STUDY = ("problem", "version", "data", "steps", "batch_size", "eval_every", "select")
"""Fields of a run that are alike throughout a study."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines a run, as far as svag does; versions of libraries are noted only.

    Attributes:
        problem: its name.
        version: its version, for a user's own problem a hash of its source.
        data: fingerprint of the data.
        method: key of the method.
        anatomy: the method's update in symbols.
        beta: decay of its averages; None where it has none.
        beta2: decay of its second moment, where that has its own.
        lr: step size.
        seed: of initialisation and of the order of examples.
        steps: length of the run, which schedules depend on too.
        batch_size: examples a step.
        eval_every: steps between two evaluations.
        select: whether a tenth of the training data is held out to choose step sizes by.
    """

    problem: str
    version: str
    data: str
    method: str
    anatomy: str
    beta: float | None
    beta2: float | None
    lr: float
    seed: int
    steps: int
    batch_size: int
    eval_every: int
    select: Select = "test"

    @property
    def id(self) -> str:
        """Name of the run: a hash of its fields."""
        canonical = json.dumps({**asdict(self), "lr": float(self.lr)}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """One run as read back: its ``run`` line, its evaluations, and how it ended."""

    run: Mapping[str, Any]
    evals: list[Mapping[str, Any]] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    agreements: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """How the run ended; interrupted if it does not say."""
        return self.end["status"] if self.end else "interrupted"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.status in FINISHED

    @property
    def merit(self) -> float:
        """Final accuracy that step sizes are chosen by; -inf for a run that did not get there."""
        if self.end is None or self.status != "done":
            return -math.inf
        return float(self.end[self._accuracy])

    @property
    def merit_at_start(self) -> float:
        """The same accuracy before the first step; 0 if it was not evaluated."""
        value = self.evals[0].get(self._accuracy) if self.evals else None
        return 0.0 if value is None else float(value)

    @property
    def has_learnt(self) -> bool:
        """Whether the run took off: a tenth, or more, of what was wrong at its start is right."""
        return self.merit - self.merit_at_start > 0.1 * (1 - self.merit_at_start)

    @property
    def _accuracy(self) -> str:
        return f"{self.run['select']}_accuracy"


class Recorder:
    """Writes the lines of one attempt at a run, each as soon as it is known.

    Args:
        directory: its folder ``records`` receives the file.
        run: what is being run.
        noted: more for the ``run`` line, part of no run's identity.

    Raises:
        RecordError: the folder or the file cannot be written.
    """

    def __init__(self, directory: Path, run: Run, **noted: str | int | None) -> None:
        path = path_of(directory, run)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and not path.read_bytes().endswith(b"\n")
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise RecordError(
                f"cannot write {path}: {error.strerror}; choose another folder with --out"
            ) from error
        self._path = path
        if torn:
            self._file.write(b"\n")
        self._write("run", {**asdict(run), **environment(), **noted})

    def eval(self, step: int, **figures: float) -> None:
        """Note the figures after ``step`` steps."""
        self._write("eval", {"step": step, **figures})

    def agreement(self, step: int, correlations: Mapping[str, float]) -> None:
        """Note how alike two estimates of gamma are after ``step`` steps, by parameter."""
        for name, correlation in correlations.items():
            fields = {"step": step, "parameter": name, "correlation": correlation}
            self._write("agreement", fields)

    def end(self, status: Status, **figures: float | str) -> None:
        """Note how the run ended, and its final figures."""
        self._write("end", {"status": status, **figures})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        line = {"kind": kind} | {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        text = f"{json.dumps(line)}\n".encode()
        try:
            written = self._file.write(text)
        except OSError as error:
            raise RecordError(f"cannot write {self._path}: {error.strerror}") from error
        if written != len(text):
            raise RecordError(f"cannot write {self._path}: it took {written} of {len(text)} bytes")


@contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Make a folder ready to record in, and keep other processes from recording in it meanwhile.

    The claim ends with the process, however that ends.

    Raises:
        RecordError: nothing can be written there, or another process has claimed it.
    """
    folder = directory / "records"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise RecordError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(
                f"another process is recording in {folder}; wait for it, or choose another folder "
                "with --out (records of both can be copied together afterwards)"
            ) from error
        yield


def path_of(directory: Path, run: Run) -> Path:
    """Where a run is recorded."""
    return directory / "records" / f"{run.id}.jsonl"


def find(directory: Path, run: Run) -> Record | None:
    """Return a run's record if there is one."""
    path = path_of(directory, run)
    return read(path) if path.exists() else None


def load(directory: Path) -> list[Record]:
    """Read every record of a folder, in the order of their names.

    Raises:
        RecordError: there are none, or a file is not a record.
    """
    paths = sorted((directory / "records").glob("*.jsonl"))
    records = [record for path in paths if (record := read(path)) is not None]
    if not records:
        raise RecordError(
            f"no records in {directory / 'records'}; make some with "
            f"`svag compare PROBLEM --out {directory}`"
        )
    return records


def read(path: Path) -> Record | None:
    """Read the last attempt of a file; None if not even its first line is whole.

    Raises:
        RecordError: a line inside an attempt is not JSON, or not of this format.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    record: Record | None = None
    torn: int | None = None
    for number, text in enumerate(lines, 1):
        line = _parse(text)
        kind = line.get("kind") if line else None
        if kind == "run" and line and line.keys() >= _REQUIRED:
            record, torn = Record(run=line), None
        elif line and kind in ("eval", "agreement", "end") and record and torn is None:
            if kind == "eval":
                record.evals.append(line)
            elif kind == "agreement":
                record.agreements.append(line)
            else:
                record = replace(record, end=line)
        elif line is None:
            torn = torn or number  # an attempt ends here: another may begin, and be torn as well
        else:
            raise RecordError(
                f"{path}, line {torn or number}, is no line of a record; move the file away to "
                "have its run repeated"
            )
    return record


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


_REQUIRED = {field.name for field in fields(Run)}


@cache
def environment() -> Mapping[str, Any]:
    """Versions, commit and machine: noted with every run, part of no run's identity."""
    noted = {name: metadata.version(name) for name in ("svag", "torch", "numpy")}
    return {
        **noted,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of the source tree that svag runs from, if it runs from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
