"""Within-batch gradient variance: per example, over micro-batches, over ranks."""

from importlib import import_module
from typing import Any

_HOME = {"within_batch_variance": "svag.variance.per_example"}

__all__ = ["within_batch_variance"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'svag.variance' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
