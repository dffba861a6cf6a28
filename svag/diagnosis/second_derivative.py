"""Refuses second derivatives that torch computes wrongly without raising an error."""

import torch
from torch import Tensor

from svag.diagnosis.batch_graph import BatchGraph
from svag.diagnosis.flat_vector import FlatVectors
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError

_ASYMMETRY = 0.02
"""Relative asymmetry that may be rounding: under bfloat16 it is up to 0.007."""

_NOISE = 1e-3
"""What rounding may leave of a product that is 0, relative to a product that is not."""

_DISAGREEMENT = 0.1
_RELATIVE_STEPS = (1e-2, 1e-3, 1e-4)


def refuse_asymmetric(graph: BatchGraph, vectors: FlatVectors) -> None:
    """Raise DissectionError if H is not symmetric, by two products.

    With a random unit vector v, and u along what of H v is orthogonal to v, a symmetric H has
    v . H u = u . H v.
    """
    vector = _direction(vectors)
    first = _product(graph, vectors, vector)
    across = first - (vector @ first) * vector
    length = float(across.norm())
    if length == 0:
        return
    second = _product(graph, vectors, across / length)
    off = abs(float(vector @ second) - length)
    if off > _ASYMMETRY * length + _NOISE * float(second.norm()):
        raise DissectionError(
            f"the second derivative is not symmetric ({off / length:.0%} off), so torch computes it "
            "wrongly: the backward pass of an operation is not made of operations that torch can "
            "differentiate. Replace that operation, such as a fused kernel, to see the curvature"
        )


def refuse_hidden(objective: Objective, batch: Batch, vectors: FlatVectors) -> None:
    """Raise DissectionError if custom Functions hide a part of H.

    If a Function may keep tensors that torch takes for constant, H v is compared with
    [g(theta + h v) - g(theta - h v)] / 2h of the gradient g, at several h.
    """
    graph = BatchGraph(objective, batch)
    if names := graph.hidden_constants:
        vector = _direction(vectors)
        product = _product(graph, vectors, vector)
        length = float(vectors.flat(graph.gradient).norm())
        del graph
        objective.restore()
        reach = length / max(float(product.norm()), 1e-3 * length) if length else 1.0
        off = min(
            _disagreement(objective, batch, vectors, vector, product, reach * step)
            for step in _RELATIVE_STEPS
        )
        if off > _DISAGREEMENT:
            raise DissectionError(
                f"differences of gradients do not confirm the second derivative ({off:.0%} off): "
                f"the custom Function {names[0]} keeps a tensor that torch takes for constant. Save "
                "only inputs and outputs for its backward pass, or dissect without it"
            )
    objective.restore()


def _disagreement(
    objective: Objective,
    batch: Batch,
    vectors: FlatVectors,
    vector: Tensor,
    product: Tensor,
    step: float,
) -> float:
    """Relative difference of H v from a difference of gradients."""
    start = [param.detach().clone() for param in objective.params]
    measured = vectors.zeros()
    for side in (1.0, -1.0):
        with torch.no_grad():
            for param, value, part in zip(
                objective.params, start, vectors.parts(side * step * vector), strict=True
            ):
                param.copy_(value + part)
        measured += side / (2 * step) * vectors.flat(BatchGraph(objective, batch).gradient)
        objective.restore()
    with torch.no_grad():
        for param, value in zip(objective.params, start, strict=True):
            param.copy_(value)
    length = max(float(measured.norm()), float(product.norm()))
    return float((measured - product).norm()) / length if length else 0.0


def _product(graph: BatchGraph, vectors: FlatVectors, vector: Tensor) -> Tensor:
    product = vectors.flat(graph.hessian_product(vectors.parts(vector)))
    vectors.refuse_not_finite(product, "the Hessian times a vector")
    return product


def _direction(vectors: FlatVectors) -> Tensor:
    """A random unit vector."""
    generator = torch.Generator().manual_seed(0)
    like = vectors.zeros()
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    return drawn / drawn.norm()
