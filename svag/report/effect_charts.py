"""Charts of effects: over the steps of one problem, and as a forest plot over several."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from svag.analysis.contrasts import (
    ADAPTATION,
    INTERACTION,
    SIGN,
    WITH_SIGN,
    WITHOUT_SIGN,
    Effect,
)
from svag.analysis.effects_over_training import Course, courses
from svag.analysis.forest import Forest
from svag.analysis.results import TRAIN_LOSS, Figure
from svag.analysis.study import Analysis
from svag.report.charts import Chart, plain, translucent
from svag.report.line_styles import EFFECTS

NAMES: Mapping[str, str] = {
    SIGN: "Sign",
    ADAPTATION: "Variance adaptation",
    INTERACTION: "Interaction",
    WITHOUT_SIGN: "Adaptation without sign",
    WITH_SIGN: "Adaptation with sign",
}

_SETTLED = 0.1
_ROOM = 0.08
_SPREAD = 0.22
_WIDEST = 2.5  # intervals wider than this multiple of the median are cut
_LINE = 14  # characters per line of a row's name
_ROW = 46  # height of a problem's row in pixels


def over_steps(analysis: Analysis, figure: Figure) -> Chart | None:
    """Draw the effects at every evaluation with their intervals; None if a cell is missing."""
    found = courses(analysis, figure)
    if not found or len(next(iter(found.values())).steps) < 2:
        return None
    scale = 100.0 if figure.quantity.percent else 1.0
    traces = [trace for name, course in found.items() for trace in _course(name, course, scale)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "Step"}, "range": [0, analysis.study.base.steps]},
            "yaxis": {
                "title": {"text": f"Effect on {figure.title}{_unit_of(figure)}"},
                "range": [scale * bound for bound in _range(found)],
                "zeroline": True,
            },
            "hovermode": "x unified",
        },
    }


def side_by_side(forest: Forest) -> Chart:
    """Draw one row for each problem with its effects, and a row of means if there are any."""
    scale = 100.0 if forest.unit == "%" else 1.0
    problems = [*forest.effects]
    names = [*next(iter(forest.effects.values()))]
    offsets = np.linspace(_SPREAD, -_SPREAD, len(names))
    traces = [
        _row_of(name, forest, problems, float(offset), scale)
        for name, offset in zip(names, offsets, strict=True)
    ]
    rows = [*problems, *(["mean"] if forest.means else [])]
    loss = forest.title == TRAIN_LOSS.title
    what = "Less training loss" if loss else f"Improvement of {forest.title}"
    return {
        "data": traces,
        "height": 76 + _ROW * len(rows),
        "layout": {
            "xaxis": {
                "title": {"text": what + _points(forest)},
                "range": [scale * bound for bound in _shown(forest)],
                "zeroline": True,
                "showgrid": True,
                "nticks": 6,
            },
            "yaxis": {
                "tickvals": [-place for place in range(len(rows))],
                "ticktext": [_wrapped(row) for row in rows],
                "range": [-len(rows) + 0.4, 0.6],
                "showgrid": False,
            },
            "hovermode": "closest",
        },
    }


def _shown(forest: Forest) -> tuple[float, float]:
    """Choose limits that contain every effect and most intervals; very wide ones are cut."""
    effects = [effect for by in forest.effects.values() for effect in by.values()]
    bounds = [bound for effect in effects for bound in (*(effect.interval or ()), effect.estimate)]
    reaches = [max(map(abs, (*(effect.interval or ()), effect.estimate))) for effect in effects]
    most = max(_WIDEST * float(np.median(reaches)), 1.5 * max(abs(e.estimate) for e in effects))
    low, high = max(min(*bounds, 0.0), -most), min(max(*bounds, 0.0), most)
    room = _ROOM * (high - low) or 1.0
    return low - room, high + room


def _course(name: str, course: Course, scale: float) -> list[Chart]:
    style = EFFECTS[name]
    steps = plain(course.steps)
    line: Chart = {
        "x": steps,
        "y": plain((effect.estimate for effect in course.effects), scale),
        "mode": "lines",
        "line": {"color": style.color, "dash": style.dash, "width": style.width},
        "name": NAMES[name],
        "hovertemplate": "%{y:+.3g}",
        "showlegend": False,
    }
    intervals = [effect.interval for effect in course.effects]
    if any(interval is None for interval in intervals):
        return [line]
    low, high = zip(*(interval for interval in intervals if interval is not None), strict=True)
    around: Chart = {
        "x": steps + steps[::-1],
        "y": plain(high, scale) + plain(low, scale)[::-1],
        "fill": "toself",
        "fillcolor": translucent(style.color),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "mode": "lines",
        "name": NAMES[name],
        "showlegend": False,
    }
    return [around, line]


def _range(found: Mapping[str, Course]) -> tuple[float, float]:
    """Choose limits that contain 0 and all values after the first tenth of the run."""
    bounds = [0.0]
    for course in found.values():
        late = course.steps >= _SETTLED * course.steps[-1]
        for effect, shown in zip(course.effects, late, strict=True):
            if shown:
                bounds += [effect.estimate, *(effect.interval or ())]
    known = [bound for bound in bounds if math.isfinite(bound)]
    low, high = min(known), max(known)
    room = _ROOM * (high - low) or 1.0
    return low - room, high + room


def _row_of(
    name: str, forest: Forest, problems: Sequence[str], offset: float, scale: float
) -> Chart:
    effects = [forest.effects[problem][name] for problem in problems]
    x = [effect.estimate for effect in effects]
    y = [offset - place for place in range(len(problems))]
    symbols, low, high = ["circle"] * len(x), *_reach(effects)
    if forest.means:
        x, y = [*x, forest.means[name]], [*y, offset - len(problems)]
        symbols, low, high = [*symbols, "diamond"], [*low, 0.0], [*high, 0.0]
    style = EFFECTS[name]
    return {
        "x": plain(x, scale),
        "y": plain(y),
        "mode": "markers",
        "name": NAMES[name],
        "marker": {"color": style.color, "size": 8, "symbol": symbols},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": plain(high, scale),
            "arrayminus": plain(low, scale),
            "color": style.color,
            "thickness": 1.6,
            "width": 0,
        },
        "hovertemplate": f"{NAMES[name]}: %{{x:+.3g}}<extra></extra>",
        "showlegend": False,
    }


def _reach(effects: Sequence[Effect]) -> tuple[list[float], list[float]]:
    """Return the lengths of the intervals below and above the effects; 0 without interval."""
    low = [e.estimate - e.interval[0] if e.interval else 0.0 for e in effects]
    high = [e.interval[1] - e.estimate if e.interval else 0.0 for e in effects]
    return low, high


def _wrapped(name: str) -> str:
    """Break a long name into two lines, to fit on a phone, and cut the rest."""
    lines = textwrap.wrap(name, _LINE) or [""]
    shown = [*lines[:2]] if len(lines) <= 2 else [lines[0], f"{lines[1][: _LINE - 3]}..."]
    return "<br>".join(html.escape(line, quote=False) for line in shown)


def _unit_of(figure: Figure) -> str:
    if figure.quantity.percent:
        return " (pp)"
    return f" ({figure.quantity.unit})" if figure.quantity.unit else ""


def _points(forest: Forest) -> str:
    if forest.title == TRAIN_LOSS.title:
        return " (% of the mean)"
    return " (pp)" if forest.unit == "%" else f" ({forest.unit})" if forest.unit else ""
