"""The paper's Figure 5: training loss and test accuracy over the steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from svag.anatomy import method
from svag.lab.analysis import Analysis, Figure
from svag.report.axes import Axis, axis, band, drawn
from svag.report.style import BAND_OPACITY, count, style_of

PANELS: tuple[tuple[Figure, str], ...] = (
    ("train_loss", "Training loss"),
    ("test_accuracy", "Test accuracy (%)"),
)

_KEY = "Warm colours: with the sign; cool: without. Solid: variance-adapted; broken: not."
_KEY_OF_VARIANTS = " Dash-dotted: adapted by the mini-batch's variance."

_LEFT, _TICKS = 0.065, 0.048  # of the width: beside the left panel, and for the right one's ticks
_SIZE = (10.0, 4.3)
_DPI = 200
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
    seeds = sorted({len(r.replications) for r in analysis.methods.values() if r.replications})
    if not seeds:
        return "There is no replication that did not diverge."
    if seeds == [1]:
        text = "One seed, so no standard deviation."
    else:
        many = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        text = f"Mean of {many}; shaded: one standard deviation."
    missing = [method(key).name for key, r in analysis.methods.items() if not r.replications]
    return text + (f" Without a run that did not diverge: {', '.join(missing)}." if missing else "")


def legend(analysis: Analysis) -> str:
    """Say what colours and dashes mean."""
    variants = any(method(key).anatomy.within_batch for key in analysis.methods)
    return _KEY + _KEY_OF_VARIANTS * variants


def _draw(analysis: Analysis) -> Canvas:
    canvas = Canvas(figsize=_SIZE, facecolor="white")
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    longest = max((len(method(key).name) for key in analysis.methods), default=0)
    names = max(0.092, 0.03 + 0.0088 * longest)
    panel = (1 - _LEFT - _TICKS - 2 * names) / 2
    canvas.subplots_adjust(
        left=_LEFT, right=1 - names, top=0.80, bottom=0.115, wspace=(names + _TICKS) / panel
    )
    settings = analysis.settings
    canvas.text(
        _LEFT,
        0.935,
        str(settings["problem"]),
        fontsize=13,
        fontweight="bold",
        color=_INK,
        parse_math=False,
    )
    canvas.text(
        _LEFT,
        0.885,
        f"{caption(analysis)} {_KEY}",
        fontsize=8.5,
        color=_MUTED,
    )
    for axes, (figure, title) in zip((left, right), PANELS, strict=True):
        _panel(axes, analysis, figure)
        axes.set_title(title, loc="left", fontsize=9.5, color=_INK, pad=5)
        axes.set_xlim(0, float(settings["steps"]))
    return canvas


def _panel(axes: Axes, analysis: Analysis, figure: Figure) -> None:
    curves = drawn(analysis, figure)
    shown = axis(list(curves.values()), figure)
    _scales(axes, shown, figure)
    ends = {}
    for key, curve in curves.items():
        style = style_of(key)
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
    _label(axes, ends)
    if not curves:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=_MUTED)


def _scales(axes: Axes, shown: Axis, figure: Figure) -> None:
    if shown.log:
        axes.set_yscale("log")
        few = shown.high / shown.low < 1e3
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if few else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    scale = 100 if figure == "test_accuracy" else 1
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


def _label(axes: Axes, ends: dict[str, float]) -> None:
    """Name every line at its right end, apart from one another, with a leader to the end."""
    keys = sorted(ends, key=lambda key: ends[key])
    places = spaced([ends[key] for key in keys], gap=0.058)
    for key, place in zip(keys, places, strict=True):
        style = style_of(key)
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
            method(key).name,
            transform=axes.transAxes,
            va="center",
            color=style.color,
            fontsize=9.5,
            fontweight="bold",
        )


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
