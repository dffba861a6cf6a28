"""The paper's Figure 5: training loss and the metric on test data over the steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from svag.analysis.results import Figure
from svag.analysis.study import Analysis
from svag.entrants import entrant
from svag.quantity import Quantity
from svag.report.axes import Axis, axis, band, drawn
from svag.report.style import BAND_OPACITY, Style, count, headed, styles

_KEY = "Warm colours: with the sign; cool: without. Solid: variance-adapted; broken: not."
_KEY_OF_VARIANTS = " Dash-dotted: a variant in the colour of its method."
_KEY_OF_OTHERS = " Dotted, thin: others."

_LEFT, _TICKS = 0.065, 0.048  # of the width: beside the left panel, and for the right one's ticks
_SIZE = (10.0, 4.3)
_DPI = 200
_LONGEST_NAME = 30
_INK, _MUTED, _GRID = "#1a1d21", "#5b626b", "#e3e6ea"
_LINES = {"solid": "-", "dash": (0, (4.5, 1.6)), "dot": (0, (1.2, 1.3)), "dashdot": "-."}


def figure5(analysis: Analysis, directory: Path) -> None:
    """Draw ``figure5.png`` and ``figure5.svg``, the same bytes for the same analysis."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="svag")
        matplotlib.rc("font", size=9.5)
        canvas = _draw(analysis)
        canvas.savefig(directory / "figure5.png", dpi=_DPI, metadata={"Software": None})
        canvas.savefig(directory / "figure5.svg", metadata={"Date": None, "Creator": None})


def caption(analysis: Analysis) -> str:
    """Say what the lines are: of how many seeds, and which methods have none."""
    seeds = sorted({len(r.runs) for r in analysis.methods.values() if r.runs})
    if not seeds:
        return "There is no final run that did not diverge."
    if seeds == [1]:
        text = "One seed, so no standard deviation."
    else:
        many = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        text = f"Mean of {many}; shaded: one standard deviation."
    missing = [r.entrant.name for r in analysis.methods.values() if not r.runs]
    return text + (f" Without a run that did not diverge: {', '.join(missing)}." if missing else "")


def legend(analysis: Analysis) -> str:
    """Say what colours and dashes mean."""
    entrants = [result.entrant for result in analysis.methods.values()]
    variants = any(one.row and one.key != one.row for one in entrants)
    others = any(not one.row for one in entrants)
    return _KEY + _KEY_OF_VARIANTS * variants + _KEY_OF_OTHERS * others


def _draw(analysis: Analysis) -> Canvas:
    canvas = Canvas(figsize=_SIZE, facecolor="white")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    longest = max((len(r.entrant.name) for r in analysis.methods.values()), default=0)
    names = min(max(0.092, 0.03 + 0.0088 * longest), 0.3)
    panel = (1 - _LEFT - _TICKS - 2 * names) / 2
    canvas.subplots_adjust(
        left=_LEFT, right=1 - names, top=0.80, bottom=0.115, wspace=(names + _TICKS) / panel
    )
    canvas.text(
        _LEFT,
        0.935,
        analysis.study.base.problem,
        fontsize=13,
        fontweight="bold",
        color=_INK,
        parse_math=False,
    )
    canvas.text(
        _LEFT,
        0.885,
        f"{caption(analysis)} {legend(analysis)}",
        fontsize=8.5,
        color=_MUTED,
    )
    for axes, figure in zip((left, right), (analysis.figures[0], analysis.judged), strict=True):
        _panel(axes, analysis, figure)
        axes.set_title(headed(figure), loc="left", fontsize=9.5, color=_INK, pad=5)
        axes.set_xlim(0, float(analysis.study.base.steps))
    return canvas


def _panel(axes: Axes, analysis: Analysis, figure: Figure) -> None:
    curves = drawn(analysis, figure)
    shown = axis(list(curves.values()), figure)
    _scales(axes, shown, figure.quantity)
    lines = styles(result.entrant for result in analysis.methods.values())
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
            linestyle=_LINES[style.dash],
            linewidth=style.width,
            dash_capstyle="butt",
        )
        ends[key] = _height(float(curve.mean[-1]), shown)
    _label(axes, ends, lines)
    if not curves:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=_MUTED)


def _scales(axes: Axes, shown: Axis, quantity: Quantity) -> None:
    if shown.log:
        axes.set_yscale("log")
        few = shown.high / shown.low < 1e3
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    scale = 100 if quantity.percent else 1
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:.6g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(shown.low, shown.high)
    axes.set_xlabel("Step", color=_MUTED)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_MUTED, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)


def _height(value: float, shown: Axis) -> float:
    """Place a value on an axis, 0 at its lower end and 1 at its upper."""
    low, high = shown.low, shown.high
    if shown.log:
        value, low, high = np.log([max(value, low), low, high])
    return float(np.clip((value - low) / (high - low), 0, 1))


def _label(axes: Axes, ends: dict[str, float], lines: dict[str, Style]) -> None:
    """Name every line at its right end, apart from one another, with a leader to the end."""
    keys = sorted(ends, key=lambda key: ends[key])
    places = spaced([ends[key] for key in keys], gap=0.058)
    for key, place in zip(keys, places, strict=True):
        style = lines[key]
        axes.plot(
            [1.0, 1.025, 1.065],
            [ends[key], place, place],
            transform=axes.transAxes,
            clip_on=False,
            color=style.color,
            linewidth=0.7,
        )
        axes.text(
            1.075,
            place,
            _short(entrant(key).name),
            transform=axes.transAxes,
            va="center",
            color=style.color,
            fontsize=9.5,
            fontweight="bold",
        )


def _short(name: str) -> str:
    """Cut a name that would leave no room for the panels."""
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
