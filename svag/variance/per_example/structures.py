"""Tensors in the arguments and results of calls: lists, tuples, mappings, data classes of them."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


_SIMPLE = frozenset({int, float, bool, str, slice, type(None), torch.dtype, torch.device})


def found_in(values: Any, kind: type[T]) -> Iterator[T]:
    """Yield the values of a type in a structure of lists, tuples, mappings and data classes."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif type(value) in _SIMPLE:
            continue
        elif isinstance(value, list | tuple):
            yield from found_in(value, kind)
        elif (parts := named_parts(value)) is not None:
            yield from found_in(parts.values(), kind)


def named_parts(value: Any) -> Mapping[Any, Any] | None:
    """Return the parts of a mapping or of an object of a data class; None for other values."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in a structure of lists, tuples, mappings and data classes."""
    return found_in(values, Tensor)


def replaced(values: Any, by_id: Mapping[int, Tensor]) -> Any:
    """Return the structure with some tensors replaced."""
    return rebuilt(values, lambda t: by_id.get(id(t), t))


def called_with(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], by_id: Mapping[int, Tensor]
) -> Any:
    """Call a function with some of the tensors in its arguments replaced."""
    return func(*replaced(args, by_id), **replaced(kwargs, by_id))


def rebuilt(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the structure with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, list | tuple) and not isinstance(values, torch.Size):
        parts = [rebuilt(value, change) for value in values]
        if hasattr(values, "_make"):
            return values._make(parts)
        return tuple(parts) if isinstance(values, tuple) else parts
    if (named := named_parts(values)) is None:
        return values
    changed = {key: rebuilt(value, change) for key, value in named.items()}
    return changed if type(values) is dict else _with_parts(values, changed)


def _with_parts(values: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a copy of a mapping or of an object of a data class with other parts."""
    result: Any = copy.copy(values)
    if dataclasses.is_dataclass(values):
        for name, part in parts.items():
            object.__setattr__(result, name, part)
    if isinstance(values, UserDict):
        result.data = dict(values.data)
    if isinstance(values, MutableMapping):
        result.update(parts)
    return result
