"""Learning tasks: the contract, the built-in ones, and the way to a user's own."""

from svag.problems.problem import Data, Problem, Split, accuracy, constant, cross_entropy
from svag.problems.registry import PROBLEMS, get, load

__all__ = [
    "PROBLEMS",
    "Data",
    "Problem",
    "Split",
    "accuracy",
    "constant",
    "cross_entropy",
    "get",
    "load",
]
