"""The rule in torch operations: any device and dtype, differentiable, compilable.

Read :func:`_update` first: gradient -> moments -> variance -> factor -> update, in this order.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svag.anatomy import METHODS
from svag.optim import moments, rounding
from svag.optim.arithmetic import MANY, ONE, Arithmetic, Operand, Scalar
from svag.optim.factors import FACTORS, dispersion, raw_dispersion
from svag.optim.local import PLAIN
from svag.optim.rule import Bucket, Row, Rule

_ADAM = METHODS["adam"].anatomy
_HALF = (torch.bfloat16, torch.float16)
_NOISE = {
    "param": "param",
    "exp_avg": "mean",
    "exp_avg_sq": "second",
    "exp_avg_var": "second",
    "max_exp_avg_sq": "largest",
}

# Measured on two cores. Below _SMALL elements calls cost more than arithmetic. With the corrected
# variance's five temporaries, memory that does not stay in cache costs more than the rest, so there
# _PIECE elements are updated at a time; Adam and the unadapted methods are faster whole.
_SMALL = 4096
_PIECE = 65536


def apply(rule: Rule, bucket: Bucket, *, foreach: bool | None) -> None:
    """Take one step with every tensor of a bucket, in place; gradients are left untouched.

    Complex tensors are treated as pairs of reals. Half-precision tensors are computed in float32
    and rounded once, when they are written back.

    Args:
        rule: the update.
        bucket: tensors of one device, dtype and step.
        foreach: operate on lists (True), tensor by tensor (False), or as is faster (None).
    """
    rows = bucket.rows
    if rows[0].param.is_complex():
        rows = [_map(torch.view_as_real, row) for row in rows]
    if not any(tensor is not None and tensor.dtype in _HALF for tensor in rows[0]):
        _step(rule, bucket.step, rows, foreach)
        return
    computed = [_map(Tensor.float, row) for row in rows]
    _step(rule, bucket.step, computed, foreach)
    for row, result, place in zip(rows, computed, bucket.places, strict=True):
        _store(rule, row, result, rounding.key(rule.seed, place, bucket.step))


def _store(rule: Rule, row: Row, result: Row, key: Any) -> None:
    """Write back what was computed in float32, rounded to nearest or stochastically."""
    dithers = rule.dither_param or rule.dither_state
    noise = rounding.noise(key, row.param) if dithers else None
    for name, stored, value in zip(Row._fields, row, result, strict=True):
        if stored is None or stored is value or name in ("grad", "grad_var"):
            continue
        dithered = rule.dither_param if name == "param" else rule.dither_state
        if noise is not None and dithered and stored.dtype == torch.bfloat16:
            rounding.round_(stored, value, getattr(noise, _NOISE[name]))
        else:
            stored.copy_(value)


def _step(rule: Rule, step: Scalar, rows: list[Row], foreach: bool | None) -> None:
    """Update small tensors as one list, large ones one by one, in pieces that fit a cache."""
    if foreach is None:
        listed = [row for row in rows if _listable(row)]
        single = [row for row in rows if not _listable(row)]
    else:
        listed, single = (rows, []) if foreach else ([], rows)
    dtype = rows[0].param.dtype
    now = _Now(step, moments.debiasing(rule.beta, step), moments.debiasing(rule.beta2, step))
    if listed:
        columns = zip(*listed, strict=True)
        operands = (None if column[0] is None else list(column) for column in columns)
        _update(MANY, rule, now, Row(*operands), dtype)
    corrected = rule.anatomy.adapted and not rule.anatomy.raw
    for row in single:
        for piece in _pieces(row) if corrected else (row,):
            _update(ONE, rule, now, piece, dtype)


def _listable(row: Row) -> bool:
    """Whether a row is updated faster in a list, and can be: of plain tensors, none negated.

    As in torch, tensors of classes of their own, which may not know lists, go one by one.
    """
    tensors = [tensor for tensor in row if tensor is not None]
    if not all(type(tensor) in PLAIN for tensor in tensors):
        return False
    if row.param.device.type != "cpu":
        return True
    return row.param.numel() <= _SMALL and not any(tensor.is_neg() for tensor in tensors)


def _pieces(row: Row) -> Iterable[Row]:
    """Cut a large row into views of equal places, so that temporaries stay in cache.

    Left whole: what autograd follows, what is not contiguous throughout, and what is no plain
    tensor.
    """
    tensors = [tensor for tensor in row if tensor is not None]
    if (
        not all(type(tensor) in PLAIN for tensor in tensors)
        or row.param.numel() <= _PIECE
        or row.param.device.type != "cpu"
        or torch.is_grad_enabled()
        or not all(tensor.is_contiguous() for tensor in tensors)
    ):
        return [row]
    count = len(row.param.view(-1).split(_PIECE))
    columns = (
        [None] * count if tensor is None else tensor.detach().view(-1).split(_PIECE)
        for tensor in row
    )
    return itertools.starmap(Row, zip(*columns, strict=True))


def _map(function: Callable[[Tensor], Tensor], row: Row) -> Row:
    return Row(*(None if tensor is None else function(tensor) for tensor in row))


class _Now(NamedTuple):
    """The step, and how much of the averages' weight has been given by then."""

    step: Scalar
    weight: Scalar
    weight2: Scalar


def _update(ops: Arithmetic, rule: Rule, now: _Now, operands: Row, dtype: torch.dtype) -> None:
    anatomy = rule.anatomy
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, exp_avg_var, grad_var = operands
    if rule.maximize:
        grad = ops.neg(grad)
    if isinstance(rule.weight_decay, Tensor) and not rule.decoupled:
        # A copy, since autograd keeps it while the parameter moves on.
        grad = ops.add(grad, ops.mul(ops.add(param, 0), rule.weight_decay))
    elif rule.weight_decay != 0 and not rule.decoupled:
        grad = ops.add(grad, param, alpha=rule.weight_decay)
    elif rule.weight_decay != 0:
        ops.mul_(param, 1 - rule.lr * rule.weight_decay)

    variance = None
    if exp_avg_sq is not None and not anatomy.raw:
        variance = _corrected_variance(ops, rule, now.step, grad, exp_avg, exp_avg_sq, dtype)
    if exp_avg is not None:
        moments.average_(ops, exp_avg, grad, rule.beta)
    if exp_avg_sq is not None:
        moments.average_square_(ops, exp_avg_sq, grad, rule.beta2)
    if max_exp_avg_sq is not None:
        largest = max_exp_avg_sq
        if torch.is_grad_enabled():
            largest = ops.add(largest, 0)  # a copy, since autograd keeps it
        exp_avg_sq = ops.copy_(max_exp_avg_sq, ops.maximum(largest, exp_avg_sq))

    spread = None
    if anatomy.raw:
        root_weight = now.weight2**0.5
        denominator = _raw_denominator(ops, rule, root_weight, exp_avg_sq, dtype)
        weight = now.weight / root_weight
        if anatomy == _ADAM:
            # Eq. (7) backwards: sign(m) * |m|/(sqrt(v) + eps) is m/(sqrt(v) + eps).
            _descend(ops, param, exp_avg, rule.lr / weight, over=denominator)
            return
        spread = raw_dispersion(ops, denominator, ops.div(exp_avg, weight))
    elif variance is not None:
        spread = dispersion(ops, variance, ops.div(exp_avg, now.weight), dtype)
        if isinstance(now.step, Tensor):
            spread = spread.masked_fill(now.step == 1, 1)
    elif exp_avg_var is not None:
        moments.average_variance_(ops, exp_avg_var, grad_var, rule.beta)
        variance = ops.div(exp_avg_var, now.weight * now.weight)
        spread = dispersion(ops, variance, ops.div(exp_avg, now.weight), dtype)
    elif grad_var is not None:
        spread = dispersion(ops, ops.add(grad_var, 0), grad, dtype)

    direction, step_size = grad, rule.lr
    if anatomy.direction == "momentum":
        direction = exp_avg
        if not anatomy.sign:
            step_size = rule.lr / now.weight
    if anatomy.sign:
        # torch.sign(NaN) is 0: without the second term a NaN would freeze a coordinate unseen.
        direction = ops.add_(ops.sign(direction), direction, alpha=0)
    if spread is not None:
        direction = ops.mul(FACTORS[anatomy.factor](ops, spread), direction)
    _descend(ops, param, direction, step_size)


def _corrected_variance(
    ops: Arithmetic,
    rule: Rule,
    step: Scalar,
    grad: Operand,
    exp_avg: Operand,
    exp_avg_sq: Operand,
    dtype: torch.dtype,
) -> Operand | None:
    """Variance of the direction: s for the gradient, rho s for its average; None if gamma = 1."""
    if moments.has_variance(rule.beta, step) is False:
        return None
    variance = moments.gradient_variance(ops, grad, exp_avg, exp_avg_sq, rule.beta, step, dtype)
    if rule.anatomy.direction == "momentum":
        variance = ops.mul_(variance, moments.rho(rule.beta, step))
    return variance


def _raw_denominator(
    ops: Arithmetic, rule: Rule, weight: Scalar, exp_avg_sq: Operand, dtype: torch.dtype
) -> Operand:
    """Adam's sqrt(v) + eps (Eq. 6) times ``weight``, which makes sqrt(v~) of sqrt(v).

    Never 0, so that m = v = 0 does not move.
    """
    root = ops.sqrt(exp_avg_sq)
    if torch.is_grad_enabled():
        root = ops.add(root, 0)  # autograd has kept the root
    if rule.eps == 0:
        return ops.clamp_min_(root, torch.finfo(dtype).tiny ** 0.5)
    return ops.add_(root, rule.eps * weight)


def _descend(
    ops: Arithmetic,
    param: Operand,
    direction: Operand,
    lr: Scalar,
    *,
    over: Operand | None = None,
) -> None:
    """Subtract lr * direction, or lr * direction / over, from the parameter."""
    if isinstance(lr, Tensor):
        direction = ops.mul(direction, lr)
        ops.sub_(param, direction if over is None else ops.div(direction, over))
    elif over is None:
        ops.add_(param, direction, alpha=-lr)
    else:
        ops.addcdiv_(param, direction, over, value=-lr)
