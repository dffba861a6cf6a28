"""Chooses the rule for an operation without a closed form.

The operation runs unchanged, so that the gradient is autograd's; only the contributions of the
examples are computed.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.operations.broadcasting import (
    BROADCAST,
    biased_attention,
    broadcast,
    write_copies,
)
from svag.variance.per_example.operations.expanded import joined
from svag.variance.per_example.operations.masked import by_masks
from svag.variance.per_example.operations.one_by_one import by_vmap, unknown
from svag.variance.per_example.operations.products import product
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.recording.functions import Call, is_in_place
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.structures import tensors_in

_REFUSED = frozenset({"masked_scatter", "bernoulli"})
"""What a row receives from ``masked_scatter`` depends on the examples before it; torch has no
operation out of place that draws what ``bernoulli_(p)`` draws."""

_JOINED = frozenset({"cat", "concat", "concatenate"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "einsum", "bilinear"})


def otherwise(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation by the rule of this file for its name.

    Args:
        mode: the open context's interception.
        func: the operation, which takes a parameter.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        The result of the operation.

    Raises:
        PerExampleError: there is no rule for the operation.
    """
    name = plain_name(func)
    if name in _REFUSED:
        raise PerExampleError(unknown(mode, func, mode.recorder.followed(tensors_in(args))))
    if is_in_place(func) and not (name == "setitem" or _writes_rows(mode, name, args, kwargs)):
        return _out_of_place(mode, name, args, kwargs)
    if name == "masked_fill":
        with mode:
            return _filled(*args, **kwargs)
    if name in BROADCAST:
        return broadcast(mode, func, args, kwargs, name)
    if name == "scaled_dot_product_attention":
        attended = biased_attention(mode, func, args, kwargs)
        if attended is not None:
            return attended
    if _writes_rows(mode, name, args, kwargs):
        return write_copies(mode, func, *args)
    if name == "grouped_mm":
        return by_masks(mode, func, args, kwargs, func(*args, **kwargs))
    if name in _JOINED:
        return joined(mode, func, args, kwargs)
    if name == "bilinear" and len(args) > 3 and args[3] is not None:
        with mode:
            return func(*args[:3]) + args[3]
    if name in _PRODUCTS and not kwargs:
        found = product(mode, func, args, name)
        if found is not None:
            return found
    return by_vmap(mode, func, args, kwargs)


def _writes_rows(
    mode: Interception, name: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> bool:
    """Whether an operation writes a parameter into a tensor, as ``h[index] = p`` does."""
    written = name in ("setitem", "index_put") and len(args) == 3 and not kwargs
    return written and mode.recorder.source_of(args[2]) is not None


def _out_of_place(
    mode: Interception, name: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """Compute the result from a copy of the first argument, and write it there.

    A tap behind the first argument would not see the gradients of tensors that share its memory.
    """
    target: Tensor = args[0]
    if name in ("copy", "fill"):
        value = args[1] if len(args) > 1 else next(iter(kwargs.values()))
        return cast(Tensor, write_copies(mode, copy_, target, ..., value))
    with mode:
        return target.copy_(getattr(Tensor, name)(target.clone(), *args[1:], **kwargs))


def _filled(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """``masked_fill`` by torch.where, which also takes a value with a row for each example."""
    value = value.to(input.dtype) if isinstance(value, Tensor) else value
    return torch.where(mask, value, input)


def copy_(target: Tensor, _: Any, value: Tensor) -> Tensor:
    """``target.copy_(value)``, as a function of the name that errors give."""
    return target.copy_(value)
