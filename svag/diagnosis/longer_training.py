"""The step size for a long training, from the best one of a short race.

A step along the sign does not shrink as the gradient does, so the longer the training, the smaller
the best constant step size; variance adaptation shrinks part of the steps, and steps that keep the
magnitude shrink by themselves, down to the noise. On 14 problems (dense, convolutional, normalised,
linear, and quadratics with noise) the step size that is best for the training loss went down most
for the sign alone, less for the adapted sign, and little for the others; docs/dissect.md has the
exponents, and ``results/dissect/lengths.py`` measures them. For all methods, searches by a metric
over several seeds choose a smaller step size than the one that wins a race of a fifth of the
length: smaller by one step of the grid in the median. So T^-0.6 and T^-0.3 are used, for a training
up to five times as long, as in the tests. A longer training gets the step size for five times the
length, since the rule was not tested beyond: the first steps of a large network need smaller steps
than later ones.
"""

from typing import Final

from svag.entrants import Entrant

_SIGN: Final = 0.6
_OTHERS: Final = 0.3
_TESTED: Final = 5.0


def exponent(one: Entrant) -> float:
    """Return e, where the best constant step size goes like T^-e with the length of training.

    Example:
        >>> from svag.entrants import entrant
        >>> [exponent(entrant(key)) for key in ("m-sgd", "m-svag", "m-ssd", "adam")]
        [0.3, 0.3, 0.6, 0.3]
    """
    return _SIGN if one.sign and not one.adapted else _OTHERS


def lengthened(one: Entrant, lr: float, raced: int, planned: int | None) -> float:
    """Return the step size for a training of ``planned`` steps.

    Args:
        one: the method.
        lr: best step size of a race.
        raced: length of the race.
        planned: length of the training; None, or less than the race, for no change.

    Example:
        >>> from svag.entrants import entrant
        >>> [round(lengthened(entrant("m-ssd"), 0.01, 100, n), 4) for n in (100, 300, 500, 5000)]
        [0.01, 0.0052, 0.0038, 0.0038]
    """
    if planned is None or planned <= raced:
        return lr
    return float(lr * min(planned / raced, _TESTED) ** -exponent(one))
