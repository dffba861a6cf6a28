"""Optimizers: gradients -> moments -> variance -> factor -> update.

Names resolve on first use (PEP 562), so that :mod:`svag.jax` can import the rule without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svag.optim.methods import MSGD, MSSD, MSVAG, SGD, SSD, SVAG, Adam, AdamStar
    from svag.optim.optimizer import Dissected

__all__ = ["MSGD", "MSSD", "MSVAG", "SGD", "SSD", "SVAG", "Adam", "AdamStar", "Dissected"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'svag.optim' has no attribute {name!r}")
    value = getattr(import_module("svag.optim.methods"), name)
    globals()[name] = value
    return value
