"""The step size for a long training, from the best one of a short race.

A step along the sign does not shrink as the gradient does, so the longer the training, the smaller
the best constant step size; variance adaptation shrinks part of the steps, and steps that keep the
magnitude shrink by themselves. On 14 problems (dense, convolutional, normalised, linear, and
quadratics with noise, see docs/dissect.md) the best step size went with the length T like

    T^-0.7 for the sign alone,   T^-0.3 for the adapted sign,   T^-0.1 for the others,

with a spread of 0.2 to 0.5 between problems. What is used is rounded towards no change.
"""

from typing import Final

from svag.entrants import Entrant

_SIGN: Final = 0.6
_ADAPTED_SIGN: Final = 0.3


def exponent(one: Entrant) -> float:
    """Return e, where the best constant step size goes like T^-e with the length of training.

    Example:
        >>> from svag.entrants import entrant
        >>> [exponent(entrant(key)) for key in ("m-sgd", "m-svag", "m-ssd", "adam")]
        [0.0, 0.0, 0.6, 0.3]
    """
    if not one.sign:
        return 0.0
    return _ADAPTED_SIGN if one.adapted else _SIGN


def lengthened(one: Entrant, lr: float, raced: int, planned: int | None) -> float:
    """Return the step size for a training of ``planned`` steps.

    Args:
        one: the method.
        lr: best step size of a race.
        raced: length of the race.
        planned: length of the training; None, or less than the race, for no change.

    Example:
        >>> from svag.entrants import entrant
        >>> round(lengthened(entrant("m-ssd"), 0.01, raced=100, planned=1000), 4)
        0.0025
    """
    if planned is None or planned <= raced:
        return lr
    return float(lr * (planned / raced) ** -exponent(one))
