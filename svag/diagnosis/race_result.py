"""What a race has shown: every training, the step sizes that won, and the effects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from svag.analysis.contrasts import WEIGHTS
from svag.diagnosis.improvement import EFFECTS, LEVEL, Interval


@dataclass(frozen=True)
class Heat:
    """One training in the race.

    Attributes:
        method: key of the method.
        lr: step size.
        steps: length.
        seed: order of the batches.
        loss: mean loss on held batches at the end; inf if it diverged.
    """

    method: str
    lr: float
    steps: int
    seed: int
    loss: float

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not math.isfinite(self.loss)


@dataclass(frozen=True)
class RaceResult:
    """What the race says.

    Attributes:
        start_loss: mean loss on the held batches at the current point.
        steps: length of the last round.
        heats: every training, in order.
        lrs: the winning step size of each method; NaN where there is none.
        losses: mean final loss of each method at it, over the orders of the last round.
        unbounded: methods for which the largest step size tried was still the best; they have none.
    """

    start_loss: float
    steps: int
    heats: tuple[Heat, ...]
    lrs: Mapping[str, float]
    losses: Mapping[str, float]
    unbounded: tuple[str, ...] = ()

    def finals(self, method: str) -> list[float]:
        """Return the final losses at a method's winning step size, by order of the batches."""
        lr = self.lrs[method]
        last = [
            h for h in self.heats if h.method == method and h.lr == lr and h.steps == self.steps
        ]
        return [h.loss for h in sorted(last, key=lambda h: h.seed)]

    def tied(self) -> tuple[str, ...]:
        """Return the methods whose final loss cannot be told from the lowest one.

        Differences from the method with the lowest mean loss, order by order, by Student's t at
        95 % for all methods at once.
        """
        ranked = sorted(
            (key for key, loss in self.losses.items() if math.isfinite(loss)),
            key=lambda key: self.losses[key],
        )
        if len(ranked) < 2:
            return ()
        best, *others = ranked
        return tuple(key for key in others if not self._worse(key, best, len(others)))

    def _worse(self, key: str, best: str, comparisons: int) -> bool:
        count = min(len(self.finals(key)), len(self.finals(best)))
        if count < 2:
            return False
        difference = np.subtract(self.finals(key)[:count], self.finals(best)[:count])
        low, _ = _interval(difference, comparisons)
        return low > 0


@dataclass(frozen=True)
class RaceEffect:
    """An effect of the 2x2 design on the final loss of the race; below 0 is better.

    Attributes:
        name: ``"sign"``, ``"adaptation"`` or ``"interaction"``.
        estimate: in units of the loss.
        interval: at 95 % for all effects at once; None with fewer than two orders.
    """

    name: str
    estimate: float
    interval: Interval | None

    @property
    def direction(self) -> int:
        """1 if it lowers the loss for certain, -1 if it raises it, else 0."""
        if self.interval is None:
            return 0
        return int(self.interval[1] < 0) - int(self.interval[0] > 0)


def race_effects(result: RaceResult, cells: Sequence[str]) -> dict[str, RaceEffect]:
    """Estimate the effects of sign and adaptation in the last round, by order of the batches.

    Args:
        result: of the race.
        cells: M-SGD, M-SVAG, M-SSD, Adam, or others in their cells.
    """
    finals = [result.finals(key) for key in cells]
    count = min(len(f) for f in finals)
    table = np.array([f[:count] for f in finals])
    found = {}
    for name in EFFECTS:
        if not count or not np.isfinite(table).all():
            found[name] = RaceEffect(name, math.nan, None)
            continue
        each = WEIGHTS[name] @ table
        interval = _interval(each, len(EFFECTS)) if count > 1 else None
        found[name] = RaceEffect(name, float(each.mean()), interval)
    return found


def _interval(values: np.ndarray, comparisons: int) -> Interval:
    """Return Student's interval of a mean, at 95 % for so many comparisons at once."""
    quantile = float(student.ppf(1 - LEVEL / (2 * comparisons), len(values) - 1))
    reach = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach
