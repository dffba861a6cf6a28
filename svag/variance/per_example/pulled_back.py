"""Contributions to a parameter from those to a tensor that was computed from it."""

import torch
from torch import Tensor

from svag.variance.per_example.contributions import (
    Contributions,
    Direct,
    Estimate,
    Products,
    refuse_one,
    unbiased,
)


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


class WeightNormed(PulledBack):
    """Contributions to the direction v or the length g of a weight norm w = g v / |v|.

        dg = <c, v>/|v|        dv = g/|v| (c - v <c, v>/|v|^2)

    Args:
        inner: contributions to w.
        v: direction.
        g: length, one for each row along ``dim``.
        dim: dimension of the rows, which are normalised over all other dimensions; -1: v is
            normalised as a whole.
        of_length: whether the contributions are to g, instead of v.
    """

    def __init__(
        self, inner: Contributions, v: Tensor, g: Tensor, dim: int, *, of_length: bool
    ) -> None:
        super().__init__(inner, v, g if of_length else v)
        self._v, self._length, self._dim = v.detach(), g.detach(), dim
        self._norm = torch.norm_except_dim(self._v, 2, dim)
        self._of_length = of_length

    def rows(self, low: int, high: int) -> Tensor:
        """Apply the transposed Jacobian, by the formulas above."""
        return self._pulled(self.inner.chunk(low, high)).contiguous()

    def total(self, max_bytes: int) -> Tensor:
        """Apply the transposed Jacobian to the sum of contributions."""
        return self._pulled(self.inner.total(max_bytes).unsqueeze(0))[0]

    def estimate(self, max_bytes: int) -> Estimate:
        """Return sum and variance; for a dense layer without positions, without any c_k.

        In float64, because of cancellation when the part along v is subtracted from squares.
        """
        inner = self.inner
        dense = type(inner) is Products and self._dim == 0 and inner.deltas.shape[1] == 1
        if not dense:
            return super().estimate(max_bytes)
        refuse_one(self.examples)
        assert isinstance(inner, Products)
        delta, x = inner.deltas.flatten(0, 1).double(), inner.inputs.flatten(0, 1).double()
        unit = (self._v / self._norm).double()
        along = delta * (x @ unit.t())  # <c_k, v>/|v|, (B, out)
        if self._of_length:
            estimate = Direct(along.unsqueeze(-1)).estimate(max_bytes)
        else:
            estimate = self._of_direction(delta, x, unit, along)
        dtype = inner.deltas.dtype
        return Estimate(*(t.to(dtype).view(self.shape) for t in estimate))

    def _of_direction(self, delta: Tensor, x: Tensor, unit: Tensor, along: Tensor) -> Estimate:
        scale = (self._length / self._norm).double()
        total = (delta.t() @ x).addcmul_(unit, along.sum(0).unsqueeze(1), value=-1)
        squares = delta.square().t() @ x.square()
        squares.addcmul_(unit, (delta * along).t() @ x, value=-2)
        squares.addcmul_(unit.square(), along.square().sum(0).unsqueeze(1)).clamp_(min=0)
        total, squares = total.mul_(scale), squares.mul_(scale.square())
        return Estimate(total, unbiased(squares, total, self.examples))

    def _pulled(self, c: Tensor) -> Tensor:
        unit = self._v / self._norm
        over = [d + 1 for d in range(self._v.dim()) if d != self._dim]
        along = (c * unit).sum(over, keepdim=True)
        if self._of_length:
            return along.reshape(-1, *self.shape)
        return self._length / self._norm * (c - unit * along)


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
    return result.contiguous()
