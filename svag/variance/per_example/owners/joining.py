"""Rules for operations that join tensors or pad them."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise
from svag.variance.per_example.owners.on_owners import run_on_owners
from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.owner_tensors import owners_along, owners_of
from svag.variance.per_example.owners.placement import (
    NOBODY,
    Layout,
    Scattered,
    Single,
    Summed,
    Where,
    placed,
)


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
