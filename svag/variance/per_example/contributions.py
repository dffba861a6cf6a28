"""What each example contributes to the gradient of a parameter, c_k, and the variance of the sum.

With p.grad = sum_k c_k over B examples, the unbiased variance of each entry of p.grad is

    grad_var = (B sum_k c_k^2 - p.grad^2) / (B - 1)              (supplement, section 4)

whatever the loss divides by. One class here is one way to get at the c_k.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from svag.errors import TooFewSamples
from svag.variance.per_example.moments import Moments
from svag.variance.per_example.placement import Layout, Scattered, row_selector

DEFAULT_MAX_BYTES = 2**28
_CACHE_BYTES = 2**22  # for each thread


class Estimate(NamedTuple):
    """A gradient and the variance of its entries."""

    total: Tensor
    variance: Tensor


class Contributions(ABC):
    """What ``examples`` examples contribute through one use of a parameter.

    Attributes:
        examples: B.
        shape: of the parameter.
        example_bytes: memory that one example takes in :meth:`rows`.
        like: a tensor of the contributions' dtype and device.
    """

    examples: int
    shape: torch.Size
    example_bytes: int
    like: Tensor

    @property
    def innermost(self) -> "Contributions":
        """What these are computed from, through whatever was done to the parameter."""
        return self

    @abstractmethod
    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k for low <= k < high in a new tensor, entries in an order of its own."""

    def arranged(self, rows: Tensor) -> Tensor:
        """Return ``(b, *shape)`` from what :meth:`rows` returned."""
        return rows

    def chunk(self, low: int, high: int) -> Tensor:
        """Return c_k for low <= k < high, ``(high - low, *shape)``."""
        return self.arranged(self.rows(low, high))

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        return sum_of(self.chunk(low, high).sum(0) for low, high in self.chunks(max_bytes))

    def estimate(self, max_bytes: int) -> Estimate:
        """Return sum_k c_k and its variance, with at most ``max_bytes`` (or one example) at once.

        Sums run over c_k - c_0, so that nothing cancels where the mean dwarfs the spread.
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
        """Cut the examples into ranges that fit: into the cache on a CPU, else into max_bytes."""
        threads = torch.get_num_threads()
        room = min(max_bytes, threads * _CACHE_BYTES) if _on_cpu(self.like) else max_bytes
        step = max(1, room // max(1, self.example_bytes))
        step -= step % threads if step > threads else 0
        for low in range(0, self.examples, step):
            yield low, min(low + step, self.examples)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def unbiased(squares: Tensor, total: Tensor, examples: int) -> Tensor:
    """Return (B squares - total^2)/(B - 1), clamped at 0, in the memory of ``squares``."""
    squares.mul_(examples / (examples - 1))
    return squares.addcmul_(total, total, value=-1 / (examples - 1)).clamp_(min=0)


def refuse_one(examples: int) -> None:
    """Raise unless there are two examples."""
    if examples < 2:
        raise TooFewSamples(
            f"the mini-batch has {examples} example{'' if examples else 's'}: one gradient has no "
            "spread; give two or more, or accumulate in svag.micro_batch_variance"
        )


def sum_of(tensors: Iterator[Tensor]) -> Tensor:
    """Add tensors up in the memory of the first."""
    result = next(tensors)
    for tensor in tensors:
        result = result.add_(tensor)
    return result


class Direct(Contributions):
    """The c_k themselves, already there: ``(B, *shape)``."""

    def __init__(self, values: Tensor) -> None:
        self.values = self.like = values
        self.examples = values.shape[0]
        self.shape = values.shape[1:]
        self.example_bytes = values[0].numel() * values.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return a copy of some."""
        return self.values[low:high].clone()

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        return self.values.sum(0)


class Products(Contributions):
    """c_k = sum_n delta_kn x_kn^T over positions n, as a dense layer's weight has it.

    Args:
        deltas: gradients of the outputs, ``(B, N, out)``.
        inputs: ``(B, N, in)``.
    """

    def __init__(self, deltas: Tensor, inputs: Tensor) -> None:
        self.deltas, self.inputs, self.like = deltas, inputs, deltas
        self.examples = deltas.shape[0]
        self.shape = torch.Size((deltas.shape[2], inputs.shape[2]))
        self.example_bytes = self.shape.numel() * deltas.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Multiply batch-wise."""
        return torch.bmm(self.deltas[low:high].transpose(1, 2), self.inputs[low:high])

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k in one product."""
        return self.deltas.flatten(0, 1).t() @ self.inputs.flatten(0, 1)

    def estimate(self, max_bytes: int) -> Estimate:
        """Return both moments; for N = 1 sum_k c_k^2 is (delta^2)^T (x^2), and no c_k is made."""
        if self.deltas.shape[1] != 1:
            return super().estimate(max_bytes)
        refuse_one(self.examples)
        return Estimate(total := self.total(max_bytes), self._closed_form(total))

    def _closed_form(self, total: Tensor) -> Tensor:
        """Return the variance for N = 1, by blocks of outputs that stay in the cache on a CPU."""
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
    """c_k = a contraction of the output's gradient with data, each example by itself.

    Args:
        equation: of one term an operand and one for the parameter, the examples' letter first.
        operands: gradient of the output, then the data, ``(B, ...)`` each.
        shape: of the parameter.
    """

    def __init__(self, equation: str, operands: Sequence[Tensor], shape: torch.Size) -> None:
        self.equation, self.operands, self.shape = equation, operands, shape
        self.like, self.examples = operands[0], operands[0].shape[0]
        self.example_bytes = shape.numel() * self.like.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Contract some examples."""
        parts = [t[low:high] for t in self.operands]
        return torch.einsum(self.equation, *parts).contiguous()

    def total(self, max_bytes: int) -> Tensor:
        """Contract the examples as well."""
        left, _, right = self.equation.partition("->")
        return torch.einsum(f"{left}->{right[1:]}", *self.operands)


class Rows(Contributions):
    """c_k = sum of delta_kn into row ``indices[k, n]``, as an embedding's weight has it.

    Args:
        deltas: ``(B, N, width)``, 0 where a position does not count.
        indices: ``(B, N)``.
        height: number of rows.
    """

    def __init__(self, deltas: Tensor, indices: Tensor, height: int) -> None:
        self.deltas, self.indices, self.height, self.like = deltas, indices, height, deltas
        self.examples = deltas.shape[0]
        self.shape = torch.Size((height, deltas.shape[2]))
        self.example_bytes = self.shape.numel() * deltas.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Scatter into dense rows."""
        keys = self._keys()[low:high] - low * self.height
        result = self.deltas.new_zeros((high - low) * self.height, self.shape[1])
        result.index_add_(0, keys.flatten(), self.deltas[low:high].flatten(0, 1))
        return cast(Tensor, result.unflatten(0, (high - low, self.height)))

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k."""
        result = self.deltas.new_zeros(self.shape)
        return result.index_add_(0, self.indices.flatten(), self.deltas.flatten(0, 1))

    def estimate(self, max_bytes: int) -> Estimate:
        """Add up each example's positions of the same row, then square: never B dense gradients."""
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
    """Gradients of a parameter that has rows for each example: c_k is 0 but for example k's.

    Args:
        delta: gradient of the parameter.
        where: its examples are.
    """

    def __init__(self, delta: Tensor, where: Layout | Scattered) -> None:
        self.delta, self.where, self.like = delta, where, delta
        self.examples = where.examples
        self.shape = delta.shape
        self.example_bytes = delta.numel() * delta.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return zeros, each with one example filled in."""
        result = self.delta.new_zeros(high - low, *self.shape)
        dim = self.where.dim
        for k in range(low, high):
            rows = row_selector(self.where, self.delta, k)
            result[k - low].index_copy_(dim, rows, self.delta.index_select(dim, rows))
        return result

    def total(self, max_bytes: int) -> Tensor:
        """Return the gradient."""
        return self.delta.clone()


class Shared(Contributions):
    """A gradient that no example owns, such as a penalty's: every c_k has an equal part.

    Args:
        delta: gradient of the parameter.
        examples: B.
    """

    def __init__(self, delta: Tensor, examples: int) -> None:
        self.delta, self.examples, self.like = delta, examples, delta
        self.shape = delta.shape
        self.example_bytes = delta.numel() * delta.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return equal parts."""
        return (self.delta / self.examples).expand(high - low, *self.shape).clone()

    def total(self, max_bytes: int) -> Tensor:
        """Return the gradient."""
        return self.delta.clone()


class Joint(Contributions):
    """Several uses of one parameter: an example's contributions add up before they are squared."""

    def __init__(self, uses: Sequence[Contributions]) -> None:
        self.uses = _merged(uses)
        self.like = uses[0].like
        self.examples = uses[0].examples
        self.shape = uses[0].shape
        self.example_bytes = 2 * max(use.example_bytes for use in self.uses)

    def rows(self, low: int, high: int) -> Tensor:
        """Add up the uses' chunks."""
        return sum_of(use.chunk(low, high) for use in self.uses)


def _merged(uses: Sequence[Contributions]) -> list[Contributions]:
    """Make one of products, along their positions, and one of contributions that are there."""
    products = [use for use in uses if type(use) is Products]
    direct = [use for use in uses if type(use) is Direct]
    others = [use for use in uses if type(use) not in (Products, Direct)]
    if len(products) > 1:
        deltas = torch.cat([use.deltas for use in products], 1)
        products = [Products(deltas, torch.cat([use.inputs for use in products], 1))]
    if len(direct) > 1:
        direct = [Direct(torch.stack([use.values for use in direct]).sum(0))]
    return [*products, *direct, *others]
