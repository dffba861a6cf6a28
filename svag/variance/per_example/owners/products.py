"""Rules for products of vectors and matrices, einsum and attention.

The examples may be along any dimension that the product does not sum over.
"""

from collections.abc import Sequence

from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise, join
from svag.variance.per_example.owners.operation import SUMMED, Operation, rule
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Mark,
    Placed,
    Scattered,
    Single,
    Where,
)


def joined(
    op: Operation,
    found: Sequence["Placed | Mark | None"],
    shape: Sequence[int] | None = None,
) -> Where:
    """Join the marks that the inputs give the output.

    Args:
        op: the operation.
        found: the marks; None for an input without rows of examples.
        shape: shape that the marks' dimensions are of; None for the output's.
    """
    shape = op.out.shape if shape is None else shape
    result: Placed | None = None
    for where in found:
        if isinstance(where, Mark):
            return where
        if where is None:
            continue
        both = where if result is None else join(op, result, where, shape)
        if isinstance(both, Mark):
            return both
        result = both
    return CONSTANT if result is None else result


def moved(op: Operation, tensor: Tensor, dims: Sequence[int | None]) -> "Placed | Mark | None":
    """Return an input's mark for the output.

    Args:
        op: the operation.
        tensor: the input.
        dims: the output's dimension for each of the input's; None for one that is summed over.
    """
    where = op.where(tensor)
    if not isinstance(where, IS_PLACED):
        return None
    if isinstance(where, Single):
        return where
    to = dims[where.dim]
    if to is None or op.out.shape[to] != tensor.shape[where.dim]:
        return op.mixes()
    return where.at(to)


@rule("matmul", "mm", "bmm", "mv", "dot", "inner", "linear", "outer", "ger", "vdot")
def _matmul(op: Operation) -> Where:
    a, b = op.inputs[0], op.inputs[1]
    if op.name == "linear":
        return _linear(op)
    if op.name == "inner" and a.dim() and b.dim():
        left: list[int | None] = [*range(a.dim() - 1), None]
        right: list[int | None] = [*range(a.dim() - 1, op.out.dim()), None]
        return joined(op, [moved(op, a, left), moved(op, b, right)])
    if op.name in ("outer", "ger"):
        return joined(op, [moved(op, a, [0]), moved(op, b, [1])])
    if op.name in ("dot", "vdot", "matmul") and a.dim() == b.dim() == 1:
        return _weighted(op)
    left, right = _product_dims(a.dim(), b.dim(), op.out.dim())
    return joined(op, [moved(op, a, left), moved(op, b, right)])


def _weighted(op: Operation) -> Where:
    """Sum the products of the entries of two vectors, as losses of examples and their weights."""
    lined = elementwise(op, shape=op.inputs[0].shape)
    return SUMMED if isinstance(lined, Layout | Scattered) else lined


def _product_dims(a: int, b: int, out: int) -> tuple[list[int | None], list[int | None]]:
    """Return for the dimensions of two factors those of their matrix product; None if summed."""
    rows, columns = a > 1, b > 1
    batch = out - rows - columns
    left: list[int | None] = [batch - max(a - 2, 0) + d for d in range(max(a - 2, 0))]
    right: list[int | None] = [batch - max(b - 2, 0) + d for d in range(max(b - 2, 0))]
    left += [batch, None] if rows else [None]
    right += [None, out - 1] if columns else [None]
    return left, right


def _linear(op: Operation) -> Where:
    """A dense layer with constant weights keeps all dimensions but the last."""
    x = op.given("input", 0)
    if len(op.pairs()) > 1 or not isinstance(op.where(x), IS_PLACED):
        return op.unknown()
    return joined(op, [moved(op, x, [*range(x.dim() - 1), None])])


_FACTORS = {"addmm": ("mat1", "mat2"), "addmv": ("mat", "vec")}


@rule("addmm", "baddbmm", "addmv")
def _add_product(op: Operation) -> Where:
    first, second = _FACTORS.get(op.name, ("batch1", "batch2"))
    shift, a, b = op.given("input", 0), op.given(first, 1), op.given(second, 2)
    left, right = _product_dims(a.dim(), b.dim(), op.out.dim())
    found = [moved(op, a, left), moved(op, b, right)]
    if isinstance(op.where(shift), IS_PLACED):
        aligned = elementwise(op, [shift])
        found.append(aligned if aligned is not CONSTANT else None)
    return joined(op, found)


@rule("einsum")
def _einsum(op: Operation) -> Where:
    """Place the examples at their letter in the result, with ellipses replaced by letters."""
    equation = op.args[0]
    if not isinstance(equation, str):
        return op.unknown()
    given = op.args[1] if isinstance(op.args[1], list | tuple) else op.args[1:]
    terms, result = letters(equation, [t.dim() for t in given])
    found = []
    for term, operand in zip(terms, given, strict=True):
        dims = [result.index(c) if c in result else None for c in term]
        found.append(moved(op, operand, dims))
    return joined(op, found)


def letters(equation: str, dims: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result, with ellipses replaced by letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [n - len(t.replace("...", "")) for t, n in zip(terms, dims, strict=True)]
    most = max([h for t, h in zip(terms, hidden, strict=True) if "..." in t], default=0)
    spare = list(map(chr, range(0x3B1, 0x3B1 + most)))
    every = [
        t.replace("...", "".join(spare[most - h :])) for t, h in zip(terms, hidden, strict=True)
    ]
    if not arrow:
        once = "".join(terms).replace("...", "")
        right = "..." * ("..." in left) + "".join(
            sorted(c for c in set(once) if once.count(c) == 1)
        )
    return every, right.replace("...", "".join(spare))


def matrix_letters(a: int, b: int) -> tuple[list[str], str]:
    """Return the letters of two factors of ``a`` and ``b`` dimensions, and of their product."""
    most = max(a - 2, b - 2, 0)
    spare = "".join(map(chr, range(0x3C3, 0x3C3 + most)))
    left = spare[most - max(a - 2, 0) :] + ("mn" if a > 1 else "n")
    right = spare[most - max(b - 2, 0) :] + ("np" if b > 1 else "n")
    return [left, right], spare + "m" * (a > 1) + "p" * (b > 1)


@rule("cdist")
def _distances(op: Operation) -> Where:
    """Distances of rows: as a matrix product with the second factor transposed."""
    a, b = op.args[:2]
    left, right = _product_dims(a.dim(), b.dim(), op.out.dim())
    right = [*right[:-2], op.out.dim() - 1, None]
    return joined(op, [moved(op, a, left), moved(op, b, right)])


@rule("tensordot")
def _tensordot(op: Operation) -> Where:
    """The result has the dimensions that are not summed over, those of the first factor first."""
    a, b, dims = op.given("a", 0), op.given("b", 1), op.given("dims", 2, 2)
    if isinstance(dims, int):
        dims = list(range(a.dim() - dims, a.dim())), list(range(dims))
    if isinstance(dims, Tensor) or len(dims) != 2:
        return op.unknown()
    over = [{d % t.dim() for d in part} for part, t in zip(dims, (a, b), strict=True)]
    free = 0
    found = []
    for tensor, summed_over in zip((a, b), over, strict=True):
        to: list[int | None] = []
        for dim in range(tensor.dim()):
            to.append(None if dim in summed_over else free)
            free += dim not in summed_over
        found.append(moved(op, tensor, to))
    return joined(op, found)


@rule("scaled_dot_product_attention")
def _attention(op: Operation) -> Where:
    """Queries, keys, values and mask share the batch dimensions; all others are mixed."""
    found: list[Placed | Mark | None] = []
    for name, place in (("query", 0), ("key", 1), ("value", 2), ("attn_mask", 3)):
        tensor = op.given(name, place)
        if not isinstance(tensor, Tensor):
            continue
        shift = op.out.dim() - tensor.dim()
        batch = [d + shift for d in range(tensor.dim() - 2)]
        found.append(
            moved(op, tensor, [*batch, op.out.dim() - 2 if name == "query" else None, None])
        )
    return joined(op, found)
