"""Draws of the methods' update directions at frozen parameters.

A method's optimizer steps on *shadows* of the parameters, with step size 1 and the gradients of
mini-batches, while the parameters stay where they are. What a step changes is the direction

    z = -gamma * d                      theta + alpha z is the step with step size alpha

with gamma and d as they are in training, at any row of the table. Averages of consecutive gradients
are correlated: 95 % intervals from draws of m at consecutive steps (beta = 0.9) contain the mean in
38 % of the cases. So a draw is taken once in a *block* of gradients, so long that the weight of
older gradients is at most 4 %, and intervals treat blocks as independent.

A *track* is what is done to the gradients before the methods see them: nothing, averages of several
gradients (a larger batch), or a random rotation R. With z = R^T f(R g) a method f works along axes
that have nothing to do with the parameters.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.anatomy import METHODS
from svag.diagnosis.rotation import Rotation
from svag.entrants import Entrant
from svag.errors import DissectionError, in_one_line
from svag.lab.optimizers import build
from svag.variance import grad_var

_OLDER = 0.04
"""Weight of the gradients before a block in a draw at its end."""


def block_length(entrants: Sequence[Entrant]) -> int:
    """Return the number of gradients from one draw to the next, for the slowest first moment.

    Example:
        >>> from svag.entrants import entrant
        >>> block_length([entrant("m-svag")]), block_length([entrant("sgd")])
        (31, 1)
    """
    slowest = max((_beta(one) for one in entrants), default=0.0)
    return max(1, math.ceil(math.log(_OLDER) / math.log(slowest))) if slowest else 1


def _beta(one: Entrant) -> float:
    """Return the first decay of a method's averages; 0 if it keeps none."""
    if one.anatomy is None:
        return METHODS["m-sgd"].betas[0]
    return float(one.betas[0]) if one.betas and one.anatomy.buffers else 0.0


@dataclass
class Track:
    """What is done to the gradients before the methods see them.

    Attributes:
        batches: mini-batches whose gradients are averaged.
        rotation: the map R, or None.
    """

    batches: int = 1
    rotation: Rotation | None = None
    _sum: list[Tensor] = field(default_factory=list, repr=False)
    _count: int = 0

    @property
    def name(self) -> str:
        """``plain``, ``rotated``, or ``batch x 4``."""
        if self.rotation is not None:
            return "rotated"
        return "plain" if self.batches == 1 else f"batch x {self.batches}"

    def take(self, grads: list[Tensor]) -> list[Tensor] | None:
        """Return what the methods see, or None while gradients are averaged."""
        if self.batches > 1:
            if not self._sum:
                self._sum = [torch.zeros_like(g) for g in grads]
            torch._foreach_add_(self._sum, grads)
            self._count += 1
            if self._count < self.batches:
                return None
            grads = list(torch._foreach_div(self._sum, float(self.batches)))
            torch._foreach_zero_(self._sum)
            self._count = 0
        return grads if self.rotation is None else self.rotation.apply(grads)

    def back(self, direction: list[Tensor]) -> list[Tensor]:
        """Return a direction in the coordinates of the parameters."""
        return direction if self.rotation is None else self.rotation.inverse(direction)


class Directions:
    """The optimizers of some methods, stepping on shadows of the parameters.

    Args:
        params: the parameters; they and their gradients are only read.
        entrants: the methods, svag's own or from outside.
        states: states to start from, by method and parameter, as in ``optimizer.state``.

    Raises:
        DissectionError: a method from outside cannot step on copies of the parameters.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        entrants: Sequence[Entrant],
        states: Mapping[str, Mapping[Tensor, dict[str, Any]]] | None = None,
    ) -> None:
        self._params = list(params)
        self.entrants = list(entrants)
        self._shadows = [torch.zeros_like(p, requires_grad=True) for p in params]
        self._own = {
            e.key: self._optimizer(e, (states or {}).get(e.key, {}))
            for e in entrants
            if not e.outside
        }
        self._outside = {e.key: _Outside(e, params) for e in entrants if e.outside}
        self.needs_variance = any(e.within_batch for e in entrants)

    def observe(self, grads: list[Tensor]) -> None:
        """Let every method take a gradient in.

        Args:
            grads: one for each parameter; for within-batch rows with a ``grad_var`` on the
                parameters.
        """
        for _ in self.draw(grads):
            pass

    def draw(self, grads: list[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
        """Let every method take a gradient in, and yield its key and direction.

        The tensors of a direction may be overwritten when the next one is requested. Iterate to the
        end.
        """
        for shadow, grad, param in zip(self._shadows, grads, self._params, strict=True):
            shadow.grad = grad
            if self.needs_variance:
                grad_var.attach(shadow, grad_var.current(param))
        values = [shadow.detach() for shadow in self._shadows]
        for one in self.entrants:
            if one.outside:
                yield one.key, self._outside[one.key].observe(grads)
                continue
            self._own[one.key].step()
            yield one.key, values
            torch._foreach_zero_(values)
        for shadow in self._shadows:
            shadow.grad = None

    def _optimizer(self, one: Entrant, states: Mapping[Tensor, dict[str, Any]]) -> Optimizer:
        optimizer = build(one, self._shadows, lr=1.0)
        assert one.anatomy is not None
        for param, shadow in zip(self._params, self._shadows, strict=True):
            state = states.get(param, {})
            if one.anatomy.buffers and all(name in state for name in one.anatomy.buffers):
                kept = ("step", *one.anatomy.buffers)
                optimizer.state[shadow] = {
                    name: state[name].detach().clone()
                    if isinstance(state[name], Tensor)
                    else torch.tensor(float(state[name]))
                    for name in kept
                }
        return optimizer


class _Outside:
    """An optimizer from outside, stepping on float64 copies of the parameters themselves."""

    def __init__(self, one: Entrant, params: Sequence[Tensor]) -> None:
        self._key, self._params = one.key, params
        self._copies = [p.detach().double().requires_grad_() for p in params]
        self._lr = one.lr
        self._optimizer = build(one, self._copies, lr=self._lr)

    def observe(self, grads: list[Tensor]) -> list[Tensor]:
        """Take a step, undo it, and return the change divided by the step size."""
        for copy, grad in zip(self._copies, grads, strict=True):
            copy.grad = grad.double()
        try:
            self._optimizer.step()
        except Exception as error:
            raise DissectionError(
                f"{self._key} cannot step on float64 copies of the parameters: "
                f"{in_one_line(error)}; leave it out"
            ) from error
        direction = []
        with torch.no_grad():
            for copy, param in zip(self._copies, self._params, strict=True):
                direction.append(((copy - param.double()) / self._lr).to(param.dtype))
                copy.copy_(param)
        return direction
