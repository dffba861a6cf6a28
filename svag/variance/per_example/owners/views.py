"""Rules for views and other operations that move whole dimensions.

Such an operation moves the owner of an entry (the number of the example it belongs to) as it moves
the entry. So the operation is run on a tensor of owners, and the marks of the outputs are read from
the result. The tensor of owners has size 1 along dimensions that do not matter.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise
from svag.variance.per_example.owners.on_owners import run_on_owners
from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.operation_names import LIKE_FIRST
from svag.variance.per_example.owners.owner_tensors import owned_by, owners_of
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Single,
    Where,
)

_VIEWS = (
    *("squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "permute", "movedim", "t"),
    *("moveaxis", "T", "mT", "H", "mH", "adjoint", "select", "narrow", "unbind", "split", "chunk"),
    *("tensor_split", "split_with_sizes", "hsplit", "vsplit", "dsplit", "expand", "expand_as"),
    *("broadcast_to", "diagonal", "unfold", "atleast_1d", "atleast_2d"),
    *("atleast_3d", "unsafe_split", "unsafe_chunk", "diag", "diag_embed", "narrow_copy"),
    *("flip", "fliplr", "flipud", "roll", "rot90", "repeat", "tile", "masked_select"),
    *("repeat_interleave", "take", "combinations"),
)


@rule("view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as")
def _reshaped(op: Operation) -> Where:
    """Return the mark after a reshape, which may merge and split dimensions."""
    source = op.args[0] if op.args else op.inputs[0]
    where = op.where(source)
    if not isinstance(where, IS_PLACED):
        return CONSTANT if where is CONSTANT else op.unknown()
    if isinstance(where, Single):
        return where
    if isinstance(where, Layout):
        found = _through_reshape(source.shape, where, op.out.shape)
        if found is not None:
            return found
    return owned_by(op.name, owners_of(source, where).reshape(op.out.shape), where.examples)


def _through_reshape(before: Sequence[int], where: Layout, after: Sequence[int]) -> Layout | None:
    """Return the new layout of evenly spread rows; None if no single dimension holds them."""
    dim, examples, outer = where
    block = math.prod(before[dim:]) // (outer * examples)
    for new, size in enumerate(after):
        below = math.prod(after[new + 1 :])
        whole = below and block % below == 0 and size % (examples * (block // below)) == 0
        if whole and below * size >= block * examples:
            return Layout(new, examples, size // (examples * (block // below)))
    return None


@rule(*_VIEWS)
def _moved(op: Operation) -> "Where | Sequence[Where]":
    """Run the operation on the owners of its first argument."""
    source = op.args[0] if op.args else op.inputs[0]
    where = op.where(source)
    if not isinstance(where, IS_PLACED):
        alike = op.name in LIKE_FIRST and where is CONSTANT
        return CONSTANT if alike else op.unknown()
    if isinstance(where, Single):
        return where
    if isinstance(where, Layout) and (found := _simple(op, source, where)) is not None:
        return found
    return run_on_owners(op, {id(source): owners_of(source, where)}, where.examples)


def _simple(op: Operation, source: Tensor, where: Layout) -> Where | None:
    """Return the mark after a common view, without running it on owners; None for others."""
    dims, name = source.dim(), op.name
    if name in ("transpose", "swapaxes", "swapdims"):
        a, b = (op.args[n] % dims for n in (1, 2)) if len(op.args) == 3 else (-1, -1)
        return where.at({a: b, b: a}.get(where.dim, where.dim)) if a >= 0 else None
    if name in ("t", "T") and dims == 2:
        return where.at(1 - where.dim)
    if name == "mT" and dims >= 2:
        return where.at({dims - 1: dims - 2, dims - 2: dims - 1}.get(where.dim, where.dim))
    if name == "unsqueeze":
        dim = op.given("dim", 1) % (dims + 1)
        return where.at(where.dim + (dim <= where.dim))
    if name in ("chunk", "split", "tensor_split", "split_with_sizes", "narrow"):
        dim = op.given("dim", 1 if name == "narrow" else 2, 0)
        return where if isinstance(dim, int) and dim % dims != where.dim else None
    if name in ("select", "unbind"):
        dim = op.given("dim", 1, 0) % dims
        return where.at(where.dim - (dim < where.dim)) if dim != where.dim else None
    return None


@rule("as_strided")
def _strided(op: Operation) -> "Where | Sequence[Where]":
    """Arrange the owners in memory like the entries; gaps have no known owner."""
    source = op.args[0]
    where, out = op.where(source), op.out
    if not isinstance(where, IS_PLACED) or not source.numel() or not out.numel():
        return op.unknown()
    unset = NOBODY - 1
    names = torch.full((max(_reach(source), _reach(out)),), unset)
    names.as_strided(source.shape, source.stride(), source.storage_offset()).copy_(
        owners_of(source, where)
    )
    found = names.as_strided(out.shape, out.stride(), out.storage_offset())
    return (
        op.unknown() if bool((found == unset).any()) else owned_by(op.name, found, where.examples)
    )


def _reach(tensor: Tensor) -> int:
    """Return the number of elements that a tensor spans in memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + sum((n - 1) * step for n, step in steps) + 1


@rule("broadcast_tensors")
def _broadcast_tensors(op: Operation) -> "Where | Sequence[Where]":
    """Each output is one input, expanded."""
    given = op.args[0] if isinstance(op.args[0], list | tuple) else op.args
    return [elementwise(op, [tensor], op.out.shape) for tensor in given]


@rule("tril", "triu")
def _triangle(op: Operation) -> Where:
    return op.where(op.args[0])
