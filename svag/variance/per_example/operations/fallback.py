"""Chooses the rule for an operation without a closed form.

The operation runs unchanged, so that the gradient is autograd's; only the contributions of the
examples are computed.
"""

from collections.abc import Sequence
from typing import Any

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
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.structures import tensors_in

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
    if name in BROADCAST:
        return broadcast(mode, func, args, kwargs, name)
    if name == "scaled_dot_product_attention":
        attended = biased_attention(mode, func, args, kwargs)
        if attended is not None:
            return attended
    written = name in ("setitem", "index_put") and len(args) == 3 and not kwargs
    if written and mode.recorder.source_of(args[2]) is not None:
        return write_copies(mode, func, *args)
    if name == "masked_scatter":  # rows of an example depend on the examples before it
        followed = {id(t): t for t in tensors_in(args) if mode.recorder.source_of(t) is not None}
        raise PerExampleError(unknown(mode, func, followed))
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
