"""First and second derivatives of the loss of one batch."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from svag.diagnosis.curvature.double_backward import FORWARD, TWICE, hidden_constants, refusing
from svag.diagnosis.curvature.flat_vector import Parts
from svag.diagnosis.objective import Batch, Objective, refuse_cut_graph
from svag.errors import DissectionError


class BatchGraph:
    """The loss of one batch with its graph, from which any number of products is taken.

    Call ``objective.restore()`` when the graph is no longer used.

    Args:
        objective: the model and its loss.
        batch: the batch.

    Raises:
        DissectionError: the forward pass fails, or the loss depends on no parameter. Every product
            raises it if torch cannot differentiate twice.
    """

    def __init__(self, objective: Objective, batch: Batch) -> None:
        self._params = objective.params
        with torch.enable_grad(), refusing(FORWARD):
            self._loss, outputs = objective.graph(batch, apart=objective.has_outputs)
        refuse_cut_graph(self._loss)
        self._outputs: list[Tensor] = outputs or []

    @cached_property
    def gradient(self) -> Parts:
        """The gradient, with its graph."""
        with torch.enable_grad(), refusing(TWICE):
            return _pulled_back([self._loss], self._params, [torch.ones_like(self._loss)])

    def hessian_product(self, vector: Sequence[Tensor]) -> Parts:
        """H v: the gradient of (gradient . v)."""
        with torch.enable_grad(), refusing(TWICE):
            return _pulled_back(self.gradient, self._params, vector, create_graph=False)

    def gauss_newton_product(self, vector: Sequence[Tensor]) -> Parts:
        """J^T H_L J v, with the Jacobian J of the outputs and the Hessian H_L of the loss in them.

        J v is computed as the derivative of (J^T u) . v with respect to u, by two backward passes:
        fewer operations of torch support forward-mode differentiation.
        """
        if not self.has_outputs:
            raise DissectionError(
                "the Gauss-Newton matrix needs outputs that depend on the parameters; give "
                "loss_fn(outputs, targets) with outputs in tuples, lists, dictionaries or "
                "dataclasses"
            )
        with torch.enable_grad(), refusing(TWICE):
            tangents = _pulled_back(*self._transposed, vector, create_graph=False)
            bent = _pulled_back(self._output_gradient, self._outputs, tangents, create_graph=False)
            return _pulled_back(self._outputs, self._params, bent, create_graph=False)

    @property
    def has_outputs(self) -> bool:
        """Whether outputs are known that depend on parameters."""
        return bool(self._outputs)

    @property
    def hidden_constants(self) -> list[str]:
        """Custom Functions whose second derivatives may lack a part."""
        with refusing(TWICE):
            return hidden_constants(self._loss)

    @cached_property
    def _transposed(self) -> tuple[Parts, list[Tensor]]:
        """J^T u as a function of u, and u."""
        points = [torch.zeros_like(z, requires_grad=True) for z in self._outputs]
        return _pulled_back(self._outputs, self._params, points), points

    @cached_property
    def _output_gradient(self) -> Parts:
        """The gradient of the loss with respect to the outputs, with its graph."""
        return _pulled_back([self._loss], self._outputs, [torch.ones_like(self._loss)])


def _pulled_back(
    values: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    vector: Sequence[Tensor | None],
    *,
    create_graph: bool = True,
) -> Parts:
    """Vector-Jacobian product of ``values`` with respect to ``inputs``; None stands for 0."""
    pairs = [
        (value, part)
        for value, part in zip(values, vector, strict=True)
        if value is not None and value.requires_grad and part is not None
    ]
    if not pairs:
        return [None] * len(inputs)
    kept, parts = zip(*pairs, strict=True)
    return list(
        torch.autograd.grad(
            kept, inputs, parts, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    )
