"""Learning tasks: the class :class:`Problem`, the built-in problems, and loading a user's own."""

from svag.problems.metric import (
    Metric,
    accuracy,
    accuracy_metric,
    cross_entropy,
    loss_metric,
    r_squared,
    r_squared_metric,
)
from svag.problems.problem import Data, Problem, Split
from svag.problems.registry import PROBLEMS, get, load
from svag.problems.schedules import constant, fifths
from svag.problems.seeding import seed_everything
from svag.problems.steps import supervised

__all__ = [
    "PROBLEMS",
    "Data",
    "Metric",
    "Problem",
    "Split",
    "accuracy",
    "accuracy_metric",
    "constant",
    "cross_entropy",
    "fifths",
    "get",
    "load",
    "loss_metric",
    "r_squared",
    "r_squared_metric",
    "seed_everything",
    "supervised",
]
