"""A short race: each method trains from the current point, and the step size that learns most wins.

Every method starts at the step size that is best for one step, rounded to the grid 1, 3 x 10^k,
and goes up the grid as long as larger ones win and do not diverge; it goes down where the first one
is the best so far. The winner of this round begins another, as much longer as the time allows, from
the current point again, where its neighbours on the grid are tried in the same way. The winner of
the last round runs with several orders of the batches, the same for all methods. What is compared
is the loss on held batches at the end. The step size stays constant.

Who trains is a :class:`Trainer`: this file only decides what is run.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import stdtrit

from svag.analysis.contrasts import WEIGHTS
from svag.diagnosis.improvement import EFFECTS, LEVEL, Interval
from svag.entrants import Entrant
from svag.lab.search import StepSizes

SEEDS = 6
"""Orders of the batches in the last round."""

_LEAST_STEPS = 10
_LEAST_GROWTH, _MOST_GROWTH = 1.5, 6.0
_ROUNDS = 4
_FIRST, _LATER = 5.0, 3.5
"""Trainings of a method in the first round, and in each later one, on average."""
_SHARE_OF_FIRST = 0.2
_MOST_UP, _MOST_DOWN = 9, 5
_PATIENCE = 2
_MOST_MOVES = 2


class Trainer(Protocol):
    """Trains from the current point, again and again."""

    def start_loss(self) -> float:
        """Return the loss at the current point."""

    def train(self, one: Entrant, lr: float, steps: int, seed: int) -> tuple[float, int]:
        """Train, and return the final loss (inf after divergence) and the steps taken.

        Args:
            one: the method.
            lr: step size.
            steps: length.
            seed: order of the batches, the same for all methods.
        """


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
        lrs: the winning step size of each method; NaN where all diverged.
        losses: mean final loss of each method at it, over the orders of the last round.
    """

    start_loss: float
    steps: int
    heats: tuple[Heat, ...]
    lrs: Mapping[str, float]
    losses: Mapping[str, float]

    def finals(self, method: str) -> list[float]:
        """Return the final losses at a method's winning step size, by order of the batches."""
        lr = self.lrs[method]
        last = [
            h for h in self.heats if h.method == method and h.lr == lr and h.steps == self.steps
        ]
        return [h.loss for h in sorted(last, key=lambda h: h.seed)]


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
        weights = WEIGHTS[name]
        if not count or not np.isfinite(table).all():
            found[name] = RaceEffect(name, math.nan, None)
            continue
        each = weights @ table
        interval = None
        if count > 1:
            quantile = float(stdtrit(count - 1, 1 - LEVEL / (2 * len(EFFECTS))))
            reach = quantile * float(each.std(ddof=1)) / math.sqrt(count)
            interval = (float(each.mean()) - reach, float(each.mean()) + reach)
        found[name] = RaceEffect(name, float(each.mean()), interval)
    return found


class Race:
    """Decides what is trained, for how long, and who has won.

    Args:
        trainer: who trains.
        longest: most steps of a training.
    """

    def __init__(self, trainer: Trainer, longest: int | None = None) -> None:
        self._trainer, self._longest = trainer, longest or 10**9
        self._grid = StepSizes()
        self._heats: list[Heat] = []
        self._taken = 0

    def run(
        self,
        entrants: Sequence[Entrant],
        starts: Mapping[str, float],
        *,
        seconds: float,
        progress: Callable[[float], None] = lambda share: None,
    ) -> RaceResult:
        """Race within a time, from which and from the time of a step the rounds' lengths follow.

        Args:
            entrants: the methods.
            starts: step size at which each begins; one without is left out.
            seconds: time.
            progress: called with the share that is done.
        """
        racing = [one for one in entrants if starts.get(one.key, 0.0) > 0]
        start_loss = self._trainer.start_loss()
        at = {one.key: self._grid.nearest(starts[one.key]) for one in racing}
        for one in racing:  # compiles what has to be compiled
            self._trainer.train(one, starts[one.key], 2, 0)
        started = time.perf_counter()
        self._taken = self._trainer.train(racing[0], starts[racing[0].key], 3, 0)[1]
        steps = 0
        for number in range(_ROUNDS):
            longer = self._length(steps, len(racing), time.perf_counter() - started, seconds)
            if longer <= steps:
                break
            steps = longer
            for one in racing:
                patience = _PATIENCE if number == 0 else 1
                at[one.key] = self._climb(one, at[one.key], steps, patience)
                progress(min(1.0, (time.perf_counter() - started) / max(seconds, 1e-9)))
        for one in racing:
            at[one.key] = self._finals(one, at[one.key], steps)
        return self._result(racing, at, steps, start_loss)

    def _length(self, steps: int, methods: int, elapsed: float, seconds: float) -> int:
        """Return the length of the next round; that of the last one if there is no time for more.

        A round must leave the time for all orders at its own length.
        """
        step = elapsed / max(1, self._taken)
        if not steps:
            affordable = _SHARE_OF_FIRST * seconds / (step * methods * _FIRST)
            return min(max(_LEAST_STEPS, int(affordable)), self._longest)
        affordable = (seconds - elapsed) / (step * methods * (_LATER + SEEDS - 1))
        longer = min(int(affordable), self._longest, int(_MOST_GROWTH * steps))
        return longer if longer >= min(_LEAST_GROWTH * steps, self._longest) else steps

    def _climb(self, one: Entrant, start: int, steps: int, patience: int) -> int:
        """Go up the grid from a point, then down if that was no better; return the best point."""
        losses = {start: self._heat(one, start, steps)}

        def best() -> int:
            return min(losses, key=lambda index: (losses[index], index))

        for direction, most in ((1, _MOST_UP), (-1, _MOST_DOWN)):
            if direction < 0 and best() != start:
                break
            worse = 0
            for distance in range(1, most + 1):
                index = start + direction * distance
                if index not in self._grid:
                    break
                losses[index] = self._heat(one, index, steps)
                worse = 0 if best() == index else worse + 1
                if worse >= (patience if direction > 0 else 1) and math.isfinite(losses[best()]):
                    break
                if direction > 0 and math.isinf(losses[index]):
                    break
        return best()

    def _finals(self, one: Entrant, index: int, steps: int) -> int:
        """Run the last round's winner with all orders; a smaller step size if one diverges."""
        for _ in range(_MOST_MOVES + 1):
            losses = [self._heat(one, index, steps, seed) for seed in range(SEEDS)]
            if all(map(math.isfinite, losses)) or index - 1 not in self._grid:
                return index
            index -= 1
        return index + 1

    def _heat(self, one: Entrant, index: int, steps: int, seed: int = 0) -> float:
        """Train once, unless it has been done, and return the final loss."""
        lr = self._grid[index]
        for heat in self._heats:
            if (heat.method, heat.lr, heat.steps, heat.seed) == (one.key, lr, steps, seed):
                return heat.loss
        loss, taken = self._trainer.train(one, lr, steps, seed)
        self._taken += taken
        self._heats.append(Heat(one.key, lr, steps, seed, loss))
        return loss

    def _result(
        self, racing: Sequence[Entrant], at: Mapping[str, int], steps: int, start_loss: float
    ) -> RaceResult:
        lrs, losses = {}, {}
        for one in racing:
            lr = self._grid[at[one.key]]
            last = [h for h in self._heats if (h.method, h.lr, h.steps) == (one.key, lr, steps)]
            survived = all(not h.diverged for h in last)
            lrs[one.key] = lr if survived else math.nan
            losses[one.key] = float(np.mean([h.loss for h in last])) if survived else math.inf
        return RaceResult(start_loss, steps, tuple(self._heats), lrs, losses)
