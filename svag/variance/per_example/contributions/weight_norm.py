"""Contributions to the direction and the length of a weight norm."""

import functools

import torch
from torch import Tensor

from svag.variance.per_example.contributions.base import (
    Contributions,
    Direct,
    Estimate,
    Products,
    refuse_one,
    unbiased,
)
from svag.variance.per_example.contributions.pulled_back import PulledBack


class WeightNorm:
    """Contributions to the weight norm w = g v / |v|, for those to v and g.

        dg = <c, v>/|v|        dv = g/|v| (c - v <c, v>/|v|^2)

    Args:
        inner: contributions c to w.
        v: direction.
        g: length, one for each row along ``dim``.
        dim: dimension of the rows, which are normalised over all other dimensions; -1: v is
            normalised as a whole.
    """

    def __init__(self, inner: Contributions, v: Tensor, g: Tensor, dim: int) -> None:
        self.inner, self.v, self.g, self.dim = inner, v.detach(), g.detach(), dim

    @functools.cached_property
    def norm(self) -> Tensor:
        """|v|, of the shape of g."""
        return torch.norm_except_dim(self.v, 2, self.dim)

    @property
    def is_dense(self) -> bool:
        """Whether w is the weight of a dense layer without positions."""
        inner = self.inner
        return type(inner) is Products and self.dim == 0 and inner.deltas.shape[1] == 1

    @functools.cached_property
    def estimates(self) -> tuple[Estimate, Estimate]:
        """Sum and variance for v and g of a dense layer, without any c_k.

        With a_k = <c_k, v>/|v| and u = v/|v|, an entry of dv is g/|v| times delta_k x_k - a_k u. It
        is computed in float64, because of cancellation, and in blocks of rows that fit the cache.
        """
        inner = self.inner
        assert isinstance(inner, Products)
        refuse_one(inner.examples)
        delta, x = inner.deltas.flatten(0, 1).double(), inner.inputs.flatten(0, 1).double()
        total, variance = torch.empty_like(self.v), torch.empty_like(self.v)
        lengths = delta.new_empty(delta.shape)
        step = max(1, _BLOCK_BYTES // max(1, 8 * x.shape[1]))
        for low in range(0, len(total), step):
            rows = slice(low, low + step)
            lengths[:, rows] = self._block(rows, delta[:, rows], x, total[rows], variance[rows])
        of_length = Direct(lengths.unsqueeze(-1)).estimate(_BLOCK_BYTES)
        dtype = inner.deltas.dtype
        return Estimate(total, variance), Estimate(
            *(t.to(dtype).view(self.g.shape) for t in of_length)
        )

    def _block(
        self, rows: slice, delta: Tensor, x: Tensor, total: Tensor, variance: Tensor
    ) -> Tensor:
        """Fill in sum and variance of some rows of dv; return their a_k, ``(B, rows)``."""
        unit = self.v[rows].double()
        norm = unit.norm(dim=1, keepdim=True)
        unit.div_(norm)
        scale = self.g[rows].view(-1, 1).double() / norm
        along = delta * (x @ unit.t())
        sums = (delta.t() @ x).addcmul_(unit, along.sum(0).unsqueeze(1), value=-1)
        squares = ((delta * along).t() @ x).mul_(-2)
        squares.addcmul_(unit, along.square().sum(0).unsqueeze(1)).mul_(unit)
        squares.addmm_(delta.square().t(), x.square()).clamp_(min=0)
        total.copy_(sums.mul_(scale))
        variance.copy_(unbiased(squares.mul_(scale.square()), sums, len(x)))
        return along

    def pulled(self, c: Tensor, *, of_length: bool) -> Tensor:
        """Apply the transposed Jacobian to contributions ``(b, *shape of w)``.

        Args:
            c: contributions.
            of_length: whether to return those to g, instead of v.
        """
        unit = self.v / self.norm
        over = [d + 1 for d in range(self.v.dim()) if d != self.dim]
        along = (c * unit).sum(over, keepdim=True)
        if of_length:
            return along.reshape(-1, *self.g.shape)
        return self.g / self.norm * (c - unit * along)


_BLOCK_BYTES = 2**19


class WeightNormed(PulledBack):
    """Contributions to the direction or the length of a weight norm.

    Args:
        weight_norm: both.
        of_length: whether these are the contributions to the length.
    """

    def __init__(self, weight_norm: WeightNorm, *, of_length: bool) -> None:
        leaf = weight_norm.g if of_length else weight_norm.v
        super().__init__(weight_norm.inner, weight_norm.v, leaf)
        self._weight_norm, self._of_length = weight_norm, of_length

    def rows(self, low: int, high: int) -> Tensor:
        """Apply the transposed Jacobian to each example's contribution."""
        c = self.inner.chunk(low, high)
        return self._weight_norm.pulled(c, of_length=self._of_length).contiguous()

    def total(self, max_bytes: int) -> Tensor:
        """Apply the transposed Jacobian to the sum of contributions."""
        c = self.inner.total(max_bytes).unsqueeze(0)
        return self._weight_norm.pulled(c, of_length=self._of_length)[0]

    def estimate(self, max_bytes: int) -> Estimate:
        """Return sum and variance; for a dense layer without positions, without any c_k."""
        if not self._weight_norm.is_dense:
            return super().estimate(max_bytes)
        return self._weight_norm.estimates[self._of_length]
