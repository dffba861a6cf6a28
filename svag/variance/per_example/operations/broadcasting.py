"""Parameters that are broadcast: in the backward pass each example has its own copy of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions, Direct, PlacedRows, Shared
from svag.variance.per_example.owners.following import follow, state_of
from svag.variance.per_example.owners.marks import mark
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    Layout,
    Placed,
    Scattered,
    Single,
    Summed,
)
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.taps import Factory
from svag.variance.per_example.structures import called_with, tensors_in

_SUMS = frozenset({"add", "sub", "subtract"})
BROADCAST = _SUMS | {
    *("mul", "multiply", "div", "truediv", "true_divide", "divide", "pow", "maximum", "minimum"),
    *("where", "lerp", "addcmul", "addcdiv", "atan2", "fmax", "fmin", "max", "min", "clamp"),
    *("logaddexp", "hypot", "xlogy", "mse_loss", "float_power"),
}
_KEEP_NO_OUTPUT = _SUMS | {"mul", "multiply", "div", "truediv", "true_divide", "divide", "where"}


def broadcast(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any], name: str
) -> Any:
    """Broadcast a parameter; in the backward pass each example has its own copy of it."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = mode.recorder.followed(tensors)
    batch = [t for t in tensors if state_of(t) is not CONSTANT]
    linear = name in _SUMS and not kwargs and len(args) == 2
    marks = [state_of(t) for t in batch]
    if all(isinstance(where, Summed) for where in marks):
        if not linear:
            raise PerExampleError(_scaled_sum(mode, func, followed))
        return _with_sums(mode, func, args, followed)
    for tensor in batch:
        mode.where_of(tensor, func)
    out = func(*args, **kwargs)
    follow(func, args, kwargs, tensors, [out])
    where = mode.where_of(out, func)
    if linear:
        uses = [(t, _summed(t, out, where, _sign(func, args, t))) for t in followed]
    else:
        uses = [(t, _copies(func, args, kwargs, t, batch, out, where)) for t in followed]
    copy = name not in _KEEP_NO_OUTPUT
    return mode.tap(out, [] if linear else batch, uses, where, observe=True, copy=copy)


def write_copies(mode: Interception, func: Call, target: Tensor, index: Any, value: Tensor) -> Any:
    """``target[index] = p``: the rows written say to which example each copy of p belongs."""
    with mode:
        region = target[tuple(index) if isinstance(index, list) else index]
    where = mode.where_of(region, func)
    uses = [(value, _summed(value, region, where))]
    copies = mode.tap(value.expand(region.shape).clone(), [], uses, where, observe=True)
    with mode:
        return func(target, index, copies)


def biased_attention(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Give each example a copy of a learned attention bias; None if the bias is not learned.

    Running attention on each example instead could not draw the same dropout mask again.
    """
    given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
    query, key, bias = given["query"], given["key"], given.get("attn_mask")
    others = [t for t in tensors_in(tuple(given.values())) if t is not bias]
    where = state_of(query)
    if bias is None or mode.recorder.followed(others):
        return None
    if not isinstance(where, Layout | Scattered) or where.dim >= query.dim() - 2:
        return None
    if bias.dim() > query.dim():
        return None
    copies = bias.expand(*query.shape[:-1], key.shape[-2]).clone()
    copies = mode.tap(copies, [], [(bias, _summed(bias, copies, where))], where, observe=True)
    with mode:
        return called_with(func, args, kwargs, {id(bias): copies})


def _scaled_sum(mode: Interception, func: Call, followed: Sequence[Tensor]) -> str:
    return (
        f"{name_of(func)} multiplies {', '.join(map(mode.recorder.label, followed))} with a "
        "sum over the examples, so its gradient has no part of each example; multiply before "
        "the losses are added up (reduction='none'), or use svag.micro_batch_variance"
    )


def _with_sums(
    mode: Interception, func: Call, args: Sequence[Any], followed: Sequence[Tensor]
) -> Any:
    """Add a penalty to a loss: each example gets an equal share of the penalty's gradient."""
    examples = mode.recorder.examples

    def shared(tensor: Tensor) -> Factory:
        sign = _sign(func, args, tensor)

        def parts(delta: Tensor) -> Contributions:
            return Shared(sign * delta.sum_to_size(tensor.shape), examples)

        return parts

    sums = next(s for s in map(state_of, tensors_in(args)) if s is not CONSTANT)
    out = func(*args)
    uses = [(t, shared(t)) for t in followed]
    tapped = mode.tap(out, [], uses, Single(0, examples), observe=True)
    mark(tapped, sums)
    return tapped


def _sign(func: Call, args: Sequence[Any], tensor: Tensor) -> int:
    """Return -1 for the operand that a subtraction subtracts, else 1."""
    reflected = name_of(func).startswith("__r") or name_of(func) == "rsub"
    is_second = (args[0] is tensor) if reflected else (args[1] is tensor)
    return -1 if plain_name(func) != "add" and is_second else 1


def _summed(tensor: Tensor, out: Tensor, where: Placed, sign: int = 1) -> Factory:
    """Return the factory of a parameter that is added to the mini-batch, or subtracted."""
    shape, dim = _own_shape(tensor, out, where)

    def sums(delta: Tensor) -> Contributions:
        return _by_example(sign * delta.sum_to_size(shape), tensor, where, dim)

    return sums


def _copies(
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tensor: Tensor,
    batch: Sequence[Tensor],
    out: Tensor,
    where: Placed,
) -> Factory:
    """Return the factory of a broadcast parameter, which runs the operation again on its copies."""
    shape, dim = _own_shape(tensor, out, where)

    def copies(delta: Tensor, *data: Tensor) -> Contributions:
        own = tensor.detach().to(delta.dtype).expand(shape)
        known = {id(t): d for t, d in zip(batch, data, strict=True)}
        grad = _gradient(func, args, kwargs, {**known, id(tensor): own}, own, delta)
        return _by_example(grad, tensor, where, dim)

    return copies


def _by_example(grad: Tensor, tensor: Tensor, where: Placed, dim: int) -> Contributions:
    """Return the contributions to a parameter, given the gradient of its copies along ``dim``."""
    if isinstance(where, Single):
        return Direct(where.examples_first(grad).sum(1))
    mine = where.at(dim)
    if tensor.dim() == grad.dim() and tensor.shape[dim] == grad.shape[dim]:
        return PlacedRows(grad, mine)
    return Direct(mine.examples_first(grad).sum(1).reshape(-1, *tensor.shape))


def _own_shape(tensor: Tensor, out: Tensor, where: Placed) -> tuple[list[int], int]:
    """Return the parameter's shape with the size of the examples' dimension, and that dimension."""
    if isinstance(where, Single):
        return list(tensor.shape), 0
    from_right = out.dim() - where.dim
    lead = max(0, from_right - tensor.dim())
    shape = [1] * lead + list(tensor.shape)
    dim = len(shape) - from_right
    shape[dim] = out.shape[where.dim]
    return shape, dim


def _gradient(
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    given: dict[int, Tensor],
    own: Tensor,
    delta: Tensor,
) -> Tensor:
    """Run the operation again and return the gradient of the parameter's copies."""
    with torch.enable_grad():
        copies = own.detach().requires_grad_()
        given = {k: copies if t is own else t.detach() for k, t in given.items()}
        out = called_with(func, args, kwargs, given)
    (found,) = torch.autograd.grad(out, copies, delta.to(out.dtype), materialize_grads=True)
    return found.detach()  # torch 2.9 makes zeros that require gradients
