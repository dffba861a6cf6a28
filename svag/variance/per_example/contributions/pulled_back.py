"""Contributions to a parameter from those to a tensor that was computed from it."""

import torch
from torch import Tensor

from svag.variance.per_example.contributions.base import Contributions


class PulledBack(Contributions):
    """Contributions to a parameter from those to a tensor computed from it (a transpose, a slice).

    Args:
        inner: contributions to the computed tensor.
        computed: the computed tensor, in a retained graph that starts at ``leaf``.
        leaf: a copy of the parameter.
    """

    def __init__(self, inner: Contributions, computed: Tensor, leaf: Tensor) -> None:
        self.inner, self.computed, self.leaf, self.like = inner, computed, leaf, leaf
        self.examples = inner.examples
        self.shape = leaf.shape
        size = leaf.numel() + computed.numel()
        self.example_bytes = inner.example_bytes + size * leaf.element_size()

    @property
    def innermost(self) -> Contributions:
        """The contributions to the computed tensor."""
        return self.inner.innermost

    def rows(self, low: int, high: int) -> Tensor:
        """Apply the transposed Jacobian to each example's contribution."""
        return pull_back(self.inner.chunk(low, high), self.computed, self.leaf, batched=True)

    def total(self, max_bytes: int) -> Tensor:
        """Apply the transposed Jacobian to the sum of contributions."""
        total = self.inner.total(max_bytes)
        return pull_back(total, self.computed, self.leaf, batched=False)


def pull_back(gradient: Tensor, computed: Tensor, leaf: Tensor, *, batched: bool) -> Tensor:
    """Return the gradient of ``leaf`` given that of ``computed``.

    Args:
        gradient: gradient of ``computed``, with a first dimension of examples if ``batched``.
        computed: a tensor in a graph that starts at ``leaf``.
        leaf: the leaf.
        batched: whether ``gradient`` and the result have a first dimension of examples.
    """
    if computed is leaf:
        return gradient
    (result,) = torch.autograd.grad(
        computed,
        leaf,
        gradient,
        retain_graph=True,
        is_grads_batched=batched,
        materialize_grads=True,
    )
    return result.detach().contiguous()  # torch 2.9 makes zeros that require gradients
