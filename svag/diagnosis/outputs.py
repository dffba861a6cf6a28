"""The tensors in a model's outputs, of which the Gauss-Newton matrix takes the loss as a function.

Outputs may be a tensor, or tuples, lists, dictionaries (Hugging Face's ``ModelOutput`` among them)
and dataclasses of tensors, in any nesting.
"""

import copy
import dataclasses

import torch
from torch import Tensor

from svag.problems.nested import Nested


def separated(outputs: Nested) -> tuple[Nested, list[Tensor]]:
    """Return outputs in which every tensor is a view of its own, and these views.

    If one output is computed from another, their views still do not depend on each other, so a loss
    of the views has a partial derivative with respect to each. Complex tensors count as pairs of
    real ones. Tensors without a graph and containers of unknown types stay as they are.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> hidden = 2 * weight
        >>> (first, second), views = separated((hidden, hidden.sum()))
        >>> [None if grad is None else grad.tolist() for grad in
        ...  torch.autograd.grad(second, views, allow_unused=True)]
        [None, 1.0]
    """
    views: list[Tensor] = []
    return _separated(outputs, views), views


def _separated(value: Nested, views: list[Tensor]) -> Nested:
    if isinstance(value, Tensor):
        return _view(value, views) if value.requires_grad else value
    if isinstance(value, dict):
        same_type = copy.copy(value)
        for key, part in value.items():
            same_type[key] = _separated(part, views)
        return same_type
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_separated(part, views) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_separated(part, views) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for field in dataclasses.fields(value):
            part = _separated(getattr(value, field.name), views)
            object.__setattr__(result, field.name, part)
        return result
    return value


def _view(tensor: Tensor, views: list[Tensor]) -> Tensor:
    """View a tensor, and note the view, or that of the real and imaginary parts."""
    if tensor.is_complex():
        views.append(torch.view_as_real(tensor))
        return torch.view_as_complex(views[-1])
    views.append(tensor.view_as(tensor))
    return views[-1]
