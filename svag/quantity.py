"""What a metric is, apart from how it is computed: its name, unit, direction and bounds.

Training has the function that computes it; records, analysis and report know only this.
"""

import math
import re
from dataclasses import dataclass

from svag.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure that runs are judged by.

    Attributes:
        name: in lower case, as it stands in records (``test_<name>``) and sentences.
        larger_is_better: its direction.
        unit: what stands behind its values; ``"%"`` says that they are fractions, shown times
            100, and that their differences are percentage points.
        low: least value it can have; None where there is none.
        high: greatest value it can have; None where there is none.

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
        """Turn a value so that larger is better."""
        return value if self.larger_is_better else -value

    @property
    def best_merit(self) -> float:
        """Merit of the best value it can have; infinite where that is not bounded."""
        bound = self.high if self.larger_is_better else self.low
        return math.inf if bound is None else self.merit(bound)


LOSS = Quantity("loss", larger_is_better=False)
ACCURACY = Quantity("accuracy", larger_is_better=True, unit="%", low=0.0, high=1.0)
