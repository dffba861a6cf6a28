"""Line styles of methods and effects, for the figure and the page.

Methods with the sign have warm colours, others cool ones; variance-adapted methods have solid
lines, others broken ones; methods other than the paper's four have thinner lines. Methods with the
same kind of line can be told apart under simulated colour blindness. A variant of a row has its
colour and a dash-dotted line; other methods have a thin dotted line in a colour of their own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN, WITH_SIGN, WITHOUT_SIGN
from svag.entrants import Entrant

Dash = Literal["solid", "dash", "dot", "dashdot"]


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a method's line: colour, dashes (by Plotly's names) and width in points."""

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
"""Line styles of effects: warm for the sign, cool for adaptation."""
