"""Rules for losses and distances: where the examples are in them, and which sum over examples."""

import torch
from torch import Tensor

from svag.variance.per_example.owners.operation import SUMMED, Operation, rule
from svag.variance.per_example.owners.placement import (
    Layout,
    Lost,
    Placed,
    Scattered,
    Single,
    Where,
)
from svag.variance.per_example.owners.products import joined

_LOSSES = (
    *("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d", "mse_loss", "l1_loss"),
    *("smooth_l1_loss", "huber_loss", "binary_cross_entropy", "kl_div", "poisson_nll_loss"),
    *("binary_cross_entropy_with_logits", "soft_margin_loss", "hinge_embedding_loss"),
    *("margin_ranking_loss", "cosine_embedding_loss", "triplet_margin_loss", "ctc_loss"),
    *("multi_margin_loss", "multilabel_margin_loss"),
)
_ENTRYWISE = frozenset(
    {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "kl_div"}
    | {"binary_cross_entropy_with_logits", "soft_margin_loss", "hinge_embedding_loss"}
    | {"poisson_nll_loss", "margin_ranking_loss"}
)


@rule(*_LOSSES)
def _loss(op: Operation) -> Where:
    """A scalar loss is a sum over examples; with ``reduction="none"`` the dimensions are kept."""
    if op.name in _CLASSES:
        lined = _classified(op)
    elif op.name in ("ctc_loss", "multi_margin_loss", "multilabel_margin_loss"):
        return _first_dimension(op)
    elif op.out.dim() == 0 or op.name in _ENTRYWISE:
        lined = lined_up(op)
    else:
        return _first_dimension(op)
    if op.out.dim() or isinstance(lined, Single | Lost):
        return lined
    return SUMMED


_CLASSES = frozenset({"cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d"})


def _first_dimension(op: Operation) -> Where:
    """Losses of rows, with the examples along the first dimension (for ctc_loss the second)."""
    first = 1 if op.name == "ctc_loss" else 0
    found = [(t, w) for t, w in op.pairs() if not isinstance(w, Single)]
    if len(found) < len(op.pairs()) or not found:
        return op.unknown()
    if any(w.dim != (first if t.dim() > 1 and t is op.inputs[0] else 0) for t, w in found):
        return op.mixes()
    tensor, where = found[0]
    lined = joined(op, [w.at(0) for _, w in found], [tensor.shape[where.dim]])
    return lined if op.out.dim() or isinstance(lined, Lost) else SUMMED


def _classified(op: Operation) -> Where:
    """Join scores ``(N, C, ...)`` with class indices ``(N, ...)``."""
    scores, found = op.inputs[0], []
    if scores.dim() < 2:
        return op.unknown()
    shape = (scores.shape[0], *scores.shape[2:])
    for tensor, where in op.pairs():
        if isinstance(where, Single) or tensor.dim() < scores.dim():
            found.append(where)
        elif where.dim == 1:
            return op.mixes()
        else:
            found.append(where.at(where.dim - (where.dim > 1)))
    return joined(op, found, shape)


def lined_up(op: Operation) -> Where:
    """Join inputs of one shape, up to broadcasting.

    Args:
        op: the operation.
    """
    try:
        shape = torch.broadcast_shapes(*(t.shape for t, _ in op.pairs()))
    except RuntimeError:
        return op.unknown()
    return joined(op, [_right(t, w, len(shape)) for t, w in op.pairs()], shape)


def _right(tensor: Tensor, where: Placed, dims: int) -> Placed:
    return where if isinstance(where, Single) else where.at(where.dim + dims - tensor.dim())


@rule("cosine_similarity", "pairwise_distance")
def _compared(op: Operation) -> Where:
    """Join the inputs as broadcasting does, without the dimension that is reduced."""
    lined = lined_up(op)
    if not isinstance(lined, Layout | Scattered):
        return lined
    dims = max(t.dim() for t in op.inputs)
    default = 1 if op.name == "cosine_similarity" else dims - 1
    dim = op.given("dim", 2, default) if op.name == "cosine_similarity" else default
    if lined.dim == dim % dims:
        return op.mixes()
    return lined if op.out.dim() == dims else lined.at(lined.dim - (lined.dim > dim % dims))
