"""The last round of a race: one method's best step size, by its mean loss over several orders.

A single training chooses a step size by luck where its noise is as large as the gap between
neighbours on the grid, and methods that chose differently then differ for that reason alone. So the
winner of the rounds before is tried again with both neighbours, all with the same orders of the
batches. Further neighbours are added until the best by the mean lies between two worse ones. Of
simulated races of four equal methods, 2 to 5 % then reported an effect, at any ratio of noise and
gap, and 6 to 25 % with the winner alone (``races_of_equal_methods`` in
tests/diagnosis/test_race.py).
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

LEAST_ORDERS: Final = 6
"""Orders of the batches that every race has at least in its last round."""

MOST_ORDERS: Final = 12
"""Orders of the batches that a race has at most."""

_LOOK = 3
"""Orders after which step sizes that are clearly worse are given up."""
_MOST_MOVES = 4
_LEAST_GAIN = 0.5


class LastRound:
    """One method's last round.

    Args:
        loss: trains at a step size, given as its number on the grid, with an order of the batches,
            and returns the final loss, inf after divergence.
        inside: whether a number is on the grid.
        winner: number of the step size that won the rounds before.
        start_loss: the loss before training.
    """

    def __init__(
        self,
        loss: Callable[[int, int], float],
        inside: Callable[[int], bool],
        winner: int,
        start_loss: float,
    ) -> None:
        self._loss, self._inside, self._start = loss, inside, start_loss
        around = (winner - 1, winner, winner + 1)
        self._tried: dict[int, list[float]] = {k: [] for k in around if inside(k)}
        self._diverged: set[int] = set()
        self._worse: set[int] = set()
        self._moves = 0

    @property
    def live(self) -> list[int]:
        """Numbers of the step sizes that are not given up."""
        return [k for k in self._tried if k not in self._diverged and k not in self._worse]

    @property
    def best(self) -> int | None:
        """Number of the step size with the lowest mean loss; None where all diverged."""
        means = {index: float(np.mean(self._tried[index])) for index in self.live}
        return min(means, key=lambda index: (means[index], index)) if means else None

    @property
    def unbounded(self) -> bool:
        """Whether the largest step size tried is the best, with room for larger ones."""
        best = self.best
        return best is not None and best + 1 not in self._tried and self._inside(best + 1)

    def run(self, orders: int) -> None:
        """Train until every step size that may be the best has so many orders."""
        self._complete(orders)
        while self._moves < _MOST_MOVES and (further := self._further()):
            self._tried.update({index: [] for index in further})
            self._moves += 1
            self._complete(orders)

    def _complete(self, orders: int) -> None:
        for seed in range(orders):
            for index in self.live:
                losses = self._tried[index]
                if len(losses) <= seed:
                    losses.append(self._loss(index, seed))
                if not math.isfinite(losses[seed]):
                    self._diverged.add(index)
                    self._worse.clear()  # they may have lost only to this one, which diverged
                    self._complete(orders)
                    return
            if seed == 0:
                self._give_up_what_gains_little()
            if seed == _LOOK - 1:
                self._give_up_what_is_worse()

    def _further(self) -> list[int]:
        """Return the neighbours of the best that were not tried; a smaller one if all diverged."""
        best = self.best
        around = (min(self._tried) - 1,) if best is None else (best - 1, best + 1)
        return [k for k in around if k not in self._tried and self._inside(k)]

    def _give_up_what_gains_little(self) -> None:
        """Give up what gained less than half of what the best one did, in the first order."""
        gains = {index: self._start - self._tried[index][0] for index in self.live}
        most = max(gains.values(), default=0.0)
        if most > 0:
            self._worse |= {k for k, gain in gains.items() if gain < _LEAST_GAIN * most}

    def _give_up_what_is_worse(self) -> None:
        """Give up what lost in each of the first orders, by more than twice its deviation."""
        first = {index: np.array(self._tried[index][:_LOOK]) for index in self.live}
        if not first:
            return
        best = min(first, key=lambda index: float(first[index].mean()))
        for index, losses in first.items():
            behind = losses - first[best]
            if behind.min() > 0 and behind.mean() > 2 * behind.std(ddof=1):
                self._worse.add(index)
