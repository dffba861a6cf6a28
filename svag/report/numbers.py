"""How numbers are written on the page and in the figure: digits, signs, units, intervals."""

import math
from collections.abc import Iterable
from typing import Final

from svag.analysis.contrasts import Effect
from svag.analysis.results import Figure, Spread
from svag.quantity import Quantity

MINUS: Final = "\N{MINUS SIGN}"
NONE: Final = "\N{EN DASH}"

_NBSP = "\N{NO-BREAK SPACE}"
_MOST_DECIMALS = 5
_WRITTEN_OUT = 1e15
_LEAST_POWER, _GREATEST_POWER = -4, 6  # of ten, of numbers that are written out


def headed(figure: Figure) -> str:
    """Write the heading of a figure for a panel or an axis, with its unit."""
    title = f"{figure.title[0].upper()}{figure.title[1:]}"
    return f"{title} ({figure.quantity.unit})" if figure.quantity.unit else title


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write a number with a true minus sign.

    One that would be rounded to 0 is written as ``1.2e-05``, one of more than 15 digits as
    ``1.234e+20``.

    Args:
        value: the number.
        decimals: digits after the point.
        signed: whether a positive number gets a plus sign.
    """
    if not math.isfinite(value):
        return NONE
    plus = "+" if signed else ""
    if abs(value) >= _WRITTEN_OUT:
        return f"{value:{plus}.3e}".replace("-", MINUS)
    text = f"{value:{plus}.{decimals}f}"
    if float(text) == 0:
        tiny = abs(value) > 10.0 ** -(decimals + 6)
        text = f"{value:{plus}.1e}" if tiny else f"{0.0:{plus}.{decimals}f}"
    return text.replace("-", MINUS)


def significant(value: float, digits: int = 3, *, signed: bool = False) -> str:
    """Write a number of any size to some significant digits, such as ``11,100``.

    Args:
        value: the number.
        digits: significant digits.
        signed: whether a positive number gets a plus sign.
    """
    if not math.isfinite(value):
        return NONE
    plus = "+" if signed else ""
    rounded = float(f"{value:.{digits - 1}e}")
    size = math.floor(math.log10(abs(rounded))) if rounded else 0
    if rounded and not _LEAST_POWER <= size < _GREATEST_POWER:
        return f"{rounded:{plus}.{digits - 1}e}".replace("-", MINUS)
    decimals = max(0, digits - 1 - size) if rounded else 0
    return f"{rounded:{plus},.{decimals}f}".replace("-", MINUS)


def spread(value: Spread, quantity: Quantity, decimals: int, *, difference: bool = False) -> str:
    """Write mean and standard deviation, or the mean alone if there is no deviation.

    Args:
        value: mean and deviation, in the quantity's own units (fractions for percentages).
        quantity: the quantity.
        decimals: digits after the point.
        difference: whether the value is a difference: with a sign, and in percentage points
            instead of per cent.
    """
    scale, unit = _scale(quantity, "pp" if difference else "%")
    mean = number(scale * value.mean, decimals, signed=difference)
    if not math.isfinite(value.mean):
        return mean
    sd = f" ±{_NBSP}{number(scale * value.sd, decimals)}" if math.isfinite(value.sd) else ""
    return mean + sd + unit


def effect(value: Effect, quantity: Quantity, decimals: int) -> str:
    """Write an effect without its interval, that on a percentage in percentage points.

    Args:
        value: the effect, in the quantity's own units (fractions for percentages).
        quantity: the quantity.
        decimals: digits after the point.
    """
    scale, unit = _scale(quantity, "pp")
    return number(scale * value.estimate, decimals, signed=True) + unit


def interval(value: Effect, quantity: Quantity, decimals: int) -> str:
    """Write an effect's interval; empty if there is none.

    Args:
        value: the effect, in the quantity's own units (fractions for percentages).
        quantity: the quantity.
        decimals: digits after the point.
    """
    if value.interval is None:
        return ""
    scale, _ = _scale(quantity, "")
    low, high = (number(scale * bound, decimals, signed=True) for bound in value.interval)
    return f"[{low}, {high}]"


def decimals(spreads: Iterable[Spread], quantity: Quantity) -> int:
    """Choose the digits after the point for a column: 2 for percentages.

    Otherwise as many as show two digits of the smallest deviation.
    """
    if quantity.percent:
        return 2
    present = [value for value in spreads if math.isfinite(value.mean) and value.mean]
    sizes = [value.sd / 10 for value in present if math.isfinite(value.sd) and value.sd]
    sizes = sizes or [abs(value.mean) / 1000 for value in present]
    if not sizes:
        return 3
    return min(max(-math.floor(math.log10(min(sizes))), 3), _MOST_DECIMALS)


def step_size(lr: float) -> str:
    """Write a step size as on the command line, such as ``0.1`` or ``1e-05``."""
    return f"{lr:g}" if math.isfinite(lr) else NONE


def count(n: int, noun: str) -> str:
    """Write ``1 seed``, ``2 seeds``."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _scale(quantity: Quantity, unit: str) -> tuple[float, str]:
    """Return the factor on a quantity's values, and the unit to write after them."""
    if quantity.percent:
        return 100.0, f"{_NBSP}{unit}"
    return 1.0, f"{_NBSP}{quantity.unit}" if quantity.unit and unit else ""
