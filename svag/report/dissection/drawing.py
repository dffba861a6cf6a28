"""What the charts of a dissection share: names, marks, intervals and limits of axes."""

import html
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

from svag.report.charts import Chart, plain
from svag.report.dissection.sorted_records import Found
from svag.report.line_styles import Style

GREY: Final = "#7b828c"
"""Colour of marks that belong to no method, on light and dark pages."""

ROW: Final = 46
"""Height in pixels of a row of a chart with rows."""

_ROOM = 0.06
_WIDEST = 2.5  # intervals wider than this multiple of the median are cut
_LONGEST = 26

Bounds = tuple[float, float] | None


def named(found: Found, key: str) -> Chart:
    """Return a trace's name and the method's key, by which the legend shows and hides it."""
    return {"name": text(found.name(key)), "meta": key, "showlegend": False}


def text(words: str) -> str:
    """Return words that Plotly, which understands some HTML, shows as they are."""
    return html.escape(words, quote=False)


def shortened(name: str) -> str:
    """Return a name of a parameter for an axis, with dots for the middle of a long one."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST // 2 - 1]}…{name[-_LONGEST // 2 :]}"
    return text(name)


def line(style: Style) -> Chart:
    """Return a method's line."""
    return {"color": style.color, "dash": style.dash, "width": style.width + 0.2}


def whiskers(values: Sequence[float], bounds: Sequence[Bounds], color: str) -> Chart:
    """Return error bars; a value without interval has none.

    Args:
        values: the values.
        bounds: their intervals, or None.
        color: of the bars.
    """
    pairs = [(v, *(b or (v, v))) for v, b in zip(values, bounds, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": plain(high - value for value, _, high in pairs),
        "arrayminus": plain(value - low for value, low, _ in pairs),
        "color": color,
        "thickness": 1.4,
        "width": 0,
    }


def limits(
    values: Iterable[float], bounds: Iterable[Bounds], *also: float
) -> tuple[float, float] | None:
    """Choose limits that contain the values and most of their intervals; None without values.

    Args:
        values: the values.
        bounds: their intervals.
        also: what else must lie within.
    """
    pairs = [(v, b or (v, v)) for v, b in zip(values, bounds, strict=True) if math.isfinite(v)]
    reaches = [max(high - value, value - low) for value, (low, high) in pairs]
    reaches = [reach for reach in reaches if math.isfinite(reach) and reach > 0]
    most = _WIDEST * statistics.median(reaches) if reaches else 0.0
    ends = [value for value in also if math.isfinite(value)]
    for value, (low, high) in pairs:
        ends += [max(low, value - most), min(high, value + most), value]
    if not ends:
        return None
    low, high = min(ends), max(ends)
    room = _ROOM * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def linear(shown: tuple[float, float]) -> Chart:
    """Return a linear axis between two limits, with numbers written out unless they are huge."""
    huge = max(map(abs, shown)) >= 1e6
    return {
        "range": plain(shown),
        "exponentformat": "power" if huge else "none",
        "separatethousands": not huge,
    }


def logarithmic(low: float, high: float) -> Chart:
    """Return a logarithmic axis between two positive limits, with ticks that fit its width."""
    wide = high / low > 50
    return {
        "type": "log",
        "range": plain([math.log10(low), math.log10(high)]),
        "exponentformat": "power" if wide else "none",
        "dtick": 1 if wide else "D2",
    }
