"""Losses of held batches along update directions, at many step sizes.

Each direction z is evaluated on held batches of its own, from which z was not computed, at all step
sizes of its method: forward passes alone, with common random numbers. ``improvement.py`` estimates
expected decreases from the losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError

FINE = 2.0
"""Ratio of neighbouring step sizes of the grid."""

_BELOW, _ABOVE = 5, 3
_COARSE = 4.0
_MOST_COARSE = 24
_SHARE = 0.01


class LineSearch:
    """Evaluates the objective at theta + alpha z, and puts theta back exactly.

    Args:
        objective: the loss, being dissected at theta.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._theta = objective.theta
        self._base: dict[int, float] = {}
        self.evaluations = 0

    def decreases(
        self, direction: Sequence[Tensor], lrs: Sequence[float], batches: Sequence[Batch]
    ) -> NDArray[np.float64]:
        """Return L_B(theta) - L_B(theta + alpha z), of shape (step sizes, batches).

        A loss that is not finite is a decrease of -inf.

        Args:
            direction: z, one tensor for each parameter.
            lrs: step sizes alpha.
            batches: batches to evaluate on.
        """
        objective = self._objective
        params = [p.detach() for p in objective.params]
        before = [self._before(batch) for batch in batches]
        found = np.empty((len(lrs), len(batches)))
        try:
            for row, lr in enumerate(lrs):
                torch._foreach_copy_(params, self._theta)
                torch._foreach_add_(params, list(direction), alpha=lr)
                after = [objective.loss(batch) for batch in batches]
                self.evaluations += len(batches)
                found[row] = [
                    b - a if math.isfinite(a) else -math.inf
                    for a, b in zip(after, before, strict=True)
                ]
        finally:
            torch._foreach_copy_(params, self._theta)
        return found

    def best_of(self, direction: Sequence[Tensor], batches: Sequence[Batch]) -> float:
        """Return roughly the best step size along one direction, within a factor of 4; 0 for none.

        From :meth:`small_step` it goes up by factors of 4 while the loss falls further, else down
        until it falls.
        """
        lr = self.small_step(direction)
        if not lr:
            return 0.0

        def gain(at: float) -> float:
            return float(self.decreases(direction, [at], batches).mean())

        best, value = lr, gain(lr)
        if value > 0:
            for _ in range(_MOST_COARSE):
                higher = gain(best * _COARSE)
                if not higher > value:
                    return best
                best, value = best * _COARSE, higher
            return best
        for _ in range(_MOST_COARSE):
            lower = gain(best / _COARSE)
            best = best / _COARSE
            if value > 0 and not lower > value:
                return best * _COARSE
            value = lower
        return best if value > 0 else 0.0

    def small_step(self, direction: Sequence[Tensor]) -> float:
        """Return the step size that changes theta by a hundredth of its norm; 0 if z is 0.

        At theta = 0 it is a change of norm 0.01.
        """
        length = _norm(direction)
        return _SHARE * (_norm(self._theta) or 1.0) / length if 0 < length < math.inf else 0.0

    def _before(self, batch: Batch) -> float:
        if batch.seed not in self._base:
            loss = self._base[batch.seed] = self._objective.loss(batch)
            if not math.isfinite(loss):
                raise DissectionError(
                    f"the loss of a batch is {loss} at the current parameters, though others are "
                    "finite; look for bad examples"
                )
        return self._base[batch.seed]


def grid_about(lr: float) -> list[float]:
    """Return the step sizes to measure at, ascending: powers of 2 times a rough best one."""
    return [lr * FINE**k for k in range(-_BELOW, _ABOVE + 1)]


@dataclass
class Decreases:
    """Decreases of the loss along one method's directions.

    Attributes:
        key: the method.
        track: name of the track.
        lrs: step sizes, ascending.
        rows: for each draw, decreases of shape (step sizes,), means over its own held batches.
    """

    key: str
    track: str
    lrs: list[float]
    rows: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def table(self) -> NDArray[np.float64]:
        """All decreases, of shape (draws, step sizes)."""
        return np.stack(self.rows)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
