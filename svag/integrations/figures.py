"""Records between a reading, inside the optimizer's step, and the trainer's next chance to log."""

import inspect
from collections.abc import Iterable
from typing import Any

from svag.diagnosis.monitoring.monitor import Monitor
from svag.diagnosis.monitoring.sinks import Destination, Record, scalars, sinks_of
from svag.errors import UnknownOption
from svag.variance.per_example import within_batch_variance

_OWN = ("optimizer", "model", "named_parameters", "hook")
_OF_VARIANCE = tuple(n for n in inspect.signature(within_batch_variance).parameters if n != "model")


def check_options(options: dict[str, Any]) -> None:
    """Refuse, before training begins, what is no option of a monitor that a trainer makes.

    Raises:
        UnknownOption: (a TypeError) an option that there is not, or that the trainer decides.
    """
    known = [name for name in inspect.signature(Monitor).parameters if name not in _OWN]
    for name in options:
        if name not in known:
            raise UnknownOption(
                f"{name!r} is no option of this callback; it takes those of svag.Monitor: "
                f"{', '.join(known)}"
            )


def check_variance_options(options: Iterable[str]) -> None:
    """Refuse what is no option of :class:`svag.within_batch_variance`.

    Raises:
        UnknownOption: (a TypeError) as said.
    """
    for name in options:
        if name not in _OF_VARIANCE:
            raise UnknownOption(
                f"{name!r} is no option of svag.within_batch_variance; it takes "
                f"{', '.join(_OF_VARIANCE)}"
            )


class Waiting:
    """Collects records as figures by name until they are taken."""

    def __init__(self, prefix: str = "svag") -> None:
        self._prefix = prefix
        self._figures: dict[str, float] = {}

    def __call__(self, record: Record) -> None:
        """Keep a record's figures; a later one's of the same name replace them."""
        found = scalars(record)
        self._figures |= {name.replace("svag", self._prefix, 1): x for name, x in found.items()}

    def take(self) -> dict[str, float]:
        """Return what has been collected since the last call."""
        taken, self._figures = self._figures, {}
        return taken


def destinations(options: dict[str, Any], waiting: Waiting) -> dict[str, Any]:
    """Return a monitor's options with one more destination."""
    to: Destination | list[Destination] = options.get("to", ())
    return {"by_layer": False, **options, "to": [*sinks_of(to), waiting]}
