"""Rules for operations that write or add into a tensor: a row gets the owner of the values' row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise, join
from svag.variance.per_example.owners.indexing import consumed, on_cpu
from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.owner_tensors import owned_by, owners_along, owners_of
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Scattered,
    Single,
    Summed,
    Where,
    placed,
)


@rule("setitem", "index_put", "index_put_impl")
def _written(op: Operation) -> "Where | Sequence[Where]":
    """``target[index] = values``."""
    target, index, values = op.args[0], op.args[1], op.given("values", 2)
    parts = tuple(index) if isinstance(index, tuple | list) else (index,)
    if op.name != "setitem" and op.given("accumulate", 3, False):
        return _accumulated(op, target, parts, values)
    return _overwritten(op, target, parts, values)


def _overwritten(op: Operation, target: Tensor, parts: Any, values: Any) -> Where:
    where, given = op.where(target), op.where(values)
    if isinstance(given, Summed) or isinstance(where, Summed):
        return op.mixes()
    if not isinstance(given, IS_PLACED):
        if isinstance(where, IS_PLACED):
            return where
        return _marked(op, target, parts) if where is given is CONSTANT else op.unknown()
    if where is CONSTANT:
        where = _by_mask(op, target, parts)
    kept = max(consumed(parts, target.dim()), _dims_of(where), _aligned_dims(target, values, given))
    names = owners_of(target, where)
    theirs = owners_of(values, given)
    for dim in range(kept, target.dim()):
        names = names.narrow(dim, 0, 1)
        from_right = target.dim() - dim
        if values.dim() >= from_right:
            theirs = theirs.narrow(values.dim() - from_right, 0, 1)
    names = names.clone()
    try:
        names[_without_devices(parts)] = theirs
    except (RuntimeError, IndexError):
        return op.unknown()
    return owned_by(op.name, names, given.examples)


def _marked(op: Operation, target: Tensor, parts: Sequence[Any]) -> Where:
    """A constant is written at places that examples choose, ``x[arange(B), lengths] = 1``.

    The examples must be along a dimension whose index is constant: only then is each row of the
    target written by the same example for all values of the other indices.
    """
    if not all(isinstance(p, Tensor) and p.dtype == torch.long and p.dim() == 1 for p in parts):
        return op.unknown()
    chosen = [op.where(p) for p in parts]
    moving = [w for w in chosen if isinstance(w, Layout | Scattered)]
    count = max(len(p) for p in parts)
    known = all(w is CONSTANT or isinstance(w, Layout | Scattered) for w in chosen)
    if not moving or not known or any(len(p) != count for p in parts):
        return op.unknown()
    owners = moving[0].owners(count)
    if any(not np.array_equal(w.owners(count), owners) for w in moving):
        return op.mixes()
    for dim, (index, where) in enumerate(zip(parts, chosen, strict=True)):
        places = on_cpu(index) % target.shape[dim]
        if where is CONSTANT and len(set(places.tolist())) == count:
            names = np.full(target.shape[dim], NOBODY)
            names[places] = owners
            return placed(dim, moving[0].examples, names)
    return op.unknown()


def _by_mask(op: Operation, target: Tensor, parts: Any) -> Where:
    """Return the mark of a constant, for writing where a mask is true: that of the mask, if any."""
    mask = parts[0] if len(parts) == 1 else None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() > target.dim():
        return CONSTANT
    where = op.where(mask)
    return where if isinstance(where, Layout | Scattered) else CONSTANT


def _dims_of(where: Where) -> int:
    return where.dim + 1 if isinstance(where, Layout | Scattered) else 0


def _aligned_dims(target: Tensor, values: Tensor, given: Where) -> int:
    """Return the number of the target's dimensions up to that of the values' rows."""
    if isinstance(given, Single):
        return 0
    assert isinstance(given, Layout | Scattered)
    return target.dim() - (values.dim() - given.dim) + 1


def _without_devices(parts: Any) -> Any:
    return tuple(p.detach().cpu() if isinstance(p, Tensor) else p for p in parts)


def _accumulated(op: Operation, target: Tensor, parts: Any, values: Tensor) -> Where:
    if len(parts) == 1 and isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool:
        return _added_by_mask(op, target, parts, values)
    if len(parts) != 1 or not isinstance(parts[0], Tensor) or parts[0].dim() != 1:
        return op.unknown()
    return _added(op, target, 0, parts[0], values)


def _added_by_mask(op: Operation, target: Tensor, parts: Any, values: Tensor) -> Where:
    """Add where a mask is true; every entry must be added to one of the same example."""
    where = op.where(target)
    found = _overwritten(op, target, parts, values)
    if not isinstance(where, Layout | Scattered) or not isinstance(found, Layout | Scattered):
        return found
    return join(op, where, found, target.shape)


@rule("index_add")
def _index_add(op: Operation) -> Where:
    target, dim, index = op.args[0], op.given("dim", 1), op.given("index", 2)
    return _added(op, target, dim % target.dim(), index, op.given("source", 3))


@rule("index_copy")
def _index_copy(op: Operation) -> Where:
    target, dim, index = op.args[0], op.given("dim", 1), op.given("index", 2)
    if dim % target.dim() != 0:
        return op.unknown()
    return _overwritten(op, target, (index,), op.given("source", 3))


def _added(op: Operation, target: Tensor, dim: int, index: Tensor, values: Tensor) -> Where:
    """Add rows to rows; every sum must belong to one example."""
    where, given = op.where(target), op.where(values)
    if given is CONSTANT and isinstance(where, IS_PLACED):
        return where
    if given is CONSTANT and isinstance(op.where(index), Layout | Scattered):
        given = op.where(index).at(dim)  # type: ignore[union-attr]
    known = isinstance(where, IS_PLACED) or where is CONSTANT
    if not known or not isinstance(given, IS_PLACED) or index.dim() != 1:
        return op.unknown()
    if isinstance(given, Layout | Scattered) and given.dim != dim:
        if isinstance(where, IS_PLACED):
            return join(op, given, where, target.shape)
        return given
    if isinstance(where, Layout | Scattered) and where.dim != dim:
        return op.mixes()
    names = owners_along(where, target, dim).copy()
    places, theirs = on_cpu(index), owners_along(given, values, dim)
    real = theirs != NOBODY
    largest, least = names.copy(), np.where(names == NOBODY, given.examples, names)
    np.maximum.at(largest, places[real], theirs[real])
    np.minimum.at(least, places[real], theirs[real])
    if np.any((largest != NOBODY) & (least != largest)):
        return op.mixes()
    names = np.arange(len(largest))
    if len(names) == given.examples and np.all((largest == names) | (largest == NOBODY)):
        return Layout(dim, given.examples)  # examples without added rows have a row, too
    return placed(dim, given.examples, largest)


@rule("scatter", "scatter_add", "scatter_reduce")
def _scattered(op: Operation) -> Where:
    """Write or add entries at the positions of an index."""
    target, dim, index = op.args[0], op.given("dim", 1), op.given("index", 2)
    values = op.given("src", 3, op.kwargs.get("value"))
    where, given = op.where(target), op.where(values)
    adds = op.name != "scatter" or op.kwargs.get("reduce") is not None
    if isinstance(values, Tensor) and isinstance(where, IS_PLACED) and given is CONSTANT:
        return where
    if not isinstance(values, Tensor) or not isinstance(given, IS_PLACED):
        pairs = [(t, w) for t, w in op.pairs() if t is target or t is index]
        rows = [w for _, w in pairs]
        dim = dim % target.dim()
        whole = all(t.shape[w.dim] == target.shape[w.dim] for t, w in pairs)
        if whole and all(w.dim != dim for w in rows):
            return elementwise(op, [t for t, _ in pairs])
        return where if isinstance(where, IS_PLACED) and rows == [where] else op.unknown()
    if isinstance(given, Single) or isinstance(where, Single | Summed):
        return op.unknown()
    return _scattered_rows(op, target, dim % target.dim(), index, values, adds)


def _scattered_rows(
    op: Operation, target: Tensor, dim: int, index: Tensor, values: Tensor, adds: bool
) -> Where:
    where, given = op.where(target), op.where(values)
    picked = index.detach().cpu()
    theirs = owners_of(values, given)[tuple(slice(n) for n in index.shape)]
    names = owners_of(target, where).clone()
    if not adds:
        return owned_by(op.name, names.scatter(dim, picked, theirs), given.examples)  # type: ignore[union-attr]
    examples = given.examples  # type: ignore[union-attr]
    largest = names.scatter_reduce(dim, picked, theirs, "amax")
    names[names == NOBODY] = examples
    least = names.scatter_reduce(dim, picked, theirs, "amin")
    if bool(((largest != NOBODY) & (least != largest) & (least != NOBODY)).any()):
        return op.mixes()
    return owned_by(op.name, largest, examples)


@rule("masked_scatter")
def _masked_scatter(op: Operation) -> Where:
    target, mask, values = op.args[0], op.given("mask", 1), op.given("source", 2)
    rows = [w for w in (op.where(target), op.where(values)) if isinstance(w, IS_PLACED)]
    if not rows:
        return op.unknown()
    names = owners_of(target, op.where(target)).expand(op.out.shape)
    theirs = owners_of(values, op.where(values)).contiguous()
    return owned_by(
        op.name, names.clone().masked_scatter(mask.detach().cpu(), theirs), rows[0].examples
    )
