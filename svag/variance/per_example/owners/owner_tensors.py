"""Tensors of owners: the number of the example that each entry of a tensor belongs to."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Lost,
    Mark,
    Owners,
    Placed,
    Scattered,
    Single,
    Where,
    placed,
    shape_with,
)


def owners_of(tensor: Tensor, where: Where) -> Tensor:
    """Return the owner of each entry, ``tensor.shape``, as an expanded view."""
    if isinstance(where, Single):
        return torch.tensor(where.example).expand(tensor.shape)
    if not isinstance(where, Layout | Scattered):
        return torch.tensor(NOBODY).expand(tensor.shape)
    size = tensor.shape[where.dim]
    names = torch.from_numpy(where.owners(size))
    return names.view(shape_with(tensor.shape, where.dim, size)).expand(tensor.shape)


def owned_by(name: str, owners: Tensor, examples: int) -> "Placed | Mark":
    """Return the mark that describes a tensor of owners.

    Args:
        name: the operation whose result it is, for messages.
        owners: the owner of each entry.
        examples: B, the number of examples.
    """
    if not owners.numel():
        empty = next(dim for dim, size in enumerate(owners.shape) if not size)
        return Scattered(empty, examples, np.empty(0, np.int64))
    for dim in range(owners.dim()):
        if owners.stride(dim) == 0:
            owners = owners.narrow(dim, 0, 1)
    owners = _narrowed(owners, lambda first, all_: torch.equal(first.expand_as(all_), all_))
    if sum(size > 1 for size in owners.shape) > 1:
        # Entries without owner, such as zeros before a loop, may get the owner of their row.
        owners = _in_order(owners, examples)
        owners = _narrowed(owners, lambda top, all_: bool(((all_ == top) | (all_ < 0)).all()))
    varying = [dim for dim, size in enumerate(owners.shape) if size > 1]
    if len(varying) > 1:
        return Lost(f"{name} puts the examples along several dimensions", mixed=False)
    names = owners.flatten().numpy()
    if varying:
        return placed(varying[0], examples, names)
    return CONSTANT if names[0] == NOBODY else Single(int(names[0]), examples)


def _in_order(owners: Tensor, examples: int) -> Tensor:
    """Reduce to the only dimension along which the owners are 0, ..., B - 1 in order, if any."""
    fitting = []
    for dim, size in enumerate(owners.shape):
        if size > 1 and size % examples == 0:
            names = torch.arange(examples).repeat_interleave(size // examples)
            names = names.view(shape_with(owners.shape, dim, size))
            if bool(((owners == names) | (owners == NOBODY)).all()):
                fitting.append(dim)
    if len(fitting) != 1:
        return owners
    others = [dim for dim in range(owners.dim()) if dim != fitting[0]]
    return owners.amax(others, keepdim=True)


def _narrowed(owners: Tensor, fits: Callable[[Tensor, Tensor], bool]) -> Tensor:
    """Reduce every dimension along which the owners are equal to size 1."""
    for dim, size in enumerate(owners.shape):
        if size > 1:
            top = owners.amax(dim, keepdim=True)
            owners = top if fits(top, owners) else owners
    return owners


def written_through(view: Tensor, before: Where, where: Where, name: str) -> Where:
    """Return the new mark of a tensor after an operation wrote into a view of it.

    Args:
        view: the view.
        before: mark of the tensor that it is a view of.
        where: new mark of the view.
        name: name of the operation.
    """
    base = view._base
    assert base is not None
    offset = view.storage_offset() - base.storage_offset()
    lost = Lost(f"{name} wrote into a view of it", mixed=False)
    placed_before = before is CONSTANT or isinstance(before, IS_PLACED)
    if not isinstance(where, IS_PLACED) or not placed_before or not base.numel():
        return lost
    reach = sum((n - 1) * step for n, step in zip(base.shape, base.stride(), strict=True)) + 1
    memory = torch.full((reach,), NOBODY)
    names = memory.as_strided(base.shape, base.stride()).copy_(owners_of(base, before))
    memory.as_strided(view.shape, view.stride(), offset).copy_(owners_of(view, where))
    return owned_by(name, names, where.examples)


def owners_along(where: Where, tensor: Tensor, dim: int) -> Owners:
    """Return the owner of each row along a dimension.

    Args:
        where: mark of the tensor.
        tensor: the tensor.
        dim: the dimension.
    """
    if isinstance(where, Single):
        return np.full(tensor.shape[dim], where.example)
    if not isinstance(where, Layout | Scattered):
        return np.full(tensor.shape[dim], NOBODY)
    return where.owners(tensor.shape[dim])
