"""The operations that the rule is written in, on one tensor and on lists of tensors.

torch names its list operations after its tensor operations (``_foreach_mul_`` and ``mul_``), so
one text of the rule serves both: :data:`ONE` runs all of it on a tensor while that tensor is in
cache, which is the faster way on a CPU; :data:`MANY` runs each operation on a whole list at once,
which is the faster way where a kernel launch costs more than its work.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

Operand: TypeAlias = Any
"""A tensor under ``ONE``, a list of tensors of one device and dtype under ``MANY``."""

Scalar: TypeAlias = Any
"""A float, or a 0-dimensional tensor where the value must not leave the device or the graph."""


class Arithmetic(NamedTuple):
    """Elementwise operations; a trailing underscore writes into the first operand.

    What autograd keeps for the backward pass must not be written into: the results of ``sqrt``,
    ``rsqrt_`` and ``reciprocal_``, and the operands of products.
    """

    neg: Callable[..., Operand]
    add: Callable[..., Operand]
    add_: Callable[..., Operand]
    sub: Callable[..., Operand]
    sub_: Callable[..., Operand]
    mul: Callable[..., Operand]
    mul_: Callable[..., Operand]
    div: Callable[..., Operand]
    div_: Callable[..., Operand]
    addcmul_: Callable[..., Operand]
    addcdiv_: Callable[..., Operand]
    lerp_: Callable[..., Operand]
    sqrt: Callable[..., Operand]
    rsqrt_: Callable[..., Operand]
    reciprocal_: Callable[..., Operand]
    erf: Callable[..., Operand]
    sign: Callable[..., Operand]
    clamp_min_: Callable[..., Operand]
    clamp_max_: Callable[..., Operand]
    maximum: Callable[..., Operand]
    copy_: Callable[..., Operand]


def _list_operation(name: str) -> Callable[..., Operand]:
    """Return torch's operation on lists; those that write in place return None, so return self."""
    operation = getattr(torch, f"_foreach_{name}")
    if not name.endswith("_"):
        return cast("Callable[..., Operand]", operation)

    def in_place(tensors: list[Tensor], *args: Operand, **kwargs: Operand) -> list[Tensor]:
        operation(tensors, *args, **kwargs)
        return tensors

    return in_place


ONE: Final = Arithmetic(**{name: getattr(Tensor, name) for name in Arithmetic._fields})

MANY: Final = Arithmetic(**{name: _list_operation(name) for name in Arithmetic._fields})
