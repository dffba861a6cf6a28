"""Rules for elementwise operations: inputs are aligned as broadcasting does, and marks joined."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from svag.variance.per_example.owners.marks import note_rows
from svag.variance.per_example.owners.operation import SUMMED, Operation, rule
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Lost,
    Mark,
    Placed,
    Scattered,
    Single,
    Summed,
    Where,
    placed,
    same_rows,
)


def elementwise(
    op: Operation, inputs: Sequence[Tensor] | None = None, shape: Sequence[int] | None = None
) -> Where:
    """Align the inputs from the right, as broadcasting does, and join their marks.

    Args:
        op: the operation.
        inputs: the inputs that count; None for all.
        shape: the shape that they are broadcast to; None for the output's.
    """
    shape = op.out.shape if shape is None else shape
    if adds_singles(op):
        return SUMMED
    result: Placed | None = None
    for tensor in op.inputs if inputs is None else inputs:
        where = op.where(tensor)
        if not isinstance(where, IS_PLACED):
            continue
        moved = _aligned(op, tensor, where, shape)
        if isinstance(moved, Mark):
            return moved
        joined = moved if result is None else join(op, result, moved, shape)
        if isinstance(joined, Mark):
            return joined
        result = joined
    if isinstance(result, Layout | Scattered):
        _note_rows(op, result, shape)
    return CONSTANT if result is None else result


def _note_rows(op: Operation, where: Layout | Scattered, shape: Sequence[int]) -> None:
    """Note whether constants with a gradient have a row for each row of the result."""
    for tensor, state in zip(op.inputs, op.states, strict=True):
        if state is CONSTANT and tensor.requires_grad:
            dim = where.dim - len(shape) + tensor.dim()
            own = dim >= 0 and tensor.shape[dim] == shape[where.dim]
            note_rows(tensor, where.at(dim) if own else SUMMED)


def adds_singles(op: Operation) -> bool:
    """Whether losses of single examples are added one to another."""
    if op.name not in ("add", "sub", "subtract"):
        return False
    singles = {w.example for w in op.states if isinstance(w, Single)}
    others = any(isinstance(w, Layout | Scattered) for w in op.states)
    sums = any(isinstance(w, Summed) for w in op.states)
    return not others and bool(singles) and (sums or len(singles) > 1)


def _aligned(op: Operation, tensor: Tensor, where: Placed, shape: Sequence[int]) -> "Placed | Lost":
    if isinstance(where, Single):
        return where
    dim = where.dim + len(shape) - tensor.dim()
    if dim < 0 or tensor.shape[where.dim] != shape[dim]:
        if dim >= 0 and isinstance(where, Scattered) and len(set(where.list)) == 1:
            return Single(int(where.list[0]), where.examples)
        return op.mixes()
    return where.at(dim)


def join(op: Operation, a: Placed, b: Placed, shape: Sequence[int]) -> "Placed | Lost":
    """Join the marks that two inputs give the output; the operation mixes examples if they differ.

    Args:
        op: the operation.
        a: mark of one input, with dimensions of the output.
        b: mark of the other.
        shape: shape of the output.
    """
    if isinstance(a, Single) or isinstance(b, Single):
        return _with_single(op, a, b)
    if a.dim != b.dim:
        return op.mixes()
    size = shape[a.dim]
    if same_rows(a, b, size):
        return a
    ours, theirs = a.owners(size), b.owners(size)
    if np.any((ours != theirs) & (ours != NOBODY) & (theirs != NOBODY)):
        return op.mixes()
    return placed(a.dim, a.examples, np.where(ours == NOBODY, theirs, ours))


def _with_single(op: Operation, a: Placed, b: Placed) -> "Placed | Lost":
    single, other = (a, b) if isinstance(a, Single) else (b, a)
    assert isinstance(single, Single)
    if isinstance(other, Single):
        return single if other.example == single.example else op.mixes()
    if isinstance(other, Scattered) and set(other.list) <= {single.example, NOBODY}:
        return other
    return op.mixes()


@rule("view_as_complex", "view_as_real")
def _last_dimension(op: Operation) -> Where:
    """Operations that add or remove a last dimension of size two (complex to real and back)."""
    where = op.where(op.args[0])
    last = isinstance(where, Layout | Scattered) and where.dim >= min(
        op.out.dim(), op.args[0].dim()
    )
    return op.mixes() if last else where


@rule("to", "type_as", "type")
def _like_first(op: Operation) -> Where:
    return elementwise(op, [op.args[0]])


@rule("copy")
def _copied(op: Operation) -> Where:
    return elementwise(op, [op.args[1]])


@rule("prelu")
def _prelu(op: Operation) -> Where:
    return elementwise(op, [op.args[0]]) if op.where(op.args[1]) is CONSTANT else op.unknown()
