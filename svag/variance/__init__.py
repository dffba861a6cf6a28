"""Variance of gradients within a mini-batch: from examples, micro-batches or ranks.

All of them set ``p.grad_var``, the variance of each entry of ``p.grad``.
"""

from importlib import import_module

_HOME = {
    "within_batch_variance": "svag.variance.per_example",
    "micro_batch_variance": "svag.variance.micro_batches",
    "rank_variance": "svag.variance.ranks",
    "clip_grad_norm_": "svag.variance.clipping",
    "clip_grad_value_": "svag.variance.clipping",
    "unscale_": "svag.variance.unscaling",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'svag.variance' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
