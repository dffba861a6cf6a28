"""The contributions c_k of examples to the gradient of a parameter, and the variance of their sum.

With p.grad = sum_k c_k over B examples, the unbiased variance of each entry of p.grad is

    grad_var = (B sum_k c_k^2 - p.grad^2) / (B - 1)              (supplement, section 4)

for any scaling of the loss. Each class computes the c_k in its own way.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from svag.errors import TooFewSamples
from svag.variance.per_example.contributions.moments import Moments
from svag.variance.per_example.owners.placement import Layout, Scattered, row_selector

DEFAULT_MAX_BYTES = 2**28
_CACHE_BYTES = 2**22  # of per-example gradients at a time, for each thread of a CPU


class Estimate(NamedTuple):
    """A gradient and the variance of its entries."""

    total: Tensor
    variance: Tensor


class Contributions(ABC):
    """The contributions of the examples through one use of a parameter.

    Attributes:
        examples: B, the number of examples.
        shape: shape of the parameter.
        example_bytes: memory of one example's contribution in :meth:`rows`.
        like: a tensor of the contributions' dtype and device.
    """

    examples: int
    shape: torch.Size
    example_bytes: int
    like: Tensor

    @property
    def innermost(self) -> "Contributions":
        """The contributions that these are computed from: to a tensor made from the parameter."""
        return self

    @abstractmethod
    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k for low <= k < high in a new tensor, in any order of a c_k's entries."""

    def arranged(self, rows: Tensor) -> Tensor:
        """Rearrange the result of :meth:`rows` to ``(b, *shape)``."""
        return rows

    def chunk(self, low: int, high: int) -> Tensor:
        """Return c_k for low <= k < high, ``(high - low, *shape)``."""
        return self.arranged(self.rows(low, high))

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        return sum_of(self.chunk(low, high).sum(0) for low, high in self.chunks(max_bytes))

    def estimate(self, max_bytes: int) -> Estimate:
        """Return sum_k c_k and its variance, with at most ``max_bytes`` (or one example) at a time.

        It sums c_k - c_0, to avoid cancellation if the mean is much larger than the deviations.
        """
        refuse_one(self.examples)
        shift = self.rows(0, 1)
        moments = Moments(shift.flatten())
        for low, high in self.chunks(max_bytes):
            moments.add(self.rows(low, high).reshape(high - low, -1))
        variance = unbiased(moments.squares, moments.total, self.examples)
        total = moments.total.add_(shift.flatten(), alpha=self.examples)
        return Estimate(*(self.arranged(t.view_as(shift))[0] for t in (total, variance)))

    def chunks(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of examples that fit the cache on a CPU, or ``max_bytes`` elsewhere."""
        threads = torch.get_num_threads()
        room = min(max_bytes, threads * _CACHE_BYTES) if _on_cpu(self.like) else max_bytes
        step = max(1, room // max(1, self.example_bytes))
        step -= step % threads if step > threads else 0
        for low in range(0, self.examples, step):
            yield low, min(low + step, self.examples)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def unbiased(squares: Tensor, total: Tensor, examples: int) -> Tensor:
    """Return (B squares - total^2)/(B - 1), clamped at 0, in the memory of ``squares``.

    Args:
        squares: sum_k c_k^2; overwritten.
        total: sum_k c_k, of the same shape.
        examples: B.
    """
    squares.mul_(examples / (examples - 1))
    return squares.addcmul_(total, total, value=-1 / (examples - 1)).clamp_(min=0)


def refuse_one(examples: int) -> None:
    """Raise unless there are two examples."""
    if examples < 2:
        raise TooFewSamples(
            f"the mini-batch has {examples} example{'' if examples else 's'}: one gradient has no "
            "spread; give two or more (drop_last=True of a DataLoader leaves a last batch of one "
            "out), or accumulate in svag.micro_batch_variance"
        )


def sum_of(tensors: Iterator[Tensor]) -> Tensor:
    """Add tensors up in the memory of the first."""
    result = next(tensors)
    for tensor in tensors:
        result = result.add_(tensor)
    return result


class Direct(Contributions):
    """Contributions that are given as a tensor ``(B, *shape)``."""

    def __init__(self, values: Tensor) -> None:
        self.values = self.like = values
        self.examples = values.shape[0]
        self.shape = values.shape[1:]
        self.example_bytes = values[0].numel() * values.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return a copy of c_k for low <= k < high."""
        return self.values[low:high].clone()

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        return self.values.sum(0)


class Products(Contributions):
    """c_k = sum_n delta_kn x_kn^T over positions n, as for the weight of a dense layer.

    Args:
        deltas: gradients of the outputs, ``(B, N, out)``.
        inputs: inputs of the layer, ``(B, N, in)``.
    """

    def __init__(self, deltas: Tensor, inputs: Tensor) -> None:
        self.deltas, self.inputs, self.like = deltas, inputs, deltas
        self.examples = deltas.shape[0]
        self.shape = torch.Size((deltas.shape[2], inputs.shape[2]))
        self.example_bytes = self.shape.numel() * deltas.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k by a batched matrix product."""
        return torch.bmm(self.deltas[low:high].transpose(1, 2), self.inputs[low:high])

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k in one product."""
        return self.deltas.flatten(0, 1).t() @ self.inputs.flatten(0, 1)

    def estimate(self, max_bytes: int) -> Estimate:
        """Return sum and variance; for N = 1 without any c_k: sum_k c_k^2 is (delta^2)^T (x^2)."""
        if self.deltas.shape[1] != 1:
            return super().estimate(max_bytes)
        refuse_one(self.examples)
        return Estimate(total := self.total(max_bytes), self._closed_form(total))

    def _closed_form(self, total: Tensor) -> Tensor:
        """Return the variance for N = 1, in blocks of outputs that fit the cache on a CPU."""
        scale = 1 / (self.examples - 1)
        deltas, inputs = self.deltas.flatten(0, 1).square().t(), self.inputs.flatten(0, 1).square()
        variance = torch.empty_like(total)
        row_bytes = total.shape[1] * total.element_size()
        room = torch.get_num_threads() * _CACHE_BYTES
        step = max(1, room // max(1, row_bytes)) if _on_cpu(total) else len(total)
        for low in range(0, len(total), step):
            block = torch.square(total[low : low + step], out=variance[low : low + step])
            block.addmm_(deltas[low : low + step], inputs, beta=-scale, alpha=self.examples * scale)
            block.clamp_(min=0)
        return variance


class Einsums(Contributions):
    """c_k = einsum of the output's gradient and data, for each example.

    Args:
        equation: einsum equation of the operands and the result ``(B, *shape)``; the examples'
            letter is the first of every term.
        operands: gradient of the output, then the data, ``(B, ...)`` each.
        shape: shape of the parameter.
    """

    def __init__(self, equation: str, operands: Sequence[Tensor], shape: torch.Size) -> None:
        self.equation, self.operands, self.shape = equation, operands, shape
        self.like, self.examples = operands[0], operands[0].shape[0]
        self.example_bytes = shape.numel() * self.like.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k by the equation."""
        parts = [t[low:high] for t in self.operands]
        return torch.einsum(self.equation, *parts).contiguous()

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k, by the equation that also sums over examples."""
        left, _, right = self.equation.partition("->")
        return torch.einsum(f"{left}->{right[1:]}", *self.operands)


class Rows(Contributions):
    """c_k adds delta_kn to row ``indices[k, n]`` for all n, as for the weight of an embedding.

    Args:
        deltas: gradients of the outputs, ``(B, N, width)``, 0 at positions that do not count.
        indices: row of each position, ``(B, N)``.
        height: number of rows of the parameter.
    """

    def __init__(self, deltas: Tensor, indices: Tensor, height: int) -> None:
        self.deltas, self.indices, self.height, self.like = deltas, indices, height, deltas
        self.examples = deltas.shape[0]
        self.shape = torch.Size((height, deltas.shape[2]))
        self.example_bytes = self.shape.numel() * deltas.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k as dense tensors."""
        keys = self._keys()[low:high] - low * self.height
        result = self.deltas.new_zeros((high - low) * self.height, self.shape[1])
        result.index_add_(0, keys.flatten(), self.deltas[low:high].flatten(0, 1))
        return cast(Tensor, result.unflatten(0, (high - low, self.height)))

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        result = self.deltas.new_zeros(self.shape)
        return result.index_add_(0, self.indices.flatten(), self.deltas.flatten(0, 1))

    def estimate(self, max_bytes: int) -> Estimate:
        """Sum each example's positions with the same row, then square; without dense c_k."""
        refuse_one(self.examples)
        keys, place = torch.unique(self._keys().flatten(), return_inverse=True)
        sums = self.deltas.new_zeros(len(keys), self.shape[1])
        sums.index_add_(0, place, self.deltas.flatten(0, 1))
        rows = keys.remainder(self.height)
        total = self.deltas.new_zeros(self.shape).index_add_(0, rows, sums)
        squares = self.deltas.new_zeros(self.shape).index_add_(0, rows, sums.square_())
        return Estimate(total, unbiased(squares, total, self.examples))

    def _keys(self) -> Tensor:
        owner = torch.arange(self.examples, device=self.indices.device)
        return self.indices + owner.unsqueeze(1) * self.height


class PlacedRows(Contributions):
    """Contributions to a parameter that has its own rows for each example: c_k is 0 in all others.

    Args:
        delta: gradient of the parameter.
        where: mark that says which example each row belongs to.
    """

    def __init__(self, delta: Tensor, where: Layout | Scattered) -> None:
        self.delta, self.where, self.like = delta, where, delta
        self.examples = where.examples
        self.shape = delta.shape
        self.example_bytes = delta.numel() * delta.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k: zero but for example k's rows of the gradient."""
        result = self.delta.new_zeros(high - low, *self.shape)
        dim = self.where.dim
        for k in range(low, high):
            rows = row_selector(self.where, self.delta, k)
            result[k - low].index_copy_(dim, rows, self.delta.index_select(dim, rows))
        return result

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k, the gradient itself."""
        return self.delta.clone()


class Shared(Contributions):
    """A gradient that does not depend on the examples, such as a penalty's: every c_k is delta / B.

    Args:
        delta: gradient of the parameter.
        examples: B, the number of examples.
    """

    def __init__(self, delta: Tensor, examples: int) -> None:
        self.delta, self.examples, self.like = delta, examples, delta
        self.shape = delta.shape
        self.example_bytes = delta.numel() * delta.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k, the gradient divided by B."""
        return (self.delta / self.examples).expand(high - low, *self.shape).clone()

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k, the gradient itself."""
        return self.delta.clone()


class Joint(Contributions):
    """Several uses of one parameter; c_k is the sum of example k's contributions."""

    def __init__(self, uses: Sequence[Contributions]) -> None:
        self.uses = _merged(uses)
        self.like = uses[0].like
        self.examples = uses[0].examples
        self.shape = uses[0].shape
        self.example_bytes = 2 * max(use.example_bytes for use in self.uses)

    def rows(self, low: int, high: int) -> Tensor:
        """Return the sums of the uses' c_k."""
        return sum_of(use.chunk(low, high) for use in self.uses)


def _merged(uses: Sequence[Contributions]) -> list[Contributions]:
    """Merge all products into one, along their positions, and all given tensors into one."""
    products = [use for use in uses if type(use) is Products]
    direct = [use for use in uses if type(use) is Direct]
    others = [use for use in uses if type(use) not in (Products, Direct)]
    if len(products) > 1:
        deltas = torch.cat([use.deltas for use in products], 1)
        products = [Products(deltas, torch.cat([use.inputs for use in products], 1))]
    if len(direct) > 1:
        direct = [Direct(torch.stack([use.values for use in direct]).sum(0))]
    return [*products, *direct, *others]
