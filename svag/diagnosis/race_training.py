"""Trainings from the current point of an objective, for the race.

Every training begins at the same parameters, buffers and, where one is given, state of the
optimizer. Batches come in orders that are drawn once and kept, so that all methods see the same, up
to 512 MB; later batches of an order are drawn afresh for every training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.diagnosis.objective import Batch, Objective
from svag.diagnosis.sampling import Sampling
from svag.entrants import Entrant
from svag.lab.optimizers import build
from svag.variance.per_example import within_batch_variance

_HELD = 16
_CACHED = 2**29


class ObjectiveTrainer:
    """Trains an objective from its current parameters, and puts them back each time.

    Args:
        objective: the loss, being dissected at the point that every training starts from.
        sampling: where batches come from.
        held: batches to evaluate on.
        states: states of optimizers to start from, by method and parameter.
    """

    def __init__(
        self,
        objective: Objective,
        sampling: Sampling,
        held: Sequence[Batch],
        states: Mapping[str, Mapping[Tensor, dict[str, Any]]] | None = None,
    ) -> None:
        self._objective, self._held = objective, list(held)[:_HELD]
        self._start = objective.theta
        self._sampling, self._stream = sampling, sampling.stream()
        self._orders: dict[int, list[Batch]] = {}
        self._cached = 0
        self._states = states or {}

    def start_loss(self) -> float:
        """Return the mean loss on the held batches at the current point; inf if not finite."""
        return self._held_loss()

    def _held_loss(self) -> float:
        mean = float(np.mean([self._objective.loss(batch) for batch in self._held]))
        return mean if math.isfinite(mean) else math.inf

    def train(self, one: Entrant, lr: float, steps: int, seed: int) -> tuple[float, int]:
        """Train, and return the mean loss on the held batches and the steps taken.

        Args:
            one: the method.
            lr: step size.
            steps: length.
            seed: order of the batches.
        """
        objective = self._objective
        params = [p.detach() for p in objective.params]
        torch._foreach_copy_(params, self._start)
        optimizer = self._optimizer(one, lr)
        carried = None
        try:
            with objective.writing():
                for number in range(steps):
                    batch = self._batch(seed, number)
                    if objective.carries and number and batch.carried is not None:
                        batch = replace(batch, carried=carried)
                    if not math.isfinite(self._gradient(one, batch)):
                        return math.inf, number
                    if objective.carries:
                        carried = objective.state_after()
                        self._sampling.note_state()
                    optimizer.step()
                return self._held_loss(), steps
        finally:
            torch._foreach_copy_(params, self._start)

    def _gradient(self, one: Entrant, batch: Batch) -> float:
        if not one.within_batch:
            return self._objective.gradient(batch)
        with within_batch_variance(self._objective.model):
            return self._objective.gradient(batch)

    def _optimizer(self, one: Entrant, lr: float) -> Optimizer:
        optimizer = build(one, self._objective.params, lr=lr)
        for param, state in self._states.get(one.key, {}).items():
            optimizer.state[param] = {
                name: value.detach().clone() if isinstance(value, Tensor) else value
                for name, value in state.items()
            }
        return optimizer

    def _batch(self, seed: int, number: int) -> Batch:
        """Return a batch of an order: the one that earlier trainings saw, if it was kept."""
        order = self._orders.setdefault(seed, [])
        if number < len(order):
            return order[number]
        batch = next(self._stream)
        if self._cached < _CACHED and number == len(order):
            order.append(batch)
            self._cached += batch.bytes
        return batch
