"""Rules for indices, masks, gathers, lookups and sorts."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise, join
from svag.variance.per_example.owners.on_owners import run_on_owners
from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.owner_tensors import owned_by, owners_of
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Owners,
    Scattered,
    Single,
    Where,
    placed,
)


@rule("index_select")
def _index_select(op: Operation) -> "Where | Sequence[Where]":
    source, dim, index = op.given("input", 0), op.given("dim", 1), op.given("index", 2)
    where, picked = op.where(source), op.where(index)
    if where is CONSTANT and isinstance(picked, Layout | Scattered):
        return picked.at(dim % source.dim())
    if not isinstance(where, Layout | Scattered):
        return where if isinstance(where, Single) else op.unknown()
    if where.dim != dim % source.dim():
        return where
    return placed(where.dim, where.examples, where.owners(source.shape[where.dim])[on_cpu(index)])


def on_cpu(index: Tensor) -> Any:
    """Return an index as a NumPy array, to index arrays of owners."""
    return index.detach().cpu().numpy()


@rule("gather", "take_along_dim")
def _gather(op: Operation) -> "Where | Sequence[Where]":
    source, index = op.given("input", 0), op.inputs[1]
    dim = op.given("dim", 2 if op.name == "take_along_dim" else 1)
    where, picked = op.where(source), op.where(index)
    if dim is None:
        return op.unknown()
    if not isinstance(where, IS_PLACED):
        return elementwise(op, [index]) if where is CONSTANT else op.unknown()
    if isinstance(where, Single) or source.dim() == 0:
        return where
    dim = dim % source.dim()
    if where.dim == dim:
        return run_on_owners(op, {id(source): owners_of(source, where)}, where.examples)
    kept = placed(
        where.dim, where.examples, where.owners(source.shape[where.dim])[: op.out.shape[where.dim]]
    )
    return join(op, kept, picked, op.out.shape) if isinstance(picked, IS_PLACED) else kept


@rule("getitem")
def _getitem(op: Operation) -> "Where | Sequence[Where]":
    """Index the owners; dimensions after the indexed ones are kept."""
    source, index = op.args
    where = op.where(source)
    if isinstance(where, Single):
        return where
    if not isinstance(where, Layout | Scattered):
        return _looked_up(op, source, index)
    parts = index if isinstance(index, tuple) else (index,)
    if isinstance(where, Layout) and (found := _sliced(source, where, parts)) is not None:
        return found
    needed = max(consumed(parts, source.dim()), where.dim + 1)
    names = owners_of(source, where)
    for dim in range(needed, source.dim()):
        names = names.narrow(dim, 0, min(1, names.shape[dim]))
    return run_on_owners(op, {id(source): names}, where.examples)


def _sliced(source: Tensor, where: Layout, parts: Sequence[Any]) -> Layout | None:
    """Return the mark after slices and numbers that do not cut the examples' dimension."""
    hidden = source.dim() - sum(p is not None and p is not ... for p in parts)
    written = [q for p in parts for q in ([slice(None)] * hidden if p is ... else [p])]
    before = after = 0
    for part in written:
        if part is None:
            after += 1
        elif before == where.dim:
            whole = isinstance(part, slice) and part == slice(None)
            return where.at(after) if whole else None
        elif isinstance(part, slice):
            before, after = before + 1, after + 1
        elif type(part) is int:
            before += 1
        else:
            return None
    return where.at(where.dim - before + after)


def _looked_up(op: Operation, source: Tensor, index: Any) -> "Where | Sequence[Where]":
    """Look up rows of a constant table: a row belongs to the example of its index or mask entry."""
    parts = index if isinstance(index, tuple) else (index,)
    if op.where(source) is not CONSTANT or not all(isinstance(p, Tensor) for p in parts):
        return op.unknown()
    if len(parts) == 1 and parts[0].dtype == torch.bool:
        where = op.where(parts[0])
        if not isinstance(where, Layout | Scattered):
            return op.unknown()
        return placed(0, where.examples, _chosen(parts[0], where))
    if any(p.dtype == torch.bool for p in parts):
        return op.unknown()
    shape = torch.broadcast_shapes(*(p.shape for p in parts))
    return elementwise(op, parts, shape)


def _chosen(mask: Tensor, where: Layout | Scattered) -> Owners:
    """Return the owners of the true entries of a mask."""
    names = owners_of(mask, where)[mask.detach().cpu() != 0].numpy()
    return cast(Owners, names)


def consumed(parts: Sequence[Any], dims: int) -> int:
    """Return the number of leading dimensions that an index applies to."""
    if any(part is ... for part in parts):
        return dims
    count = 0
    for part in parts:
        if isinstance(part, Tensor) and part.dtype == torch.bool:
            count += part.dim()
        elif part is not None and not isinstance(part, bool):
            count += 1
    return min(count, dims)


@rule("nonzero", "argwhere")
def _nonzero(op: Operation) -> "Where | Sequence[Where]":
    """Positions of true entries: each row of the result belongs to the owner of its entry."""
    source = op.args[0]
    where = op.where(source)
    if not isinstance(where, Layout | Scattered):
        return where if isinstance(where, Single) else op.unknown()
    return placed(0, where.examples, _chosen(source, where))


@rule("where")
def _where(op: Operation) -> "Where | Sequence[Where]":
    """With a condition alone it is nonzero, with three arguments elementwise."""
    return _nonzero(op) if len(op.inputs) == 1 and len(op.args) == 1 else elementwise(op)


@rule("sort", "topk", "argsort", "msort")
def _sorted(op: Operation) -> "Where | Sequence[Where]":
    """Sort or topk: along the examples' dimension, owners are sorted with the values."""
    source = op.args[0] if op.args else op.inputs[0]
    where = op.where(source)
    if not isinstance(where, Layout | Scattered):
        return where if isinstance(where, Single) else op.unknown()
    dim = 0 if op.name == "msort" else op.given("dim", 2 if op.name == "topk" else 1, -1)
    if isinstance(dim, bool):
        dim = op.args[2] if len(op.args) > 2 else -1
    dim = dim % source.dim()
    if where.dim != dim:
        return where
    if op.name == "msort":
        return op.unknown()
    if op.name == "topk" and op.out.shape[dim] < source.shape[dim]:
        return op.chooses()
    if source.dim() > 1 and op.outputs[0].requires_grad:
        return op.mixes()  # an entry's row in the result depends on the other examples
    order = op.outputs[-1].detach().cpu()
    names = owners_of(source, where).gather(dim, order)
    return owned_by(op.name, names, where.examples)


@rule("index_fill")
def _filled(op: Operation) -> Where:
    return op.where(op.args[0])


@rule("one_hot")
def _one_hot(op: Operation) -> Where:
    return op.where(op.given("input", 0, op.inputs[0]))
