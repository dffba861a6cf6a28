"""Products of the loss' Hessian and Gauss-Newton matrix with vectors, at the current parameters.

The loss is the mean of the losses of the batches given, each with its own random numbers, so the
curvature is that of these batches; it is not the curvature of the expected loss. Kinks, such as
that of ReLU at 0, have no part in it: it is the second derivative wherever that exists.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, TypeAlias

import torch
from torch import Tensor

from svag.diagnosis.curvature.batch_graph import BatchGraph
from svag.diagnosis.curvature.derivative_checks import refuse_asymmetric, refuse_unconfirmed
from svag.diagnosis.curvature.double_backward import plain_kernels
from svag.diagnosis.curvature.flat_vector import FlatVectors
from svag.diagnosis.curvature.linear_operator import LinearOperator, length_of
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError

Matrix: TypeAlias = Literal["hessian", "gauss-newton"]


@dataclass(frozen=True, slots=True)
class Forms:
    """Slope and curvature of the loss along a direction v, as Eq. (12) needs them.

    Attributes:
        slope: gradient . v.
        hessian: v^T H v.
        gauss_newton: v^T G v; None if the outputs are not known.
    """

    slope: float
    hessian: float
    gauss_newton: float | None


class Curvature:
    """Second derivatives of the mean loss of held batches, within a context.

        H = d^2 L / d theta^2,    G = mean over batches of J^T H_L J

    with the Jacobian J of the model's outputs and the Hessian H_L of the loss in them; the L2 terms
    of the objective are in both. Within the context the model is in training mode, and fused
    kernels without a second derivative are off; at its end all is as before. The graph of one batch
    is kept in memory. A vector has one tensor for each parameter of the objective.

    Entering the context costs two products with the Hessian of the first batch, which show that the
    loss can be differentiated twice and that the result is symmetric.

    Args:
        objective: the model and its loss.
        batches: the batches.

    Raises:
        DissectionError: (on entering, or by a product) torch cannot differentiate the loss twice,
            or its second derivative is not finite, not symmetric, or hidden in part by a custom
            ``autograd.Function``.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, torch.nn.MSELoss())
        >>> batch = Batch((torch.tensor([[2.0]]), torch.tensor([[1.0]])), seed=0)
        >>> with Curvature(objective, [batch]) as curvature:
        ...     curvature.hessian_product([torch.tensor([[1.0]])])
        [tensor([[8.]])]
    """

    def __init__(self, objective: Objective, batches: Sequence[Batch]) -> None:
        if not batches:
            raise DissectionError("the curvature needs at least one batch; give some")
        self._objective, self._batches = objective, list(batches)
        self._vectors = FlatVectors(objective)
        self._held: tuple[int, BatchGraph] | None = None
        self._context = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as context:
            context.enter_context(self._objective.dissected())
            context.enter_context(plain_kernels(self._objective.model))
            context.callback(self._release)
            self._check()
            self._context = context.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._context.close()

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries of each parameter, by its name, in the order of flat vectors."""
        return self._vectors.sizes

    @property
    def has_gauss_newton(self) -> bool:
        """Whether the model's outputs are known, of which the loss is a function."""
        return self._graph(0).has_outputs

    def gradient(self) -> list[Tensor]:
        """Return the gradient of the mean loss."""
        return self._vectors.parts(self.flat_gradient())

    def hessian_product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """Return H v."""
        return self._product("hessian", vector)

    def gauss_newton_product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """Return G v.

        Raises:
            DissectionError: also if the outputs are not known (``has_gauss_newton``).
        """
        return self._product("gauss-newton", vector)

    def forms(self, vector: Sequence[Tensor]) -> Forms:
        """Return slope and curvature of the mean loss along a direction."""
        return self.forms_along([vector])[0]

    def forms_along(self, vectors: Sequence[Sequence[Tensor]]) -> list[Forms]:
        """Return slopes and curvatures along several directions; cheaper than one by one."""
        directions = torch.stack([self._vectors.flat(vector) for vector in vectors])
        gradient, bent = self.flat_gradient(), self._products("hessian", directions)
        slopes = [_dot(gradient, v) for v in directions]
        hessian = [_dot(v, w) for v, w in zip(directions, bent, strict=True)]
        gauss_newton: list[float | None] = [None] * len(vectors)
        if self.has_gauss_newton:
            bent = self._products("gauss-newton", directions)
            gauss_newton = [_dot(v, w) for v, w in zip(directions, bent, strict=True)]
        return [Forms(*row) for row in zip(slopes, hessian, gauss_newton, strict=True)]

    def operator(self, of: Matrix) -> LinearOperator:
        """Return a matrix as an operator on flat vectors, of all parameters in a row."""
        return LinearOperator(
            partial(self._products, of),
            self._objective.size,
            dtype=self._vectors.dtype,
            device=self._vectors.device,
        )

    def flat_gradient(self) -> Tensor:
        """Return the gradient of the mean loss, of shape (d,)."""
        total = self._vectors.zeros()
        for number in range(len(self._batches)):
            self._vectors.add(total, self._graph(number).gradient)
        total /= len(self._batches)
        self._vectors.refuse_not_finite(total, "the gradient")
        return total

    def start(self, seed: int = 0) -> Tensor:
        """Return a vector of shape (d,) for Lanczos to start from.

        It is mostly the gradient, which has large parts along the extreme eigenvectors, and random
        otherwise, so that no eigenvector is orthogonal to it.
        """
        gradient, drawn = self.flat_gradient(), self.operator("hessian").gaussian(1, seed)[0]
        start, length = 0.3 * drawn / length_of(drawn), length_of(gradient)
        return start + gradient / length if length > 0 else start

    def _check(self) -> None:
        """Refuse a second derivative that does not exist or is wrong, on the first batch."""
        hidden = self._graph(0).hidden_constants
        refuse_asymmetric(self._graph(0), self._vectors)
        if hidden:
            self._release()
            refuse_unconfirmed(hidden[0], self._objective, self._batches[0], self._vectors)

    def _product(self, of: Matrix, vector: Sequence[Tensor]) -> list[Tensor]:
        flat = self._products(of, self._vectors.flat(vector)[None])
        return self._vectors.parts(flat[0])

    def _products(self, of: Matrix, vectors: Tensor) -> Tensor:
        """Multiply flat vectors of shape (k, d); a batch's graph is built once for all of them."""
        totals = torch.zeros_like(vectors)
        for number in range(len(self._batches)):
            self._add_products(of, self._graph(number), vectors, totals)
        totals /= len(self._batches)
        if of == "gauss-newton":
            self._add_decays(totals, vectors)
        for total in totals:
            self._vectors.refuse_not_finite(total, f"the {of} matrix times a vector")
        return totals

    def _add_products(self, of: Matrix, graph: BatchGraph, vectors: Tensor, totals: Tensor) -> None:
        """Add the products with the matrix of one batch."""
        product = graph.hessian_product if of == "hessian" else graph.gauss_newton_product
        for vector, total in zip(vectors, totals, strict=True):
            self._vectors.add(total, product(self._vectors.parts(vector)))

    def _add_decays(self, totals: Tensor, vectors: Tensor) -> None:
        """Add the products with the Hessian of the L2 terms, a diagonal matrix."""
        pieces = zip(self._vectors.pieces(totals), self._vectors.pieces(vectors), strict=True)
        for decay, (total, vector) in zip(self._objective.decays, pieces, strict=True):
            if decay:
                total.add_(vector, alpha=decay)

    def _graph(self, number: int) -> BatchGraph:
        """Return the graph of a batch; the last one used is kept."""
        if self._held is None or self._held[0] != number:
            self._release()
            self._held = number, BatchGraph(self._objective, self._batches[number])
        return self._held[1]

    def _release(self) -> None:
        self._held = None
        self._objective.restore()


def _dot(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dtype=torch.float64))
