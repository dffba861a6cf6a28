"""Checks the lines of a record, so that one changed by hand or by a bug is refused."""

import codecs
import json
import math
import os
import stat
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from svag.errors import InvalidOption, RecordError
from svag.quantity import LOSS, Quantity

Status = Literal["done", "diverged", "interrupted", "error"]
Select = Literal["test", "validation"]
Better = Literal["larger", "smaller"]

FINISHED: Final[tuple[Status, ...]] = ("done", "diverged")
"""Statuses with which a run is finished and not run again."""

REMEDY = "move it away to have its run repeated"

_LARGEST = 2**53
_MOST = 1e308
_SLACK = 1e-6
_SPLITS = ("train_", "test_", "validation_")
_TEXTS = ("problem", "version", "data", "method", "anatomy", "optimizer", "device")
_OPTIONAL_TEXTS = ("autocast", "source", "svag", "torch", "numpy", "python", "machine", "commit")
_COUNTS = {"steps": 1, "batch_size": 1, "eval_every": 1, "seed": 0}


class WrongLine(Exception):
    """A line violates the format; the message says which field, its value, and what is allowed."""


class Expected(NamedTuple):
    """The figures that a run's evaluations must have, and which are metrics, with their bounds."""

    required: frozenset[str]
    bounded: tuple[str, ...]
    low: float
    high: float


def lines_of(path: Path) -> list[str]:
    """Return a file's lines; in a line that is not UTF-8, bad bytes become NUL, so that it is torn.

    Raises:
        RecordError: the file cannot be read, or begins with a byte order mark.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may never end
            raise RecordError(f"cannot read {path}: it is no regular file; {REMEDY}")
        content = path.read_bytes()
    except OSError as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    if content.startswith(codecs.BOM_UTF8):
        raise RecordError(f"{path}, line 1: begins with a byte order mark; {REMEDY}")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode(errors="replace").replace("\ufffd", "\0")
    return text.removesuffix("\n").split("\n")


def ends_a_line(path: Path) -> bool:
    """Whether a file is empty or ends with a line feed."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def parse(text: str) -> dict[str, Any] | None:
    """Parse a line; None if it is torn: an incomplete line, which is never valid JSON.

    Raises:
        WrongLine: it is JSON, but of a form that no run writes.
    """
    try:
        line, end = _ANY.raw_decode(text)
        if end != len(text) or type(line) is not dict or text.count(":") != len(line):
            line = _EACH.decode(text)  # has blanks, or perhaps the same field twice
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError):  # Python's limits on digits and on nesting
        raise WrongLine("holds a number too long or a nesting too deep for a record") from None
    if not isinstance(line, dict):
        raise WrongLine(f"holds {_shown(line)}; a line is a JSON object")
    return line


def _refused(constant: str) -> None:
    raise WrongLine(f"holds {constant}, which is no JSON; what is not finite is null")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    line = dict(pairs)
    if len(line) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise WrongLine(f"the field {_shown(twice)} stands there twice")
    return line


_ANY = json.JSONDecoder(parse_constant=_refused)
_EACH = json.JSONDecoder(parse_constant=_refused, object_pairs_hook=_each_once)


def check_run(line: Mapping[str, Any]) -> None:
    """Check a line of kind ``run``.

    Raises:
        WrongLine: a field is missing or has a value outside its set.
    """
    for name in _TEXTS:
        _text(line, name)
    for name in ("method", "device"):
        if not line[name]:
            raise WrongLine(f"{name}=''; it is a text that is not empty")
    for name in (*_OPTIONAL_TEXTS, "started", "migrated"):
        if line.get(name) is not None or name == "autocast":
            _present(line, name)
            if line[name] is not None:
                _text(line, name)
    for name, least in _COUNTS.items():
        _integer(line, name, least)
    if isinstance(line.get("started"), str):
        _time(line, "started")
    if line.get("threads") is not None:
        _integer(line, "threads", 1)
    _present(line, "eval_examples", "channels_last")
    if line["eval_examples"] is not None:
        _integer(line, "eval_examples", 1)
    if type(line["channels_last"]) is not bool:
        raise WrongLine(f"channels_last={_shown(line['channels_last'])}; it is true or false")
    if not _number(line, "lr") > 0:
        raise WrongLine(f"lr={line['lr']!r}; it is a number above 0")
    if not _number(line, "weight_decay") >= 0:
        raise WrongLine(f"weight_decay={line['weight_decay']!r}; it is a number of at least 0")
    for name in ("beta", "beta2"):
        if _optional(line, name) is not None and not 0 <= line[name] < 1:
            raise WrongLine(f"{name}={line[name]!r}; it is a number in [0, 1), or null")
    _choice(line, "select", get_args(Select))
    _choice(line, "metric_better", get_args(Better))
    for name in ("metric", "metric_unit"):
        _text(line, name)
    for name in ("metric_low", "metric_high"):
        _optional(line, name)
    try:
        quantity_of(line)
    except InvalidOption as error:
        raise WrongLine(_short(str(error), 300)) from None
    if line["metric"] == LOSS.name and line["metric_better"] != "smaller":
        raise WrongLine("metric_better='larger'; of the loss, smaller is better")
    _flat(line)


def check_eval(line: Mapping[str, Any], run: Mapping[str, Any], after: int) -> None:
    """Check a line of kind ``eval``.

    Args:
        line: the line.
        run: the ``run`` line of the attempt.
        after: step of the evaluation before it; -1 if it is the first.

    Raises:
        WrongLine: a field is missing or has a value outside its set, or the step is not the one
            that is evaluated next.
    """
    if type(line.get("step")) is not int:
        _integer(line, "step", 0)
    every = run["eval_every"]
    due = 0 if after < 0 else min(after // every * every + every, run["steps"])
    if line["step"] != due or after == due:
        raise WrongLine(
            f"step={line['step']}; evaluations are of steps 0, {every}, {2 * every} and so on to "
            f"{run['steps']}, each once"
        )
    _figures(line, run, demanded=True)


def check_agreement(line: Mapping[str, Any], after: int) -> None:
    """Check a line of kind ``agreement`` that follows an evaluation of step ``after``."""
    _flat(line)
    _integer(line, "step", 0)
    if line["step"] != after:
        raise WrongLine(f"step={line['step']}; it follows an evaluation of the same step")
    _text(line, "parameter")
    correlation = _optional(line, "correlation")
    if correlation is not None and not abs(correlation) <= 1 + _SLACK:
        raise WrongLine(f"correlation={_shown(correlation)}; it is a number in [-1, 1], or null")


def check_end(
    line: Mapping[str, Any], run: Mapping[str, Any], last: Mapping[str, Any] | None
) -> None:
    """Check a line of kind ``end``.

    Args:
        line: the line.
        run: the ``run`` line of the attempt.
        last: its last ``eval`` line; None if there is none.

    Raises:
        WrongLine: a field is missing or has a value outside its set, or contradicts ``last``.
    """
    _choice(line, "status", get_args(Status))
    if line.get("wall_time") is not None and not _number(line, "wall_time") >= 0:
        raise WrongLine(f"wall_time={line['wall_time']!r}; it is a number of at least 0")
    for name in ("message", "checkpoints", "captured"):
        if line.get(name) is not None:
            _text(line, name)
    if line.get("resumed") is not None:
        _integer(line, "resumed", 0)
    if line.get("step") is not None:
        _integer(line, "step", 0)
        if line["step"] > run["steps"]:
            raise WrongLine(f"step={line['step']}; the run has {run['steps']}")
    done = line["status"] == "done"
    if done and line.get("step") != run["steps"]:
        raise WrongLine(f"step={line.get('step')!r}; a run that is done has {run['steps']}")
    _figures(line, run, demanded=done)
    if done:
        _complete(line, run)
        if last is None or last["step"] != run["steps"]:
            raise WrongLine("status='done'; the evaluation after the last step is missing")
        if run["eval_examples"] is None:
            _as_evaluated(line, last or {})


def quantity_of(run: Mapping[str, Any]) -> Quantity:
    """Return the metric that a ``run`` line names."""
    larger = run["metric_better"] == "larger"
    return _quantity(
        run["metric"], larger, run["metric_unit"], run["metric_low"], run["metric_high"]
    )


_quantity = lru_cache(maxsize=64)(Quantity)


def _complete(line: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise if a run that is done has null for a figure that is required."""
    for name in sorted(_expected_of(run).required):
        if line[name] is None:
            raise WrongLine(f"{name}=null; a run that is done has a number there")


def _as_evaluated(end: Mapping[str, Any], last: Mapping[str, Any]) -> None:
    """Raise if the final figures differ from the evaluation after the last step."""
    for name in end.keys() & last.keys() if end.get("step") == last.get("step") else ():
        if name.startswith(_SPLITS) and end[name] != last[name]:
            raise WrongLine(
                f"{name}={_shown(end[name])}; the evaluation after the last step has "
                f"{_shown(last[name])}"
            )


def _figures(line: Mapping[str, Any], run: Mapping[str, Any], *, demanded: bool) -> None:
    """Check every figure: a number within the bounds of what it measures, or null."""
    _flat(line)
    expected = _expected_of(run)
    if demanded and not line.keys() >= expected.required:
        _present(line, *sorted(expected.required))
    for name in expected.bounded:
        value = line.get(name)
        if value is not None and not expected.low <= value <= expected.high:
            bounds = "".join(
                f" {word} {bound:g}"
                for word, bound in (
                    ("at least", run["metric_low"]),
                    ("at most", run["metric_high"]),
                )
                if bound is not None
            )
            raise WrongLine(f"{name}={_shown(value)}; {run['metric']} is{bounds}")


def _flat(line: Mapping[str, Any]) -> None:
    """Raise if a field named like a figure is no number or null, or another field is nested."""
    for name, value in line.items():
        if type(value) is float and -_MOST <= value <= _MOST:
            continue
        if value is None or (type(value) is str and not name.startswith(_SPLITS)):
            continue
        if type(value) is bool and name == "channels_last":
            continue
        if type(value) is not int or not -_MOST <= value <= _MOST:
            allowed = "a finite number or null"
            raise WrongLine(
                f"{_short(name, 60)}={_shown(value)}; it is "
                + (allowed if name.startswith(_SPLITS) else f"a text, {allowed}")
            )


def _expected_of(run: Mapping[str, Any]) -> Expected:
    return _expected(run["metric"], run["select"], run["metric_low"], run["metric_high"])


@lru_cache(maxsize=64)
def _expected(metric: str, select: str, low: float | None, high: float | None) -> Expected:
    """Return the figures of evaluations; old records lack the metric on the training data."""
    splits = ("test", "validation") if select == "validation" else ("test",)
    names = {"train_loss", "test_loss", *(f"{split}_{metric}" for split in splits)}
    slack = _SLACK * max(1.0, *(abs(bound) for bound in (low, high) if bound is not None), 1.0)
    return Expected(
        frozenset(names),
        () if low is None and high is None else tuple(f"{split}{metric}" for split in _SPLITS),
        -math.inf if low is None else low - slack,
        math.inf if high is None else high + slack,
    )


def _time(line: Mapping[str, Any], name: str) -> None:
    try:
        datetime.fromisoformat(line[name])
    except ValueError:
        raise WrongLine(f"{name}={_shown(line[name])}; it is a time as in ISO 8601") from None


def _present(line: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in line:
            raise WrongLine(f"the field {name!r} is missing")


def _text(line: Mapping[str, Any], name: str) -> None:
    _present(line, name)
    if not isinstance(line[name], str):
        raise WrongLine(f"{name}={_shown(line[name])}; it is a text")


def _integer(line: Mapping[str, Any], name: str, least: int) -> None:
    _present(line, name)
    value = line[name]
    if not (type(value) is int and least <= value <= _LARGEST):
        most = " and at most 2^53" if type(value) is int and value > _LARGEST else ""
        raise WrongLine(f"{name}={_shown(value)}; it is a whole number of at least {least}{most}")


def _number(line: Mapping[str, Any], name: str) -> float:
    _present(line, name)
    value = line[name]
    if type(value) not in (int, float) or not -_MOST <= value <= _MOST:
        raise WrongLine(f"{name}={_shown(value)}; it is a finite number")
    return float(value)


def _optional(line: Mapping[str, Any], name: str) -> float | None:
    _present(line, name)
    return None if line[name] is None else _number(line, name)


def _choice(line: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> None:
    _present(line, name)
    if line[name] not in allowed:
        raise WrongLine(f"{name}={_shown(line[name])}; it is one of {', '.join(allowed)}")


def _shown(value: object) -> str:
    try:
        return _short(repr(value), 60)
    except (ValueError, RecursionError):  # Python's limits on digits and on nesting
        return f"a value of type {type(value).__name__}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
