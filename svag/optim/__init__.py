"""Optimizers: gradients -> moments -> variance -> factor -> update."""

from svag.optim.methods import MSGD, MSSD, MSVAG, SGD, SSD, SVAG, Adam, AdamStar
from svag.optim.optimizer import Dissected

__all__ = ["MSGD", "MSSD", "MSVAG", "SGD", "SSD", "SVAG", "Adam", "AdamStar", "Dissected"]
