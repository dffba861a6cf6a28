"""A bound on the share of the wall time that some work takes."""

import contextlib
from collections.abc import Iterator
from numbers import Real
from time import perf_counter

from svag.errors import InvalidOption


def is_real(value: object) -> bool:
    """Whether a value is a real number, of Python or NumPy."""
    return isinstance(value, Real)


class Allowance:
    """Spaces pieces of work so that together they take at most a share of the wall time.

    A piece that took c seconds is followed by a pause that ends c/share seconds after the piece
    began. Until the next piece begins, the pieces so far have thus taken at most ``share`` of the
    time since the first one began.

    Args:
        share: in (0, 1]; None means without a bound.

    Attributes:
        spent: seconds that the pieces have taken.

    Raises:
        InvalidOption: the share is outside its range.
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and not (is_real(share) and 0 < share <= 1):
            raise InvalidOption(
                f"budget={share!r} is a share of the wall time in (0, 1], such as 0.02; None "
                "means without a bound"
            )
        self.share = share
        self.spent = 0.0
        self._begun: float | None = None
        self._paused_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the pause is over."""
        return self.share is None or self._begun is None or perf_counter() >= self._paused_until

    @property
    def used(self) -> float:
        """Share of the time since the first piece began that the pieces have taken; 0 before."""
        if self._begun is None:
            return 0.0
        return self.spent / max(perf_counter() - self._begun, self.spent, 1e-9)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Do a piece of work inside this context, whether or not the pause is over."""
        start = perf_counter()
        if self._begun is None:
            self._begun = start
        try:
            yield
        finally:
            cost = perf_counter() - start
            self.spent += cost
            if self.share is not None:
                self._paused_until = start + cost / self.share
