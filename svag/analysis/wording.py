"""Writes values and effects in sentences: fractions as percentages and percentage points."""

from collections.abc import Iterable

from svag.analysis.contrasts import Effect
from svag.quantity import Quantity


def amount(effect: Effect, quantity: Quantity) -> str:
    """Write an effect with its interval: points to two decimals, others to three digits."""
    text = difference(effect.estimate, quantity)
    if effect.interval is None:
        return text
    scale, digits = (100, "+.2f") if quantity.percent else (1, "+.3g")
    low, high = (f"{scale * bound:{digits}}" for bound in effect.interval)
    return f"{text} [{low}, {high}]"


def difference(value: float, quantity: Quantity, *, signed: bool = True) -> str:
    """Write a difference of two values of a quantity.

    Args:
        value: the difference, in the quantity's own units (a fraction for percentages).
        quantity: the quantity.
        signed: whether a positive difference gets a plus sign.
    """
    plus = "+" if signed else ""
    if quantity.percent:
        return f"{100 * value:{plus}.2f} points"
    return f"{value:{plus}.3g}" + (f" {quantity.unit}" if quantity.unit else "")


def amount_of(value: float, quantity: Quantity) -> str:
    """Write a value of a quantity."""
    if quantity.percent:
        return f"{100 * value:.2f} %"
    return f"{value:.4g}" + (f" {quantity.unit}" if quantity.unit else "")


def listed(names: Iterable[str], word: str = "and") -> str:
    """Write ``a``, ``a and b``, ``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last
