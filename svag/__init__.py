"""Adam taken apart: the sign, magnitude and variance of stochastic gradients, as optimizers.

Public names resolve on first use (PEP 562), so ``import svag`` costs nothing by itself.
"""

from importlib import import_module

__version__ = "0.2.0"

_HOME = {
    "Anatomy": "svag.anatomy",
    "METHODS": "svag.anatomy",
    "Dissected": "svag.optim",
    "SGD": "svag.optim",
    "MSGD": "svag.optim",
    "SSD": "svag.optim",
    "MSSD": "svag.optim",
    "SVAG": "svag.optim",
    "MSVAG": "svag.optim",
    "Adam": "svag.optim",
    "AdamStar": "svag.optim",
    "within_batch_variance": "svag.variance",
    "micro_batch_variance": "svag.variance",
    "rank_variance": "svag.variance",
    "clip_grad_norm_": "svag.variance",
    "clip_grad_value_": "svag.variance",
    "unscale_": "svag.variance",
    "dissect": "svag.diagnosis.dissect",
    "Monitor": "svag.diagnosis.monitoring.monitor",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'svag' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
