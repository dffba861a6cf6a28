"""The search for a step size: one run at each point of the grid 1, 3 x 10^k, up, then down.

The paper looks for the largest stable step size and goes down from there. But networks with
BatchNorm never diverge, and some losses need a step size of a million. So a walk ends by its
results, not at a bound:

* upwards, when a run diverges;
* in both directions, when two runs in a row are clearly worse than the best (by more than a
  fiftieth of the gain of the best over its start), or four in a row are no better. Both count only
  after something was learnt, and only if the training loss agrees, since the metric of a single run
  on few examples is noisy;
* at a bound, if nothing was learnt. Both walks then continue once, to a bound further out.

A run has learnt something if it gains enough over the metric before the first step: a tenth of the
way to the metric's best possible value, or any gain if the metric is unbounded. So scaling or
shifting a loss does not change the choice. A run that ends in error above a step size that worked
ends a walk as divergence does. The result does not depend on the number of runs at a time.
"""

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from svag.lab.records import Record
from svag.lab.run import Run


@dataclass(frozen=True)
class Request:
    """Runs that a plan needs before it can go on, and runs that it will probably need next."""

    needed: list[Run]
    ahead: list[Run] = field(default_factory=list)


Answers: TypeAlias = Mapping[str, Record]
"""Records, by the id of their run."""

SEARCH_SEED = 0
"""Seed of the runs of a search."""

_CLEARLY = 0.02
_LEARNT = 0.1
_WORSE, _NO_BETTER = 2, 4
_NEAR_UP, _NEAR_DOWN, _FAR = 6, 12, 20
_AHEAD = 3
_OUTERMOST = 600


class StepSizes:
    """The step sizes of a search, numbered in ascending order.

    Args:
        given: the step sizes; empty for the grid ..., 0.01, 0.03, 0.1, 0.3, 1, 3, ..., in which
            1 is number 0.
    """

    def __init__(self, given: tuple[float, ...] = ()) -> None:
        self._given = sorted(given)

    def __getitem__(self, index: int) -> float:
        """Return step size number ``index``."""
        if self._given:
            return self._given[index]
        return float(f"{3 if index % 2 else 1}e{index // 2}")

    def __contains__(self, index: object) -> bool:
        """Whether there is a step size of this number."""
        if not isinstance(index, int):
            return False
        return 0 <= index < len(self._given) if self._given else abs(index) <= _OUTERMOST

    def nearest(self, lr: float) -> int:
        """Number of the step size of the grid that is nearest to ``lr`` in logarithm."""
        guess = round(2 * math.log10(lr))
        return min(range(guess - 1, guess + 2), key=lambda i: abs(math.log(self[i] / lr)))


class Search:
    """A search over the grid, and its results so far.

    Attributes:
        lrs: the step sizes by number.
        trials: records by number of the step size.
        failed: whether a run ended in error and no run at a smaller step size was done.
    """

    def __init__(self, run: Run, start: int, given: tuple[float, ...] = ()) -> None:
        """Search for the method of ``run`` from ``start``, or among ``given`` step sizes alone."""
        self._run, self._start, self._given = run, start, given
        self.lrs = StepSizes(given)
        self.trials: dict[int, Record] = {}
        self.failed = False

    def walk(self) -> Generator[Request, Answers, None]:
        """Yield requests for runs and receive their records, until the search has ended."""
        if self._given:
            yield from self._try(*range(len(self._given)))
            return
        start = self._start
        yield from self._along(range(start, start + _NEAR_UP + 1), ahead_also=start - 1)
        yield from self._along(range(start - 1, start - _NEAR_DOWN - 1, -1))
        if not self.learnt and not self.failed:
            if not self._diverged(max(self.trials)):
                yield from self._along(range(max(self.trials) + 1, start + _FAR + 1))
            lowest = min(self.trials)
            yield from self._along(range(lowest - 1, start - _FAR - 1, -1))

    @property
    def best(self) -> int | None:
        """Number of the best step size; None if no run is done.

        Ties are broken by the smaller training loss, then by the larger step size.
        """
        stable = [index for index, record in self.trials.items() if record.merit > -math.inf]
        return max(stable, key=lambda i: (*standing([self.trials[i]]), i), default=None)

    @property
    def learnt(self) -> bool:
        """Whether the best run learnt something."""
        best = self.best
        if best is None:
            return False
        record = self.trials[best]
        bound = self._run.quantity.best_merit
        ceiling = _LEARNT * (bound - record.merit_at_start) if math.isfinite(bound) else 0.0
        return record.gain > ceiling

    def _along(
        self, indices: range, ahead_also: int | None = None
    ) -> Generator[Request, Answers, None]:
        worse, no_better = self._below_best() if indices.step < 0 else (0, 0)
        position = 0
        while not (self.failed or worse >= _WORSE or no_better >= _NO_BETTER):
            if position < len(indices):
                index = indices[position]
            elif self.learnt:  # the bounds apply only if nothing was learnt
                index = indices[0] + position * indices.step
            else:
                return
            position += 1
            before, least = self._best_merit(), self._least_loss()
            following = [index + indices.step * n for n in range(1, _AHEAD)]
            also = [] if ahead_also is None else [ahead_also]
            yield from self._try(index, ahead=[following[0], *also, *following[1:]])
            if self.failed or (indices.step > 0 and self._diverged(index)):
                return
            merit = self.trials[index].merit
            worse = worse + 1 if self.learnt and self._clearly_worse(index) else 0
            better = merit > before or _loss(self.trials[index]) < least
            no_better = 0 if better or not self.learnt else no_better + 1

    def _below_best(self) -> tuple[int, int]:
        """Count tried points below the best: clearly worse ones from the lowest on, and all."""
        best = self.best
        if best is None or not self.learnt:
            return 0, 0
        below = range(min(self.trials), best)
        worse = next((n for n, i in enumerate(below) if not self._clearly_worse(i)), len(below))
        return worse, len(below)

    def _clearly_worse(self, index: int) -> bool:
        best = self.best
        if best is None:
            return False
        record, leading = self.trials[index], self.trials[best]
        slack = _CLEARLY * self._gain_of_best()
        return record.merit < leading.merit - slack and not _loss(record) < _loss(leading)

    def _try(
        self, *indices: int, ahead: list[int] | None = None
    ) -> Generator[Request, Answers, None]:
        runs = {index: self._at(index) for index in indices}
        answers = yield Request(list(runs.values()), [self._at(index) for index in ahead or ()])
        for index, run in runs.items():
            self.trials[index] = answers[run.id]
        well = [index for index, record in self.trials.items() if record.status == "done"]
        self.failed = any(
            record.status == "error" and not any(other < index for other in well)
            for index, record in self.trials.items()
        )

    def _at(self, index: int) -> Run:
        return replace(self._run, lr=self.lrs[index], seed=SEARCH_SEED)

    def _diverged(self, index: int) -> bool:
        return self.trials[index].status in ("diverged", "error")

    def _least_loss(self) -> float:
        return min((_loss(record) for record in self.trials.values()), default=math.inf)

    def _best_merit(self) -> float:
        return max((record.merit for record in self.trials.values()), default=-math.inf)

    def _gain_of_best(self) -> float:
        best = self.best
        gain = 0.0 if best is None else self.trials[best].gain
        return gain if math.isfinite(gain) else 0.0


def standing(records: Sequence[Record]) -> tuple[float, float]:
    """Return a key to rank a step size: its runs' mean merit, and minus their mean training loss.

    The loss breaks ties, since a metric on few examples is often equal over decades of step sizes.
    """
    merit = statistics.fmean(record.merit for record in records)
    return merit, -statistics.fmean(_loss(record) for record in records)


def _loss(record: Record) -> float:
    """Return the final training loss; infinite if there is none."""
    value = (record.end or {}).get("train_loss")
    return math.inf if value is None else float(value)
