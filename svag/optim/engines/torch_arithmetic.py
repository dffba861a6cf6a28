"""The rule's operations in torch: on one tensor, and on a list of tensors at once.

On a CPU it is faster to run the whole rule on a tensor while that is in cache, small ones joined;
on a device where a kernel launch costs more than its work, each operation on a list of all tensors.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svag.optim.moments import debiasing
from svag.optim.rule import Arithmetic


def on_tensors(dtype: torch.dtype) -> Arithmetic:
    """Return the operations on tensors of a dtype, whose numbers may be 0-dimensional tensors."""
    return Arithmetic(
        **_of_numbers(dtype),
        divide=lambda x, y: x / y,
        sqrt=torch.sqrt,
        erf=torch.erf,
        # torch.sign(NaN) is 0: without the second term a NaN would freeze a coordinate unseen.
        sign=lambda x: torch.sign(x) + 0 * x,
        least=lambda x, y: torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp_max(y),
        greatest=lambda x, y: torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp_min(y),
    )


def on_lists(dtype: torch.dtype) -> Arithmetic:
    """Return the operations on :class:`Tensors` of a dtype, whose numbers are floats."""
    return Arithmetic(
        **_of_numbers(dtype),
        divide=lambda x, y: x / y,
        sqrt=lambda x: Tensors(torch._foreach_sqrt(x.parts)),
        erf=lambda x: Tensors(torch._foreach_erf(x.parts)),
        sign=lambda x: Tensors(torch._foreach_sign(x.parts)) + 0 * x,
        least=lambda x, y: x.with_each(torch._foreach_clamp_max, y),
        greatest=lambda x, y: x.with_each(torch._foreach_clamp_min, y),
    )


def _of_numbers(dtype: torch.dtype) -> dict[str, Any]:
    """Return what does not depend on whether there is one tensor or a list."""
    return {
        "static": bool,
        "function": lambda function: function,
        "number": float,
        "tiny": torch.finfo(dtype).tiny,
        "huge": torch.finfo(dtype).max,
        "choose": _choose,
        "debiasing": debiasing,
        "root": lambda x: torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x),
    }


def _choose(condition: Any, x: Any, y: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, x, y)
    return x if condition else y


class Tensors:
    """A list of tensors of one device and dtype, to calculate with as with one tensor."""

    def __init__(self, parts: list[Tensor] | tuple[Tensor, ...]) -> None:
        self.parts = parts

    def with_each(self, operation: Callable[..., Any], other: Any) -> "Tensors":
        """Apply an operation on lists to this one and another, or a number."""
        return Tensors(operation(self.parts, getattr(other, "parts", other)))

    def __add__(self, other: Any) -> "Tensors":
        return self.with_each(torch._foreach_add, other)

    def __sub__(self, other: Any) -> "Tensors":
        return self.with_each(torch._foreach_sub, other)

    def __mul__(self, other: Any) -> "Tensors":
        return self.with_each(torch._foreach_mul, other)

    def __truediv__(self, other: Any) -> "Tensors":
        return self.with_each(torch._foreach_div, other)

    def __rmul__(self, number: float) -> "Tensors":
        return self * number

    def __rtruediv__(self, number: float) -> "Tensors":
        return Tensors(torch._foreach_reciprocal(self.parts)) * number
