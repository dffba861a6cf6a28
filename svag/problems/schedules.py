"""Schedules of the step size: a factor, from the step (0-based) and the number of steps."""

_DROPS = (0.3, 0.6, 0.8)


def constant(step: int, steps: int) -> float:
    """Leave the step size as it is.

    Example:
        >>> constant(50, 100)
        1.0
    """
    return 1.0


def fifths(step: int, steps: int) -> float:
    """Divide by 5 after 30, 60 and 80 % of the steps: after 60, 120 and 160 of 200 epochs.

    Example:
        >>> [round(fifths(step, 100), 3) for step in (0, 30, 60, 80)]
        [1.0, 0.2, 0.04, 0.008]

    References:
        S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016; DeepOBS uses it for P3.
    """
    return 0.2 ** sum(step >= share * steps for share in _DROPS)
