"""Refuses second derivatives that torch computes wrongly without raising an error."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from svag.diagnosis.curvature.batch_graph import BatchGraph
from svag.diagnosis.curvature.flat_vector import FlatVectors
from svag.diagnosis.curvature.linear_operator import length_of
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError

_ASYMMETRY = 0.02
"""Relative asymmetry that may be rounding: under bfloat16 it is up to 0.007."""

_NOISE = 1e-3
"""Largest relative size of a product that counts as 0 with rounding errors."""

_DISAGREEMENT = 0.1
_RELATIVE_STEPS = (1e-2, 1e-3, 1e-4)


def refuse_asymmetric(graph: BatchGraph, vectors: FlatVectors) -> None:
    """Raise DissectionError if H is not symmetric, by two products.

    With a random unit vector v, and u along the component of H v that is orthogonal to v, a
    symmetric H has v . H u = u . H v.
    """
    vector = _direction(vectors)
    first = _product(graph, vectors, vector)
    across = first - (vector @ first) * vector
    length = length_of(across)
    if length == 0:
        return
    second = _product(graph, vectors, across / length)
    off = abs(float(vector @ second) - length)
    if off > _ASYMMETRY * length + _NOISE * length_of(second):
        raise DissectionError(
            f"the second derivative is not symmetric ({off / length:.0%} off), so torch computes "
            "it wrongly: the backward pass of an operation, such as a fused kernel, is not made of "
            "operations that torch can differentiate. Replace it to see the curvature"
        )


def refuse_unconfirmed(
    function: str, objective: Objective, batch: Batch, vectors: FlatVectors
) -> None:
    """Raise DissectionError if H v differs from [g(theta + h v) - g(theta - h v)] / 2h at every h.

    The gradient g jumps at kinks, such as those of ReLU, so a correct product may be refused, too.

    Args:
        function: name of the custom Function that may keep tensors that torch takes for constant.
        objective: the loss.
        batch: the batch.
        vectors: vectors over its parameters.
    """
    graph, vector = BatchGraph(objective, batch), _direction(vectors)
    product, length = _product(graph, vectors, vector), length_of(vectors.flat(graph.gradient))
    del graph
    objective.restore()
    reach = length / max(length_of(product), 1e-3 * length) if length else 1.0
    off = min(
        _disagreement(objective, batch, vectors, vector, product, reach * step)
        for step in _RELATIVE_STEPS
    )
    if off > _DISAGREEMENT:
        raise DissectionError(
            f"differences of gradients do not confirm the second derivative ({off:.0%} off): the "
            f"custom Function {function} keeps a tensor that torch takes for constant. Save only "
            "inputs and outputs for its backward pass, or dissect without it"
        )


def _disagreement(
    objective: Objective,
    batch: Batch,
    vectors: FlatVectors,
    vector: Tensor,
    product: Tensor,
    step: float,
) -> float:
    """Relative difference of H v from a difference of gradients."""
    measured = vectors.zeros()
    for side in (1.0, -1.0):
        with _moved(objective.params, vectors.parts(side * step * vector)):
            measured += side / (2 * step) * vectors.flat(BatchGraph(objective, batch).gradient)
        objective.restore()
    length = max(length_of(measured), length_of(product))
    return length_of(measured - product) / length if length else 0.0


@contextlib.contextmanager
def _moved(params: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add steps to parameters, and take them back at the end."""
    start = [param.detach().clone() for param in params]
    try:
        with torch.no_grad():
            for param, step in zip(params, steps, strict=True):
                param += step
        yield
    finally:
        with torch.no_grad():
            for param, value in zip(params, start, strict=True):
                param.copy_(value)


def _product(graph: BatchGraph, vectors: FlatVectors, vector: Tensor) -> Tensor:
    product = vectors.flat(graph.hessian_product(vectors.parts(vector)))
    vectors.refuse_not_finite(product, "the Hessian times a vector")
    return product


def _direction(vectors: FlatVectors) -> Tensor:
    """A random unit vector."""
    generator = torch.Generator().manual_seed(0)
    like = vectors.zeros()
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    return drawn / length_of(drawn)
