"""Where a monitor's records go: a file of JSON lines, TensorBoard, or a function."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TextIO, TypeAlias, runtime_checkable

from svag.errors import InvalidOption, RecordError

Record: TypeAlias = dict[str, Any]

ALL: Final = "all"
"""The ``layer`` of records about all parameters together."""


@runtime_checkable
class ScalarWriter(Protocol):
    """The method of :class:`torch.utils.tensorboard.SummaryWriter` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write a number."""


Destination: TypeAlias = str | Path | ScalarWriter | Callable[[Record], object]


class JsonLines:
    """Appends records to a file, a line each; the file is opened at the first one.

    Raises:
        RecordError: the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None

    def __call__(self, record: Record) -> None:
        """Write a record so that it is in the file when this returns."""
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RecordError(
                f"cannot write {self._path}: {error.strerror}; choose another file"
            ) from error

    def close(self) -> None:
        """Close the file; another record would open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Scalars:
    """Writes the numbers of records to TensorBoard, as ``svag/LAYER/FIGURE``."""

    def __init__(self, writer: ScalarWriter) -> None:
        self._writer = writer

    def __call__(self, record: Record) -> None:
        """Write a record's numbers; null is left out."""
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record["step"])


def scalars(record: Record) -> dict[str, float]:
    """Return the figures of a record by name, for trackers that know numbers only.

    Example:
        >>> scalars({"kind": "monitor", "step": 7, "layer": "all", "at_rest": 0.5})
        {'svag/at_rest': 0.5}
        >>> scalars({"kind": "monitor", "step": 7, "layer": "0.weight", "at_rest": 0.5})
        {'svag/0.weight/at_rest': 0.5}
    """
    about = [part for part in (record["layer"], record.get("probe")) if part not in (ALL, None)]
    return {
        "/".join(["svag", *about, name]): float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }


def sinks_of(to: Destination | Sequence[Destination]) -> list[Callable[[Record], object]]:
    """Return a function of a record for each destination.

    Raises:
        InvalidOption: a destination is none of the allowed kinds.
    """
    several = to if isinstance(to, Sequence) and not isinstance(to, str) else [to]
    return [_sink(one) for one in several]


def _sink(to: object) -> Callable[[Record], object]:
    if isinstance(to, str | Path):
        return JsonLines(to)
    if isinstance(to, ScalarWriter):
        return Scalars(to)
    if callable(to) and not isinstance(to, Mapping):
        return to
    raise InvalidOption(
        f"to={to!r} is no place for records; give the path of a file, a SummaryWriter, a function "
        "of a dict, or a list of these"
    )
