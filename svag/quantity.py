"""A metric's name, unit, direction and bounds, without the function that computes it.

Records, analysis and report need no more; :class:`svag.problems.Metric` adds the function.
"""

import math
import re
from dataclasses import dataclass

from svag.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure that runs are judged by.

    Attributes:
        name: in lower case, as in records (``test_<name>``) and sentences.
        larger_is_better: whether larger values are better.
        unit: printed after values. With ``"%"`` values are fractions, printed times 100, and
            their differences are percentage points.
        low: least possible value; None if unbounded.
        high: greatest possible value; None if unbounded.

    Raises:
        InvalidOption: the name is not one word of lower-case letters, digits and ``_``, or the
            bounds are not in order.
    """

    name: str
    larger_is_better: bool
    unit: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", self.name)):
            raise InvalidOption(
                f"metric name {self.name!r}: give one word of lower-case letters, digits and _, "
                "such as 'f1' or 'perplexity'; records name their fields after it"
            )
        if not isinstance(self.larger_is_better, bool):
            raise InvalidOption(
                f"larger_is_better={self.larger_is_better!r}: say True (accuracy) or False (loss)"
            )
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if any(math.isnan(bound) for bound in bounds) or sorted(bounds) != bounds:
            raise InvalidOption(
                f"bounds low={self.low}, high={self.high} of metric {self.name!r}: give numbers in "
                "order, or None where there is no bound"
            )

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    @property
    def percent(self) -> bool:
        """Whether its values are fractions that are shown as percentages."""
        return self.unit == "%"

    def merit(self, value: float) -> float:
        """Return the value, negated if smaller is better, so that a larger merit is better."""
        return value if self.larger_is_better else -value

    @property
    def best_merit(self) -> float:
        """Merit of the best possible value; infinite if unbounded."""
        bound = self.high if self.larger_is_better else self.low
        return math.inf if bound is None else self.merit(bound)


LOSS = Quantity("loss", larger_is_better=False)
ACCURACY = Quantity("accuracy", larger_is_better=True, unit="%", low=0.0, high=1.0)
