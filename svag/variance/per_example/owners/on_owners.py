"""Runs an operation on tensors of owners instead of values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from svag.variance.per_example.owners.operation import Operation
from svag.variance.per_example.owners.owner_tensors import owned_by
from svag.variance.per_example.owners.placement import Where


def run_on_owners(
    op: Operation, owners: dict[int, Tensor], examples: int
) -> "Where | Sequence[Where]":
    """Run an operation on tensors of owners instead of values, and mark the outputs by the results.

    Args:
        op: the operation.
        owners: tensors of owners, by id of the argument that each replaces.
        examples: B, the number of examples.
    """
    # Owners are shifted by one, so that entries that the operation fills with 0 are NOBODY's.
    named = {key: names + 1 for key, names in owners.items()}
    args, kwargs = _with_owners((op.args, op.kwargs), named)
    try:
        result = op.func(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, NotImplementedError):
        return op.unknown()
    results = [result] if isinstance(result, Tensor) else list(result)
    return [owned_by(op.name, r - 1, examples) for r in results]


def _with_owners(value: Any, owners: dict[int, Tensor]) -> Any:
    """Return arguments with owners instead of values, and other tensors (indices) on the CPU."""
    if isinstance(value, Tensor):
        if id(value) in owners:
            return owners[id(value)]
        return value.detach().cpu() if value.device.type != "cpu" else value.detach()
    if isinstance(value, dict):
        return {key: _with_owners(part, owners) for key, part in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        parts = [_with_owners(part, owners) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value
