"""Which example of the mini-batch each row of a tensor belongs to.

Guessing the examples' dimension by its size would fail if a sequence is as long as the batch. So
a placement names one dimension and the owner of every row along it, the example that the row
belongs to: by a formula if the examples are evenly spread (:class:`Layout`), by a list if a mask,
an index or a sort has chosen rows (:class:`Scattered`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Owners: TypeAlias = npt.NDArray[np.int64]
NOBODY = -1


class Layout(NamedTuple):
    """The examples are along ``dim``, whose size is ``outer * examples * inner``.

    A batch of sequences flattened to ``(B * T, ...)`` has outer 1 and inner T; flattened from
    time-major, ``(T * B, ...)``, it has outer T and inner 1.
    """

    dim: int
    examples: int
    outer: int = 1

    def at(self, dim: int) -> "Layout":
        """Return the same rows along another dimension."""
        return self._replace(dim=dim)

    def owners(self, size: int) -> Owners:
        """Return the owner of each of ``size`` rows."""
        inner = size // (self.outer * self.examples)
        return np.tile(np.repeat(np.arange(self.examples), inner), self.outer)

    def split(self, tensor: Tensor) -> Tensor:
        """Split ``dim`` into (outer, examples, inner)."""
        return cast(Tensor, tensor.unflatten(self.dim, (self.outer, self.examples, -1)))

    def examples_first(self, tensor: Tensor) -> Tensor:
        """Return ``(B, rows of an example, other dimensions)``."""
        if self.dim == 0 and self.outer == 1:
            return cast(Tensor, tensor.unflatten(0, (self.examples, -1)))
        parts = self.split(tensor)
        front: Tensor = parts.movedim((self.dim + 1, self.dim, self.dim + 2), (0, 1, 2))
        return front.flatten(1, 2)

    def one_by_one(self, tensor: Tensor) -> Tensor:
        """Return ``(B, *shape)``; ``shape`` is the tensor's with one example along ``dim``."""
        return self.examples_first(tensor).movedim(1, self.dim + 1)


@dataclass(frozen=True, eq=False)
class Scattered:
    """Row i along ``dim`` belongs to example ``list[i]``, or to none (:data:`NOBODY`, padding).

    Attributes:
        dim: dimension of the rows.
        examples: B, the number of examples.
        list: owner of each row.
    """

    dim: int
    examples: int
    list: Owners

    def at(self, dim: int) -> "Scattered":
        """Return the same rows along another dimension."""
        return Scattered(dim, self.examples, self.list)

    def owners(self, size: int) -> Owners:
        """Return the owner of each row."""
        assert size == len(self.list)
        return self.list

    def examples_first(self, tensor: Tensor) -> Tensor:
        """Return ``(B, most rows of an example, other dimensions)``, 0 where one has fewer."""
        rows = tensor.movedim(self.dim, 0)
        order = np.argsort(self.list, kind="stable")
        order = order[self.list[order] != NOBODY]
        owners = self.list[order]
        counts = np.bincount(owners, minlength=self.examples)
        most = max(1, int(counts.max(initial=0)))
        first = np.concatenate(([0], np.cumsum(counts)[:-1]))
        slots = owners * most + np.arange(len(owners)) - first[owners]
        filled = rows.new_zeros(self.examples * most, *rows.shape[1:])
        chosen = rows.index_select(0, torch.from_numpy(order).to(rows.device))
        filled = filled.index_copy(0, torch.from_numpy(slots).to(rows.device), chosen)
        return cast(Tensor, filled.unflatten(0, (self.examples, most)))

    def complete(self, tensor: Tensor) -> bool:
        """Whether all rows that belong to no example are zero."""
        nobody = np.flatnonzero(self.list == NOBODY)
        if not len(nobody):
            return True
        rows = tensor.index_select(self.dim, torch.from_numpy(nobody).to(tensor.device))
        return not bool(rows.any())


@dataclass(frozen=True)
class Single:
    """The whole tensor belongs to one example, as ``x[k]`` does.

    Attributes:
        example: k, the example.
        examples: B, the number of examples.
    """

    example: int
    examples: int
    dim = -1  # no dimension

    def examples_first(self, tensor: Tensor) -> Tensor:
        """Return ``(B, 1, *shape)``, 0 for all other examples."""
        rows = tensor.new_zeros(self.examples, *tensor.shape)
        rows = rows.index_copy(0, torch.tensor([self.example], device=tensor.device), tensor[None])
        return rows.unsqueeze(1)


class Mark:
    """A mark for tensors without a dimension that holds the examples.

    Args:
        meaning: description for messages.
    """

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __repr__(self) -> str:
        return self.meaning


class Summed(Mark):
    """The tensor is a sum over the examples, as at the end of a loss."""


class Lost(Mark):
    """An operation mixed the examples, or its effect on them is not known.

    Args:
        meaning: description for messages, with the name of the operation.
        mixed: whether the operation is known to mix the examples.
        chosen: whether the tensor says which rows were chosen among those of all examples.
    """

    def __init__(self, meaning: str, *, mixed: bool, chosen: bool = False) -> None:
        super().__init__(meaning)
        self.mixed, self.chosen = mixed, chosen


class Packed(Mark):
    """Sequences of several lengths, as :class:`torch.nn.utils.rnn.PackedSequence` holds them.

    Their steps are concatenated, ``(sum of lengths, ...)``: the first steps of all sequences, the
    longest first, then the second steps of those that have one, and so on.

    Args:
        sizes: the number of sequences that have each step, on the CPU.
        order: the example of each sequence, from the longest on; None for the examples' own order.
    """

    def __init__(self, sizes: Tensor, order: Owners | None = None) -> None:
        super().__init__("packed sequences")
        self.sizes, self.examples = sizes, int(sizes[0])
        self.order = np.arange(self.examples) if order is None else order

    def steps(self) -> "Layout | Scattered":
        """Return the mark of the concatenated steps: the owner of each."""
        each = [self.order[: int(size)] for size in self.sizes]
        return placed(0, self.examples, np.concatenate(each))

    def last_states(self) -> "Layout | Scattered":
        """Return the mark of the last states ``(layers, B, width)``."""
        return placed(1, self.examples, self.order)

    def by_example(self, padded: Tensor) -> Tensor:
        """Turn ``(T, B, ...)`` into ``(B, T, ...)`` in the order of the examples."""
        rows = padded.transpose(0, 1)
        if np.array_equal(self.order, np.arange(self.examples)):
            return rows
        return rows.index_select(0, torch.from_numpy(np.argsort(self.order)).to(rows.device))

    def mask(self, device: torch.device) -> Tensor:
        """Return ``(T, B)``, true where a sequence has a step."""
        places = torch.arange(self.examples, device=device)
        return places < self.sizes.to(device).unsqueeze(1)

    def pad(self, steps: Tensor) -> Tensor:
        """Return ``(T, B, ...)``, 0 where a sequence has no step."""
        mask = self.mask(steps.device)
        padded = steps.new_zeros(*mask.shape, *steps.shape[1:])
        return padded.index_put((mask,), steps)

    def pack(self, padded: Tensor) -> Tensor:
        """Undo :meth:`pad`."""
        return padded[self.mask(padded.device)]

    def backwards(self, padded: Tensor) -> Tensor:
        """Reverse every sequence of ``(T, B, width)`` in time, within its own length."""
        mask = self.mask(padded.device)
        steps = torch.arange(len(mask), device=padded.device).unsqueeze(1)
        turned = torch.where(mask, mask.sum(0) - 1 - steps, steps)
        return padded.gather(0, turned.unsqueeze(-1).expand_as(padded))

    def ends(self, device: torch.device) -> Tensor:
        """Return ``(T, B, 1)``, true at every sequence's last step."""
        mask = self.mask(device)
        after = torch.cat((mask[1:], mask.new_zeros(1, self.examples)))
        return (mask & ~after).unsqueeze(-1)


CONSTANT = Mark("independent of the mini-batch")

Placed: TypeAlias = Layout | Scattered | Single
Where: TypeAlias = Layout | Scattered | Single | Mark
IS_PLACED = (Layout, Scattered, Single)


def placed(dim: int, examples: int, owners: Owners) -> "Layout | Scattered":
    """Return the mark for an array of owners: a :class:`Layout` if one fits.

    Args:
        dim: dimension of the rows.
        examples: B, the number of examples.
        owners: owner of each row.
    """
    size = len(owners)
    if size and size % examples == 0 and owners[0] == 0:
        changes = np.flatnonzero(owners != 0)
        inner = int(changes[0]) if len(changes) else 0
        if inner and size % (examples * inner) == 0:
            even = Layout(dim, examples, size // (examples * inner))
            if np.array_equal(even.owners(size), owners):
                return even
    return Scattered(dim, examples, owners.astype(np.int64))


def same_rows(a: "Layout | Scattered", b: "Layout | Scattered", size: int) -> bool:
    """Whether two marks give each of ``size`` rows the same owner.

    Args:
        a: a mark.
        b: another mark.
        size: number of rows.
    """
    if isinstance(a, Layout) and isinstance(b, Layout):
        return a[1:] == b[1:]
    return np.array_equal(a.owners(size), b.owners(size))


def with_rows_along(where: Placed, tensor: Tensor, dim: int) -> Placed:
    """Turn a Single into the mark of its one row along a dimension of size 1; others stay.

    Args:
        where: mark of the tensor.
        tensor: the tensor.
        dim: the dimension.
    """
    if isinstance(where, Single) and tensor.dim() > dim and tensor.shape[dim] == 1:
        return Scattered(dim, where.examples, np.array([where.example]))
    return where


def row_selector(where: "Layout | Scattered", tensor: Tensor, example: int) -> Tensor:
    """Return the indices of one example's rows along ``where.dim``.

    Args:
        where: mark of the tensor.
        tensor: the tensor.
        example: number of the example.
    """
    owners = where.owners(tensor.shape[where.dim])
    return torch.from_numpy(np.flatnonzero(owners == example)).to(tensor.device)


def others_zero(where: Placed, tensor: Tensor, example: int) -> Tensor:
    """Return the tensor with 0 in all rows but one example's.

    Args:
        where: mark of the tensor.
        tensor: the tensor.
        example: number of the example.
    """
    if isinstance(where, Single):
        return tensor if where.example == example else torch.zeros_like(tensor)
    rows, kept = row_selector(where, tensor, example), torch.zeros_like(tensor)
    return kept.index_copy_(where.dim, rows, tensor.index_select(where.dim, rows))


def shape_with(shape: Sequence[int], dim: int, size: int) -> list[int]:
    """Return a shape of ones with ``size`` in one dimension.

    Args:
        shape: a shape with as many dimensions.
        dim: the dimension.
        size: its size.
    """
    return [size if d == dim else 1 for d in range(len(shape))]
