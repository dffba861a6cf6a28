"""How methods look and how numbers read, in the figure and on the page alike.

Colour tells the sign (warm) from no sign (cool), the line variance-adapted (solid) from not
(broken); methods outside the paper's four are thinner. Pairs that share a line stay apart under
simulated colour blindness. A variant has the colour of its method and a dash-dotted line, and what
has no place in the table a thin dotted one in a colour of its own.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from svag.analysis.contrasts import (
    ADAPTATION,
    INTERACTION,
    SIGN,
    WITH_SIGN,
    WITHOUT_SIGN,
    Effect,
)
from svag.analysis.results import Figure, Spread
from svag.entrants import Entrant
from svag.quantity import Quantity

Dash = Literal["solid", "dash", "dot", "dashdot"]
MINUS: Final = "\N{MINUS SIGN}"
NONE: Final = "\N{EN DASH}"

_NBSP = "\N{NO-BREAK SPACE}"
_MOST_DECIMALS = 5


@dataclass(frozen=True, slots=True)
class Style:
    """A method's line: its colour, its dashes (by Plotly's names) and its width in points."""

    color: str
    dash: Dash
    width: float = 1.9


STYLES: Final[Mapping[str, Style]] = MappingProxyType(
    {
        "sgd": Style("#3aa59a", "dot", 1.4),
        "m-sgd": Style("#4a9fe0", "dash"),
        "ssd": Style("#b3871a", "dot", 1.4),
        "m-ssd": Style("#e58a1a", "dash"),
        "svag": Style("#14867a", "solid", 1.3),
        "m-svag": Style("#2166c4", "solid"),
        "adam": Style("#cf3a1c", "solid"),
        "adam-star": Style("#e07aa8", "solid", 1.3),
    }
)


_OTHERS: Final = ("#7a5ab5", "#6b7280", "#5a8f29", "#a0522d", "#b04a8b", "#3b6e8f")


def styles(entrants: Iterable[Entrant]) -> dict[str, Style]:
    """Return each method's line by its key."""
    chosen, others = {}, 0
    for one in entrants:
        if one.key in STYLES:
            chosen[one.key] = STYLES[one.key]
        elif one.row in STYLES:
            chosen[one.key] = replace(STYLES[one.row], dash="dashdot", width=1.4)
        else:
            chosen[one.key] = Style(_OTHERS[others % len(_OTHERS)], "dot", 1.6)
            others += 1
    return chosen


BAND_OPACITY: Final = 0.16

EFFECTS: Final[Mapping[str, Style]] = MappingProxyType(
    {
        SIGN: Style("#cf3a1c", "solid"),
        ADAPTATION: Style("#2166c4", "solid"),
        INTERACTION: Style("#7b828c", "dash", 1.4),
        WITHOUT_SIGN: Style("#2166c4", "dash"),
        WITH_SIGN: Style("#8a5cc2", "solid"),
    }
)
"""Effects' lines: the sign is warm, adaptation cool."""


def headed(figure: Figure) -> str:
    """Name a figure over a panel or beside an axis, with its unit."""
    title = f"{figure.title[0].upper()}{figure.title[1:]}"
    return f"{title} ({figure.quantity.unit})" if figure.quantity.unit else title


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write a number with a true minus sign; one that would read 0 but is not, in powers of ten."""
    if not math.isfinite(value):
        return NONE
    plus = "+" if signed else ""
    text = f"{value:{plus}.{decimals}f}"
    if float(text) == 0:
        tiny = abs(value) > 10.0 ** -(decimals + 6)
        text = f"{value:{plus}.1e}" if tiny else f"{0.0:{plus}.{decimals}f}"
    return text.replace("-", MINUS)


def spread(value: Spread, quantity: Quantity, decimals: int, *, difference: bool = False) -> str:
    """Write mean and standard deviation, the mean alone where there is no deviation.

    A difference has a sign, and of percentages percentage points.
    """
    scale, unit = _scale(quantity, "pp" if difference else "%")
    mean = number(scale * value.mean, decimals, signed=difference)
    if not math.isfinite(value.mean):
        return mean
    sd = f" ±{_NBSP}{number(scale * value.sd, decimals)}" if math.isfinite(value.sd) else ""
    return mean + sd + unit


def effect(value: Effect, quantity: Quantity, decimals: int) -> str:
    """Write an effect, of percentages in percentage points."""
    scale, unit = _scale(quantity, "pp")
    return number(scale * value.estimate, decimals, signed=True) + unit


def interval(value: Effect, quantity: Quantity, decimals: int) -> str:
    """Write an effect's interval; nothing where there is none."""
    if value.interval is None:
        return ""
    scale, _ = _scale(quantity, "")
    low, high = (number(scale * bound, decimals, signed=True) for bound in value.interval)
    return f"[{low}, {high}]"


def decimals(spreads: Iterable[Spread], quantity: Quantity) -> int:
    """Choose a column's decimals: two digits of its smallest deviation; percentages have two."""
    if quantity.percent:
        return 2
    present = [value for value in spreads if math.isfinite(value.mean) and value.mean]
    sizes = [value.sd / 10 for value in present if math.isfinite(value.sd) and value.sd]
    sizes = sizes or [abs(value.mean) / 1000 for value in present]
    if not sizes:
        return 3
    return min(max(-math.floor(math.log10(min(sizes))), 3), _MOST_DECIMALS)


def step_size(lr: float) -> str:
    """Write a step size as one would type it."""
    return f"{lr:g}" if math.isfinite(lr) else NONE


def count(n: int, noun: str) -> str:
    """Write ``1 seed``, ``2 seeds``."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _scale(quantity: Quantity, unit: str) -> tuple[float, str]:
    """Return what values are multiplied by, and what stands behind them."""
    if quantity.percent:
        return 100.0, f"{_NBSP}{unit}"
    return 1.0, f"{_NBSP}{quantity.unit}" if quantity.unit and unit else ""
