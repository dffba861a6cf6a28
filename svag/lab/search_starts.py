"""Step sizes at which searches begin, from the norms of the parameters and the first gradient.

The first step of a search changes the parameters by a hundredth of their norm:

    lr = 0.01 |theta| / |g|           for methods that keep the magnitude
    lr = 0.01 |theta| / sqrt(d)       for those that keep the sign only

This shortens the search if a loss is scaled or a model is wide. The chosen step size does not
depend on it, since the search ends by what it finds.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch

from svag.entrants import entrant
from svag.lab.run import Run
from svag.lab.search import StepSizes
from svag.lab.session import Session
from svag.problems import Data, Problem

_SHARE = 0.01
_TINY = 1e-30


def starts(problem: Problem, data: Data, base: Run, methods: Iterable[str]) -> dict[str, int]:
    """Return the numbers of the step sizes at which the methods' searches begin, by method.

    A method is left out if nothing can be measured: the model raises, its parameters are all zero,
    its gradient is zero or not finite, or the optimizer is from outside svag.

    Args:
        problem: the problem.
        data: its data.
        base: the run that all runs of the study are variations of.
        methods: keys.
    """
    methods = list(methods)
    if not methods:
        return {}
    try:
        theta, gradient, count = _norms(problem, data, base)
    except (Exception, SystemExit):  # the problem's runs will record the error
        return {}
    found = {}
    for key in methods:
        one = entrant(key)
        against = math.sqrt(count) if one.sign else gradient
        if one.anatomy is None or not (theta > 0 and against > 0):
            continue
        lr = _SHARE * theta / against
        if math.isfinite(lr) and lr > 0:
            found[key] = StepSizes().nearest(lr)
    return found


def _norms(problem: Problem, data: Data, base: Run) -> tuple[float, float, int]:
    """Return the norms of parameters and of a first gradient, and the number of parameters."""
    run = replace(base, method="sgd", anatomy="g", beta=None, beta2=None, lr=_TINY, seed=0, steps=1)
    session = Session(problem, data, run)
    session.advance(1)
    params = [p for p in session.model.parameters() if p.grad is not None]
    squares = [
        sum(float(torch.linalg.vector_norm(t.detach()).double()) ** 2 for t in several)
        for several in (params, [p.grad for p in params if p.grad is not None])
    ]
    return math.sqrt(squares[0]), math.sqrt(squares[1]), sum(p.numel() for p in params)
