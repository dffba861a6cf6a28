"""Tensors in the arguments and results of calls: lists, tuples and dicts of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def found_in(values: Any, kind: type[T]) -> Iterator[T]:
    """Yield the values of a type in a structure of lists, tuples and dicts."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, list | tuple):
            yield from found_in(value, kind)
        elif isinstance(value, dict):
            yield from found_in(value.values(), kind)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in a structure of lists, tuples and dicts."""
    return found_in(values, Tensor)


def replaced(values: Any, by_id: Mapping[int, Tensor]) -> Any:
    """Return the structure with some tensors replaced."""
    return rebuilt(values, lambda t: by_id.get(id(t), t))


def rebuilt(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the structure with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {key: rebuilt(value, change) for key, value in values.items()}
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        parts = [rebuilt(value, change) for value in values]
        return tuple(parts) if isinstance(values, tuple) else parts
    return values
