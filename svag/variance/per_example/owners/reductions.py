"""Rules for operations that reduce some dimensions, or work along one."""

from torch import Tensor

from svag.variance.per_example.owners.elementwise import elementwise
from svag.variance.per_example.owners.operation import SUMMED, Operation, rule
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Scattered,
    Single,
    Where,
)

_SUMS = frozenset({"sum", "mean", "nansum", "nanmean"})
_REDUCTIONS = _SUMS | {
    *("prod", "amax", "amin", "aminmax", "max", "min", "median", "nanmedian", "logsumexp", "norm"),
    *("std", "var", "std_mean", "var_mean", "all", "any", "argmax", "argmin", "count_nonzero"),
    *("linalg_vector_norm", "mode", "kthvalue", "quantile", "nanquantile"),
}


@rule(*_REDUCTIONS)
def _reduction(op: Operation) -> Where:
    """Drop the reduced dimensions; over the examples' dimension only sums are allowed."""
    source = op.args[0] if op.args else op.inputs[0]
    if op.name in ("max", "min") and isinstance(op.given("other", 1), Tensor):
        return elementwise(op)
    where = op.where(source)
    if not isinstance(where, IS_PLACED):
        return op.unknown()
    if isinstance(where, Single):
        return where
    if isinstance(op.given("q", 1), Tensor) and op.given("q", 1).dim() and "quantile" in op.name:
        return op.unknown()  # several quantiles add a dimension
    reduced = _reduced(op, source.dim())
    if reduced is None:
        return op.unknown()
    if where.dim in reduced:
        if op.name in ("argmax", "argmin"):
            return op.chooses()
        if op.name in _SUMS or not op.out.requires_grad:
            return SUMMED
        return op.mixes()
    keeps = op.out.dim() == source.dim()
    return where if keeps else where.at(where.dim - sum(d < where.dim for d in reduced))


_DIM_SECOND = frozenset({"norm", "linalg_vector_norm", "kthvalue", "quantile", "nanquantile"})


def _reduced(op: Operation, dims: int) -> list[int] | None:
    """Return the dimensions that a reduction reduces; None if they cannot be determined."""
    position = 2 if op.name in _DIM_SECOND else 1
    given = op.given("dim", position, op.kwargs.get("axis"))
    if op.name in ("mode", "kthvalue", "median", "nanmedian") and given is None:
        given = -1 if op.out.dim() or len(op.outputs) > 1 else None
    if given is None:
        return list(range(dims))
    if op.name in ("std", "var", "std_mean", "var_mean") and isinstance(given, bool):
        return list(range(dims))
    values = [given] if isinstance(given, int) else given
    if not isinstance(values, list | tuple) or not all(type(v) is int for v in values):
        return None
    if len(op.args) > 2 and position == 1:
        rest = op.args[position:]
        if all(type(v) is int for v in rest):
            values = list(rest)
    return [v % dims for v in values] if values else list(range(dims))


@rule("searchsorted")
def _searched(op: Operation) -> Where:
    """Look numbers up in sorted constants."""
    values = op.given("input", 1, op.kwargs.get("self"))
    if not isinstance(values, Tensor) or op.where(op.args[0]) is not CONSTANT:
        return op.unknown()
    return elementwise(op, [values])


@rule("multinomial")
def _drawn(op: Operation) -> Where:
    """Draw from each row of probabilities."""
    where = op.where(op.inputs[0])
    if isinstance(where, Layout | Scattered) and where.dim == op.inputs[0].dim() - 1:
        return op.chooses()
    return where


@rule("softmax", "log_softmax", "special_softmax", "special_log_softmax", "glu", "diff")
@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def _along(op: Operation) -> Where:
    """Keep the mark, unless the operation works along the examples' dimension."""
    source = op.args[0] if op.args else op.inputs[0]
    dim = op.given("dim", 2 if op.name == "diff" else 1, -1)
    if not isinstance(dim, int):
        return op.unknown()
    where = op.where(source)
    if isinstance(where, Layout | Scattered) and where.dim == dim % source.dim():
        return op.mixes()
    return where
