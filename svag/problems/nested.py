"""Tensors in any nesting of tuples, named tuples, lists and dictionaries."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Nested: TypeAlias = Any
"""A tensor, or a tuple, list or dictionary of nested tensors."""


def mapped(function: Callable[[Tensor], Any], value: Nested) -> Nested:
    """Apply a function to every tensor in a nesting; other values stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(function, part) for part in value)
    return value


def tensors(value: Nested, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nesting, each after its path, such as ``['mask'][0]``."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from tensors(part, f"{name}[{index}]")
    else:
        yield name, value


def joined(parts: Sequence[Nested]) -> Nested:
    """Concatenate nestings of the same structure along the tensors' first dimension."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(joined(list(column)) for column in zip(*parts, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(joined(list(column)) for column in zip(*parts, strict=True))
    return first
