"""A run in the form that is sent to trackers: hyperparameters, curves, final figures, status."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from svag.lab.record_format import Status
from svag.lab.records import Record, identity
from svag.lab.roles import Part
from svag.lab.run import STUDY

Value: TypeAlias = str | int | float | bool

_HYPERPARAMETERS = ("method", "lr", "seed", "beta", "beta2", *STUDY)
_UNSHOWN = ("version", "data", "metric")
_NOTED = ("version", "data", "svag", "torch", "numpy", "python", "machine", "commit", "threads")
_SPLITS = ("train", "test", "validation")


@dataclass(frozen=True)
class Point:
    """Finite figures of an evaluation after some steps, by names such as ``test/accuracy``.

    Attributes:
        step: steps taken.
        seconds: since the run began; 0 if not recorded.
        figures: their values.
    """

    step: int
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """A run in the form that is sent to trackers.

    Attributes:
        id: the run's id in svag; a tracker holds one run with this id.
        name: method, step size and seed, for display.
        problem: the problem's name.
        hyperparameters: method, lr, seed, and what else is set.
        noted: versions, machine, and the run's role in a study.
        points: its evaluations.
        final: figures of all examples at the end, with names such as ``final/test/accuracy``.
        status: how it ended.
        message: what an error said; empty without one.
        started: start in seconds since 1970; 0 if not recorded.
        seconds: wall time.
        digest: hash of all the other attributes.
    """

    id: str
    name: str
    problem: str
    hyperparameters: Mapping[str, Value]
    noted: Mapping[str, str]
    points: list[Point]
    final: Mapping[str, float]
    status: Status
    message: str
    started: float
    seconds: float
    digest: str

    @property
    def finished(self) -> bool:
        """Whether the run is done or has diverged, so that it is not run again."""
        return self.status in ("done", "diverged")


def tracked(record: Record, part: Part | None = None) -> Tracked:
    """Convert a record, with its role in a study, to the form that is sent to trackers."""
    run, end = record.run, record.end or {}
    points = [_point(line) for line in record.evals]
    final = _point(end)
    named = {name: run[name] for name in _HYPERPARAMETERS if name not in _UNSHOWN}
    noted = {name: str(run[name]) for name in _NOTED if run.get(name) is not None}
    if part is not None:
        noted |= {"study": part.study, "role": part.role}
    return Tracked(
        id=identity(record),
        name=f"{run['method']} lr={run['lr']:g} seed={run['seed']}",
        problem=run["problem"],
        hyperparameters={name: value for name, value in named.items() if value is not None},
        noted=noted,
        points=points,
        final={f"final/{name}": value for name, value in final.figures.items()},
        status=record.status,
        message=str(end.get("message") or ""),
        started=_seconds(run.get("started")),
        seconds=final.seconds or max((point.seconds for point in points), default=0.0),
        digest=_digest([run, record.evals, record.end, noted]),
    )


def _point(line: Mapping[str, Any]) -> Point:
    figures = {}
    for name, value in line.items():
        split, _, figure = name.partition("_")
        if split in _SPLITS and figure and value is not None:
            figures[f"{split}/{figure}"] = float(value)
    return Point(int(line.get("step") or 0), float(line.get("wall_time") or 0.0), figures)


def _seconds(started: object) -> float:
    """Convert a time of a record, in ISO 8601, to seconds since 1970."""
    return datetime.fromisoformat(started).timestamp() if isinstance(started, str) else 0.0


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
