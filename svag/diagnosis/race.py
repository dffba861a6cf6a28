"""A short race: each method trains from the current point, and the step size that learns most wins.

Every method starts at the step size that is best for one step, rounded to the grid 1, 3 x 10^k,
and goes up the grid as long as larger ones win and do not diverge; it goes down where the first one
is the best so far. The winner of this round begins another, as much longer as the time allows, from
the current point again, where its neighbours on the grid are tried in the same way. In the last
round the winner and its neighbours run with several orders of the batches, the same for all
methods, six or more as time allows. What is compared is the loss on held batches at the end. The
step size stays constant. Rounds do not become longer once every method has reduced the loss by
95 %, since methods cannot be told apart when all losses are near 0.

A :class:`Trainer` trains; this file only decides what is run.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from svag.diagnosis.last_round import LEAST_ORDERS, MOST_ORDERS, LastRound
from svag.diagnosis.race_result import Heat, RaceResult
from svag.entrants import Entrant
from svag.lab.search import StepSizes

_LEAST_STEPS = 10
_LEAST_GROWTH, _MOST_GROWTH = 1.5, 6.0
_ROUNDS = 4
_FIRST, _LATER, _LAST = 5.0, 3.5, 15.0
"""Trainings of a method in the first round, each later one, and the last, on average."""
_SHARE_OF_FIRST = 0.2
_MOST_UP, _MOST_DOWN = 9, 5
_PATIENCE = 2
_LEARNT = 0.05
"""Share of the loss below which there is nothing left to tell methods apart."""


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
            if self._learnt(racing, steps, start_loss):
                break
        lasts = {one.key: self._last_round(one, at[one.key], steps, start_loss) for one in racing}
        for orders in range(LEAST_ORDERS, MOST_ORDERS + 1):
            elapsed = time.perf_counter() - started
            more = sum(len(last.live) for last in lasts.values()) * steps
            if orders > LEAST_ORDERS and elapsed + more * elapsed / self._taken > seconds:
                break
            for last in lasts.values():
                last.run(orders)
                progress(min(1.0, (time.perf_counter() - started) / max(seconds, 1e-9)))
        return self._result(lasts, steps, start_loss)

    def _length(self, steps: int, methods: int, elapsed: float, seconds: float) -> int:
        """Return the length of the next round; that of the last one if there is no time for more.

        A round must leave the time for the last one at its own length.
        """
        step = elapsed / max(1, self._taken)
        if not steps:
            affordable = _SHARE_OF_FIRST * seconds / (step * methods * _FIRST)
            short = min(int(affordable), int(self._longest / _MOST_GROWTH))
            return min(max(_LEAST_STEPS, short), self._longest)
        affordable = (seconds - elapsed) / (step * methods * (_LATER + _LAST))
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

    def _learnt(self, racing: Sequence[Entrant], steps: int, start_loss: float) -> bool:
        """Whether every method has brought a loss that was above 0 near 0."""
        best = [
            min(h.loss for h in self._heats if (h.method, h.steps) == (one.key, steps))
            for one in racing
        ]
        return all(0 <= loss < _LEARNT * start_loss for loss in best)

    def _last_round(self, one: Entrant, winner: int, steps: int, start_loss: float) -> LastRound:
        def loss(index: int, seed: int) -> float:
            return self._heat(one, index, steps, seed)

        return LastRound(loss, self._grid.__contains__, winner, start_loss)

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

    def _result(self, lasts: Mapping[str, LastRound], steps: int, start_loss: float) -> RaceResult:
        lrs = dict.fromkeys(lasts, math.nan)
        losses = dict.fromkeys(lasts, math.inf)
        unbounded = tuple(key for key, last in lasts.items() if last.unbounded)
        for key, last in lasts.items():
            if last.best is None or key in unbounded:
                continue
            lrs[key] = self._grid[last.best]
            runs = [h for h in self._heats if (h.method, h.lr, h.steps) == (key, lrs[key], steps)]
            losses[key] = float(np.mean([h.loss for h in runs]))
        return RaceResult(start_loss, steps, tuple(self._heats), lrs, losses, unbounded)
