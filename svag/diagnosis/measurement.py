"""Measures decreases along directions: gradients from a stream, losses on held batches.

Tracks share the gradients. Each draw of a method's direction is tried at once on held batches of
its own, and not kept, so that memory does not grow with the number of draws.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from svag.diagnosis.directions import Directions, Track, block_length
from svag.diagnosis.line_search import Decreases, LineSearch, grid_about
from svag.diagnosis.noise_summary import NoiseSummary
from svag.diagnosis.objective import Batch, Objective
from svag.diagnosis.sampling import Sampling
from svag.entrants import Entrant
from svag.errors import DissectionError, SparseGradient
from svag.variance.per_example import within_batch_variance

MOST_DRAWS, LEAST_DRAWS = 48, 6
"""Draws of every method; the time left decides between the two."""

HELD_A_DRAW = 2
_PILOTS = 4
_TRIES = 3
_WARM_UP = 2


@dataclass
class Measured:
    """Decreases by track and method, and what they cost.

    Attributes:
        decreases: one for each track and method.
        gradients: number of gradients taken.
        evaluations: number of losses evaluated.
        still: tracks and methods whose direction is 0 or not finite, and which of the two.
    """

    decreases: list[Decreases] = field(default_factory=list)
    gradients: int = 0
    evaluations: int = 0
    still: list[tuple[str, str, str]] = field(default_factory=list)


Visit = Callable[[str, list[Tensor], Sequence[Batch]], None]
"""Called with a method's key, its direction and the held batches of the draw."""


class Measurement:
    """Takes gradients and tries directions until the time is over.

    Args:
        objective: the loss.
        sampling: where batches come from.
        held: batches to evaluate losses on.
        entrants: the methods.
        states: states of optimizers to start from, by method and parameter, on the plain track;
            averages of plain gradients do not fit the gradients of other tracks.
        noise: also sees every gradient.
        visit: sees every direction of the first track.
    """

    def __init__(
        self,
        objective: Objective,
        sampling: Sampling,
        held: Sequence[Batch],
        entrants: Sequence[Entrant],
        *,
        states: Mapping[str, Mapping[Tensor, dict[str, Any]]] | None = None,
        noise: NoiseSummary | None = None,
        visit: Visit | None = None,
    ) -> None:
        self._objective, self._sampling, self._held = objective, sampling, list(held)
        self._entrants, self._states = list(entrants), states
        self._noise, self._visit = noise, visit
        self._line = LineSearch(objective)
        self._measured = Measured()

    def run(
        self,
        tracks: Sequence[Track],
        *,
        seconds: float,
        least: int = LEAST_DRAWS,
        most: int = MOST_DRAWS,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Measured:
        """Measure until ``most`` draws are made in every track, or the time is over.

        Args:
            tracks: what is done to the gradients.
            seconds: time.
            least: draws that are made in the first track, whatever the time.
            most: draws of each method in a track.
            progress: called with the share that is done.
        """
        started = time.perf_counter()
        courses = [_Course(self, track, number) for number, track in enumerate(tracks)]
        variances = any(one.within_batch for one in self._entrants)
        for batch in self._sampling.stream():
            grads = self._gradient(batch, variances)
            for course in courses:
                if course.draws < most:
                    course.observe(grads)
            made = min(course.draws for course in courses)
            share = (time.perf_counter() - started) / max(seconds, 1e-9)
            progress(min(1.0, max(share if least < most else 0.0, made / most)))
            if made >= most or (share >= 1 and courses[0].draws >= least):
                break
            del grads  # so that only one gradient is in memory
        for course in courses:
            self._measured.decreases += course.found
        self._measured.evaluations = self._line.evaluations
        return self._measured

    def _gradient(self, batch: Batch, variances: bool) -> list[Tensor]:
        objective = self._objective
        if variances:
            with within_batch_variance(objective.model):
                loss = objective.gradient(batch)
        else:
            loss = objective.gradient(batch)
        self._sampling.note_state()
        self._measured.gradients += 1
        grads = [
            _gradient_of(name, p) for name, p in zip(objective.names, objective.params, strict=True)
        ]
        _refuse_not_finite(loss, objective.names, grads)
        if self._noise is not None:
            self._noise.observe(grads)
        return grads


class _Course:
    """The methods of one track, with their step sizes and the decreases measured so far."""

    def __init__(self, measurement: Measurement, track: Track, number: int) -> None:
        self._all, self._track, self._number = measurement, track, number
        entrants = measurement._entrants
        states = measurement._states
        if track.batches > 1 or track.rotation:  # averages and variances are of other gradients
            entrants, states = [one for one in entrants if not one.within_batch], None
        self._directions = Directions(measurement._objective.params, entrants, states)
        self._block = block_length(entrants)
        warm = 1 if states else _WARM_UP
        self._left = self._block * (warm if self._block > 1 else 1)
        self._tries = 0
        self._grids: dict[str, Decreases] = {}
        self.draws = 0

    @property
    def found(self) -> list[Decreases]:
        return [one for one in self._grids.values() if one.rows]

    def observe(self, grads: list[Tensor]) -> None:
        taken = self._track.take(grads)
        if taken is None:
            return
        self._left -= 1
        wanted = self._left == 0
        if not wanted:
            self._directions.observe(taken)
            return
        self._left = self._block
        directions = ((key, self._track.back(z)) for key, z in self._directions.draw(taken))
        if self._tries < _TRIES and len(self._grids) < len(self._directions.entrants):
            self._tries += 1
            self._try(directions)
        else:
            self._draw(directions)

    def _try(self, directions: Iterable[tuple[str, list[Tensor]]]) -> None:
        """Find roughly the best step size of each method, on a draw that does not count.

        If a draw lowers the loss at no step size, the next draw is tried. If none does, the grid is
        laid about the step size that changes the parameters a little.
        """
        line, pool = self._all._line, self._all._held[:_PILOTS]
        for key, direction in directions:
            if key in self._grids:
                continue
            lr = line.best_of(direction, pool)
            if not lr and self._tries == _TRIES:
                lr = line.small_step(direction)
                if not lr:
                    finite = all(bool(part.isfinite().all()) for part in direction)
                    what = "0" if finite else "not finite"
                    self._all._measured.still.append((self._track.name, key, what))
            if lr:
                self._grids[key] = Decreases(key, self._track.name, grid_about(lr))

    def _draw(self, directions: Iterable[tuple[str, list[Tensor]]]) -> None:
        pool = self._all._held
        at = [(HELD_A_DRAW * self.draws + n) % len(pool) for n in range(HELD_A_DRAW)]
        batches = [pool[n] for n in dict.fromkeys(at)]
        for key, direction in directions:
            found = self._grids.get(key)
            if found is None:
                continue
            decreases = self._all._line.decreases(direction, found.lrs, batches)
            found.rows.append(decreases.mean(axis=1))
            if self._all._visit is not None and not self._number:
                self._all._visit(key, direction, batches)
        self.draws += 1


def _refuse_not_finite(loss: float, names: Sequence[str], grads: list[Tensor]) -> None:
    """Raise DissectionError if a loss or a gradient is NaN or infinite."""
    what = f"the loss of a batch is {loss}"
    if math.isfinite(loss):
        largest = torch.stack(
            [norm.double().cpu() for norm in torch._foreach_norm(grads, math.inf)]
        )
        if largest.isfinite().all():
            return
        what = f"the gradient of {names[int(largest.isfinite().logical_not().nonzero()[0])]!r} is "
        what += "not finite on a batch"
    raise DissectionError(
        f"{what}, at the current parameters, so no average of gradients is finite. Look for bad "
        "examples, or for a root or logarithm at 0"
    )


def _gradient_of(name: str, param: Tensor) -> Tensor:
    """Return a parameter's gradient; 0 where the loss does not depend on it."""
    if param.grad is not None and param.grad.layout is not torch.strided:
        raise SparseGradient(
            f"the gradient of {name!r} is sparse; make it dense to dissect the model, for instance "
            "nn.Embedding(..., sparse=False)"
        )
    return param.new_zeros(param.shape) if param.grad is None else param.grad
