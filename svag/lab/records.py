"""Records of runs: append-only JSONL, one file for each run, named by a hash of its settings.

Every line is a flat JSON object with a ``"kind"``: first ``run``, then ``eval`` (and
``agreement``, for within-batch methods), last ``end``. A file can hold several attempts; the last
``run`` line starts the one that counts. A file without ``end``, or with a torn last line, is of a
run that was interrupted. An attempt that goes on from a checkpoint repeats the lines before it.
Evaluations during a run may use some examples of each split; the ``end`` line has the figures on
all. The folders of two machines can be merged by copying: files of the same name hold the same run,
with differences by rounding at most, since the number of threads changes the order of sums.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from svag.errors import RecordError
from svag.lab.record_format import (
    FINISHED,
    REMEDY,
    Status,
    WrongLine,
    check_agreement,
    check_end,
    check_eval,
    check_run,
    ends_a_line,
    lines_of,
    parse,
)
from svag.lab.run import Run, run_id

_OF_THE_ATTEMPT = ("wall_time", "resumed", "checkpoints", "captured")


@dataclass(frozen=True)
class Record:
    """A run as read from its file: the lines of its last attempt, by kind."""

    run: Mapping[str, Any]
    evals: list[Mapping[str, Any]] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    agreements: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """How the run ended; interrupted if there is no ``end`` line."""
        return self.end["status"] if self.end else "interrupted"

    @property
    def finished(self) -> bool:
        """Whether the run is done or has diverged, so that it is not run again."""
        return self.status in FINISHED

    @property
    def findings(self) -> list[dict[str, Any]]:
        """All lines without times and the like, which are the same for two records of a run."""
        lines = (*self.evals, *self.agreements, self.end or {})
        return [{k: v for k, v in line.items() if k not in _OF_THE_ATTEMPT} for line in lines]

    @property
    def merit(self) -> float:
        """Final value by which step sizes are chosen, with the sign such that larger is better.

        -inf for a run that is not done.
        """
        if self.end is None or self.status != "done":
            return -math.inf
        return self._turned(float(self.end[self._chosen_by]))

    @property
    def merit_at_start(self) -> float:
        """Merit before the first step, on the examples that are evaluated during a run.

        -inf if it was not evaluated.
        """
        return self._evaluated(self.evals[0], 0) if self.evals else -math.inf

    @property
    def gain(self) -> float:
        """Increase of the merit from the first evaluation to the last, on the same examples.

        -inf for a run that is not done; inf if the first merit is not known.
        """
        if self.status != "done" or not self.evals:
            return -math.inf
        start = self.merit_at_start
        end = self._evaluated(self.evals[-1], self.run["steps"])
        return end - start if math.isfinite(start) else math.inf

    def _evaluated(self, line: Mapping[str, Any], step: int) -> float:
        """Return the merit of an evaluation; -inf if it is not the one after ``step`` steps."""
        value = line.get(self._chosen_by) if line.get("step") == step else None
        return -math.inf if value is None else self._turned(float(value))

    @property
    def _chosen_by(self) -> str:
        return f"{self.run['select']}_{self.run['metric']}"

    def _turned(self, value: float) -> float:
        return value if self.run["metric_better"] == "larger" else -value


class RecordWriter:
    """Writes the lines of one attempt at a run, each as soon as it is known.

    Args:
        directory: its subfolder ``records`` receives the file.
        run: the run.
        noted: further fields of the ``run`` line, which are not part of the run's id.

    Raises:
        RecordError: the folder or the file cannot be written.
    """

    def __init__(self, directory: Path, run: Run, **noted: str | float | None) -> None:
        path = path_of(directory, run)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = path.exists() and not ends_a_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise RecordError(
                f"cannot write {path}: {error.strerror}; choose another folder with --out"
            ) from error
        self._path = path
        self._lines: list[dict[str, Any]] = []
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._write("run", {**asdict(run), **environment(), "started": started, **noted}, torn)
        except RecordError:
            self._file.close()
            raise

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines written after the ``run`` line."""
        return list(self._lines)

    def repeat(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines of an earlier attempt that this one continues."""
        for line in lines:
            self._write(line["kind"], {name: line[name] for name in line if name != "kind"})

    def eval(self, step: int, **figures: float) -> None:
        """Write the figures after ``step`` steps."""
        self._write("eval", {"step": step, **figures})

    def agreement(self, step: int, correlations: Mapping[str, float]) -> None:
        """Write the correlations of two estimates of gamma after ``step`` steps, by parameter."""
        for name, correlation in correlations.items():
            fields = {"step": step, "parameter": name, "correlation": correlation}
            self._write("agreement", fields)

    def end(self, status: Status, **figures: float | str) -> None:
        """Write how the run ended, and its final figures."""
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

    def _write(self, kind: str, fields: Mapping[str, Any], torn: bool = False) -> None:
        """Write a line; if the last one is ``torn``, begin with a line feed."""
        line = {"kind": kind} | {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        text = (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n"
        try:
            written = self._file.write(text)
        except OSError as error:
            raise RecordError(f"cannot write {self._path}: {error.strerror}") from error
        if written != len(text):
            raise RecordError(f"cannot write {self._path}: it took {written} of {len(text)} bytes")
        if kind != "run":
            self._lines.append(line)


def path_of(directory: Path, run: Run) -> Path:
    """Return the path of a run's record."""
    return directory / "records" / f"{run.id}.jsonl"


def find(directory: Path, run: Run) -> Record | None:
    """Return a run's record if there is one."""
    path = path_of(directory, run)
    try:
        there = path.exists()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    return read(path) if there else None


def load(directory: Path) -> list[Record]:
    """Read every record of a folder, in the order of their names.

    Raises:
        RecordError: there are no records, or a file is not a record.
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
    """Read the last attempt in a file; None if there is no complete line.

    Raises:
        RecordError: the file cannot be read, is named after another run, or a line inside an
            attempt violates the format; the message names file, line and field.
    """
    record: Record | None = None
    torn: int | None = None
    name = path.stem
    for number, text in enumerate(lines_of(path), 1):
        try:
            line = parse(text)
            if line is None:
                torn = torn or number  # the attempt ends here; only a run line may follow
                continue
            if torn is not None and line.get("kind") != "run":
                raise WrongLine(f"follows line {torn}, which is torn")
            record, torn = _taken(record, line, name), None
        except WrongLine as wrong:
            raise RecordError(f"{path}, line {number}: {wrong}; {REMEDY}") from None
    return record


def of_lines(run: Run, lines: Iterable[Mapping[str, Any]]) -> Record:
    """Return the record of a run with these lines after its ``run`` line.

    Raises:
        RecordError: a line violates the format.
    """
    record = Record(run=asdict(run))
    try:
        for line in lines:
            record = _taken(record, dict(line), run.id)
    except WrongLine as wrong:
        raise RecordError(f"a line of run {run.id}: {wrong}") from None
    return record


def _taken(record: Record | None, line: dict[str, Any], name: str) -> Record:
    """Return the record with the next line of its file added; ``name`` is the file's stem."""
    kind = line.get("kind")
    if kind == "run":
        check_run(line)
        begun = Record(run=line)
        if (found := identity(begun)) != name:
            raise WrongLine(f"it is of run {found}, whose file is {found}.jsonl")
        return begun
    if kind not in ("eval", "agreement", "end"):
        shown = "is missing" if kind is None else f"is {str(kind)[:40]!r}"
        raise WrongLine(f"kind {shown}; it is run, eval, agreement or end")
    if record is None:
        raise WrongLine(f"kind={kind!r} stands before any line of kind 'run'")
    if record.end is not None:
        raise WrongLine(f"kind={kind!r} follows a line of kind 'end'")
    after = record.evals[-1]["step"] if record.evals else -1
    if kind == "eval":
        check_eval(line, record.run, after)
        record.evals.append(line)
    elif kind == "agreement":
        check_agreement(line, after)
        record.agreements.append(line)
    else:
        check_end(line, record.run, record.evals[-1] if record.evals else None)
        record = replace(record, end=line)
    return record


def identity(record: Record) -> str:
    """Return the id of a record's run."""
    return run_id(record.run)


def finder(records: Iterable[Record]) -> Callable[[Run], Record | None]:
    """Return a function that finds a run's record among some; it returns None if there is none."""
    known = {identity(record): record for record in records}
    return lambda run: known.get(run.id)


@cache
def environment() -> Mapping[str, Any]:
    """Versions, commit and machine: recorded with every run, but not part of its id."""
    noted = {name: metadata.version(name) for name in ("svag", "torch", "numpy")}
    return {
        **noted,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of svag's source tree; None if it does not run from one."""
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
