"""Rules for operations that move entries: views, indices, masks, sorts, gathers, stacking, padding.

Such an operation moves the owner of an entry (the number of the example it belongs to) as it moves
the entry. So the operation is run on a tensor of owners, and the marks of the outputs are read from
the result. The tensor of owners has size 1 along dimensions that do not matter.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from svag.variance.per_example.following import Operation, elementwise, join, rule
from svag.variance.per_example.operation_names import LIKE_FIRST
from svag.variance.per_example.owners import owned_by, owners_along, owners_of
from svag.variance.per_example.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Owners,
    Scattered,
    Single,
    Summed,
    Where,
    placed,
)

_VIEWS = (
    *(
        "squeeze",
        "unsqueeze",
        "transpose",
        "swapaxes",
        "swapdims",
        "permute",
        "movedim",
        "moveaxis",
        "t",
    ),
    *("T", "mT", "H", "mH", "adjoint", "select", "narrow", "unbind", "split", "chunk"),
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
    if isinstance(where, Layout) and isinstance(op.out, Tensor):
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
    found: list[Where] = []
    for tensor, out in zip(given, op.outputs, strict=True):
        one = Operation(op.func, op.name, op.args, op.kwargs, op.inputs, op.states, [out])
        found.append(elementwise(one, [tensor]))
    return found


def run_on_owners(
    op: Operation, owners: dict[int, Tensor], examples: int
) -> "Where | Sequence[Where]":
    """Run an operation on tensors of owners instead of values, and mark the outputs by the results.

    Args:
        op: the operation.
        owners: tensors of owners, by id of the argument that each replaces.
        examples: B, the number of examples.
    """
    # Owners are shifted by one, so that entries that the operation fills with 0 are NOBODY's.
    named = {key: names + 1 for key, names in owners.items()}
    args, kwargs = _with_owners((op.args, op.kwargs), named)
    try:
        result = op.func(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, NotImplementedError):
        return op.unknown()
    results = [result] if isinstance(result, Tensor) else list(result)
    return [owned_by(op.name, r - 1, examples) for r in results]


def _with_owners(value: Any, owners: dict[int, Tensor]) -> Any:
    """Return arguments with owners instead of values, and other tensors (indices) on the CPU."""
    if isinstance(value, Tensor):
        if id(value) in owners:
            return owners[id(value)]
        return value.detach().cpu() if value.device.type != "cpu" else value.detach()
    if isinstance(value, dict):
        return {key: _with_owners(part, owners) for key, part in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = [_with_owners(part, owners) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


# --- operations with a cheaper rule than running them on all owners -----------------------------


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
        return elementwise(op, [index]) if _alone(source, op) else op.unknown()
    if isinstance(where, Single) or source.dim() == 0:
        return where
    dim = dim % source.dim()
    if where.dim == dim:
        return run_on_owners(op, {id(source): owners_of(source, where)}, where.examples)
    kept = placed(
        where.dim, where.examples, where.owners(source.shape[where.dim])[: op.out.shape[where.dim]]
    )
    return join(op, kept, picked, op.out) if isinstance(picked, IS_PLACED) else kept


def _alone(source: Tensor, op: Operation) -> bool:
    """Whether the source is constant and only the index depends on the examples."""
    return op.where(source) is CONSTANT


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
    front = torch.empty(shape, device="meta")
    one = Operation(op.func, op.name, op.args, op.kwargs, op.inputs, op.states, [front])
    return elementwise(one, parts)


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


@rule("sort", "topk", "argsort", "msort", "kthvalue")
def _sorted(op: Operation) -> "Where | Sequence[Where]":
    """Sort or topk: along the examples' dimension, owners are sorted with the values."""
    source = op.args[0] if op.args else op.inputs[0]
    where = op.where(source)
    if not isinstance(where, Layout | Scattered):
        return where if isinstance(where, Single) else op.unknown()
    at = {"topk": 2, "kthvalue": 2}.get(op.name, 1)
    dim = 0 if op.name == "msort" else op.given("dim", at, -1)
    if isinstance(dim, bool):
        dim = op.args[2] if len(op.args) > 2 else -1
    dim = dim % source.dim()
    if op.name == "kthvalue" and op.out.dim() < source.dim() and where.dim != dim:
        return where.at(where.dim - (dim < where.dim))
    if where.dim != dim:
        return where
    if op.name in ("msort", "kthvalue"):
        return op.unknown()
    if source.dim() > 1 and op.outputs[0].requires_grad:
        return op.mixes()  # an entry's row in the result depends on the other examples
    order = op.outputs[-1].detach().cpu()
    names = owners_of(source, where).gather(dim, order)
    return owned_by(op.name, names, where.examples)


# --- several tensors into one -------------------------------------------------------------------


@rule("cat", "concat", "concatenate", "hstack", "vstack", "dstack", "row_stack", "column_stack")
def _joined(op: Operation) -> "Where | Sequence[Where]":
    """Concatenate tensors; along the examples' dimension their owners, too."""
    tensors = op.args[0] if op.args else op.kwargs["tensors"]
    if any(isinstance(op.where(t), Summed) for t in tensors):
        return op.mixes()
    found = op.pairs()
    plain = op.name in ("cat", "concat", "concatenate")
    dim = int(op.given("dim", 1, op.kwargs.get("axis", 0))) % op.out.dim() if plain else 0
    apart = [t for t in tensors if t.dim() == op.out.dim()]
    rows = [w for _, w in found]
    if (
        plain
        and len(apart) == len(tensors)
        and all(isinstance(w, Layout | Scattered) for w in rows)
    ):
        if all(w.dim != dim for w in rows):
            return elementwise(op, [t for t, _ in found])
        if all(w.dim == dim for w in rows):
            return _in_a_row(op, tensors, dim, rows[0].examples)
    owners = {id(t): owners_of(t, op.where(t)) for t in tensors}
    return run_on_owners(op, owners, rows[0].examples)


def _in_a_row(op: Operation, tensors: Sequence[Tensor], dim: int, examples: int) -> Where:
    names = [owners_along(op.where(tensor), tensor, dim) for tensor in tensors]
    return placed(dim, examples, np.concatenate(names))


@rule("stack")
def _stacked(op: Operation) -> "Where | Sequence[Where]":
    tensors = op.args[0] if op.args else op.kwargs["tensors"]
    if any(isinstance(op.where(t), Summed) for t in tensors):
        return op.mixes()
    examples = op.pairs()[0][1].examples
    owners = {}
    for tensor in tensors:
        where, names = op.where(tensor), owners_of(tensor, op.where(tensor))
        if isinstance(where, Single) and tensor.dim():
            names = names.contiguous()
        owners[id(tensor)] = names
    return run_on_owners(op, owners, examples)


@rule("pad_sequence")
def _padded_sequences(op: Operation) -> Where:
    """Pad tensors of one example each, and stack them."""
    sequences, first = op.given("sequences", 0), op.given("batch_first", 1, False)
    found = [op.where(t) for t in sequences]
    if not all(isinstance(where, Single) for where in found):
        return op.unknown()
    singles = cast(list[Single], found)
    owners = np.array([where.example for where in singles])
    return placed(0 if first else 1, singles[0].examples, owners)


@rule("pad", "constant_pad_nd")
def _padded(op: Operation) -> Where:
    """Pad the owners; padding belongs to no example."""
    source, pad = op.given("input", 0), list(op.given("pad", 1))
    where = op.where(source)
    if not isinstance(where, Layout | Scattered):
        return where
    from_right = source.dim() - 1 - where.dim
    here = pad[2 * from_right : 2 * from_right + 2]
    if not any(here):
        return where
    if op.given("mode", 2, "constant") not in ("constant", 0, 0.0) and op.name == "pad":
        return op.unknown()
    names = where.owners(source.shape[where.dim])
    before, after = here
    names = names[max(0, -before) : len(names) - max(0, -after)]
    filled = np.pad(names, (max(0, before), max(0, after)), constant_values=NOBODY)
    return placed(where.dim, where.examples, filled)


@rule("index_fill")
def _filled(op: Operation) -> Where:
    return op.where(op.args[0])


@rule("one_hot")
def _one_hot(op: Operation) -> Where:
    return op.where(op.given("input", 0, op.inputs[0]))


@rule("tril", "triu")
def _triangle(op: Operation) -> Where:
    return op.where(op.args[0])
