"""How the time of a dissection is spent: on what, in which order, and how much of it.

Directions and their step sizes come first, since the race starts from them; then the race, then the
curvature, then variants of the directions (rotated, larger batches). A part that ends early leaves
its time to the next ones; a part that needs more than its share is cut short where it can be.
"""

import re
import time
from typing import Final

from svag.errors import InvalidOption

SHARES: Final = {"directions": 0.42, "race": 0.36, "curvature": 0.12, "variants": 0.08}
"""Shares of the time, in the order in which they are spent."""

_DEFAULT, _DEFAULT_OF_SMALL, _SMALL = 300.0, 50.0, 100_000

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LEAST = 1.0


def seconds_of(text: str | float) -> float:
    """Read a time: seconds as a number, or a text such as ``90``, ``90s``, ``5m`` or ``1.5h``.

    Raises:
        InvalidOption: the text is not a time, or the time is below a second.

    Example:
        >>> seconds_of("5m"), seconds_of("90"), seconds_of(20)
        (300.0, 90.0, 20.0)
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", str(text).lower())
    seconds = float(found[1]) * _UNITS[found[2]] if found and found[2] in _UNITS else 0.0
    if not _LEAST <= seconds < float("inf"):
        raise InvalidOption(f"budget={text!r}: give a time of a second or more, such as 90s or 5m")
    return seconds


def default_seconds(parameters: int) -> float:
    """Return the default time of a dissection: less for a small model.

    Args:
        parameters: number of trained parameters.

    Example:
        >>> default_seconds(20_000), default_seconds(3_000_000)
        (50.0, 300.0)
    """
    return _DEFAULT_OF_SMALL if parameters < _SMALL else _DEFAULT


class Budget:
    """The clock of a dissection.

    Args:
        seconds: time for everything.
        spent: seconds that are spent already.
    """

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self._started = time.perf_counter() - spent

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def until(self, part: str) -> float:
        """Return the seconds left for a part, which may use what earlier parts left."""
        names = list(SHARES)
        share = sum(SHARES[name] for name in names[: names.index(part) + 1])
        return max(0.0, share * self.seconds - self.spent)
