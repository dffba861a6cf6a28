"""One panel of Figure 5: a figure of a problem over the steps, a line and a band per method."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from svag.analysis.results import Figure
from svag.analysis.study import Analysis
from svag.entrants import entrant
from svag.quantity import Quantity
from svag.report.axis_limits import Axis, axis, band, drawn
from svag.report.line_styles import BAND_OPACITY, Style

INK, MUTED = "#1a1d21", "#5b626b"
LINES: Final[Mapping[str, Any]] = {
    "solid": "-",
    "dash": (0, (4.5, 1.6)),
    "dot": (0, (1.2, 1.3)),
    "dashdot": "-.",
}

_GRID = "#e3e6ea"
_LONGEST_NAME = 30


def panel(
    axes: Axes, analysis: Analysis, figure: Figure, lines: Mapping[str, Style], *, ticks: int = 6
) -> dict[str, float]:
    """Draw the lines and bands of a figure.

    Args:
        axes: the axes to draw on.
        analysis: the analysis of a study.
        figure: the figure.
        lines: line styles by method.
        ticks: most ticks of the horizontal axis.

    Returns:
        The height of the end of each line in the panel, from 0 to 1, by method.
    """
    curves = drawn(analysis, figure)
    shown = axis(list(curves.values()), figure)
    _scales(axes, shown, figure.quantity, ticks)
    axes.set_xlim(0, float(analysis.study.base.steps))
    ends = {}
    for key, curve in curves.items():
        style = lines[key]
        low, high = band(curve, shown)
        axes.fill_between(
            curve.steps, low, high, color=style.color, alpha=BAND_OPACITY, linewidth=0
        )
        axes.plot(
            curve.steps,
            curve.mean,
            color=style.color,
            linestyle=LINES[style.dash],
            linewidth=style.width,
            dash_capstyle="butt",
        )
        ends[key] = _height(float(curve.mean[-1]), shown)
    if not curves:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=MUTED)
    return ends


def line_end_labels(axes: Axes, ends: Mapping[str, float], lines: Mapping[str, Style]) -> None:
    """Write each method's name beside the right end of its line, joined by a leader line.

    Args:
        axes: the axes of :func:`panel`.
        ends: heights of the ends, from :func:`panel`.
        lines: line styles by method.
    """
    keys = sorted(ends, key=lambda key: ends[key])
    places = spaced([ends[key] for key in keys], gap=0.058)
    for key, place in zip(keys, places, strict=True):
        color = lines[key].color
        axes.plot(
            [1.0, 1.025, 1.065],
            [ends[key], place, place],
            transform=axes.transAxes,
            clip_on=False,
            color=color,
            linewidth=0.7,
        )
        axes.text(
            1.075,
            place,
            short(entrant(key).name),
            transform=axes.transAxes,
            va="center",
            color=color,
            fontsize=9.5,
            fontweight="bold",
        )


def short(name: str) -> str:
    """Shorten a name that is too long for the margin."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least ``gap``, as little as possible, within [0, 1]."""
    groups: list[tuple[float, int]] = []
    for index, height in enumerate(heights):
        mean, size = height - index * gap, 1
        while groups and groups[-1][0] > mean:
            other, others = groups.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        groups.append((mean, size))
    bases = [mean for mean, size in groups for _ in range(size)]
    top = max(0.0, 1 - gap * (len(heights) - 1))
    return [min(max(base, 0.0), top) + index * gap for index, base in enumerate(bases)]


def _scales(axes: Axes, shown: Axis, quantity: Quantity, ticks: int) -> None:
    if shown.log:
        axes.set_yscale("log")
        few = shown.high / shown.low < 1e3
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    scale = 100 if quantity.percent else 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:.6g}"))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(shown.low, shown.high)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _height(value: float, shown: Axis) -> float:
    """Return the height of a value on an axis, 0 at its lower and 1 at its upper end."""
    low, high = shown.low, shown.high
    if shown.log:
        value, low, high = np.log([max(value, low), low, high])
    return float(np.clip((value - low) / (high - low), 0, 1))
