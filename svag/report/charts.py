"""The page's interactive charts, as what Plotly.js draws: lists and dictionaries, ready for JSON.

Colours of text and grid are left to the page, which has a light and a dark look.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from svag.anatomy import method
from svag.lab.analysis import Analysis, Figure, MethodResult
from svag.report.axes import axis, band, drawn
from svag.report.style import BAND_OPACITY, step_size, style_of

Chart: TypeAlias = dict[str, Any]

_SIGNIFICANT = 6
_BELOW = 3.5  # per cent between the rows of crosses below 0
_CHOSEN = {False: 18, True: 12}  # of two methods' marks in one place, both are seen


def curves(analysis: Analysis, figure: Figure) -> Chart:
    """Draw a figure over the steps: a line and a band for each method."""
    shown = axis(list(drawn(analysis, figure).values()), figure)
    percent = figure == "test_accuracy"
    scale = 100.0 if percent else 1.0
    unit = "{y:.2f} %" if percent else "{y:.4g}"
    traces: list[Chart] = []
    for key, curve in drawn(analysis, figure).items():
        low, high = band(curve, shown)
        steps = _plain(curve.steps)
        around = {
            "x": steps + steps[::-1],
            "y": _plain(high, scale) + _plain(low, scale)[::-1],
            "fill": "toself",
            "fillcolor": _translucent(style_of(key).color),
            "line": {"width": 0},
            "hoverinfo": "skip",
            "mode": "lines",
        }
        single = len(analysis.methods[key].replications) == 1
        sd = "" if single else " ± %{customdata:.2g}"
        line = {
            "x": steps,
            "y": _plain(curve.mean, scale),
            "customdata": _plain(curve.sd, scale),
            "mode": "lines",
            "line": _line(key),
            "hovertemplate": f"%{unit}{sd}",
        }
        traces += [{**trace, **_named(key)} for trace in ([line] if single else [around, line])]
    limits = [scale * shown.low, scale * shown.high]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "Step"}, "range": [0, analysis.settings["steps"]]},
            "yaxis": {
                "type": "log" if shown.log else "linear",
                "range": [math.log10(limit) for limit in limits] if shown.log else limits,
                "title": {"text": "Test accuracy (%)" if percent else "Training loss"},
            },
            "hovermode": "x unified",
        },
    }


def sensitivity(analysis: Analysis) -> Chart | None:
    """Draw final test accuracy against step size; None if no step size was searched for."""
    if not any(result.trials for result in analysis.methods.values()):
        return None
    traces: list[Chart] = []
    reached = [
        100 * trial.figures["test_accuracy"]
        for result in analysis.methods.values()
        for trial in result.trials
        if "test_accuracy" in trial.figures
    ]
    highest, lowest = max(reached, default=100.0), 0.0
    for key, result in analysis.methods.items():
        if any(trial.status == "diverged" for trial in result.trials):
            lowest -= _BELOW
        traces += [{**trace, **_named(key)} for trace in _searched(key, result, lowest)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "Step size"},
                "type": "log",
                "exponentformat": "power",
                "dtick": 1,
            },
            "yaxis": {
                "title": {"text": "Final test accuracy (%)"},
                "range": [lowest - _BELOW, 1.06 * highest],
                "tickvals": list(range(0, 101, 20 if highest > 60 else 10)),
                "zeroline": False,
            },
            "hovermode": "closest",
        },
    }


def _searched(key: str, result: MethodResult, lowest: float) -> list[Chart]:
    done = [trial for trial in result.trials if "test_accuracy" in trial.figures]
    done = [trial for trial in done if trial.status == "done"]
    lost = [trial for trial in result.trials if trial.status == "diverged"]
    adapted = method(key).anatomy.adapted
    name, color = method(key).name, style_of(key).color
    accuracies = [100 * trial.figures["test_accuracy"] for trial in done]
    chosen = [trial.lr == result.lr for trial in done]
    line = {
        "x": [trial.lr for trial in done],
        "y": _plain(accuracies),
        "mode": "lines+markers",
        "line": _line(key),
        "marker": {
            "color": color,
            "opacity": 1,
            "size": [_CHOSEN[adapted] if own else 6 for own in chosen],
            "symbol": ["diamond-open" if own else "circle" for own in chosen],
            "line": {"color": color, "width": [2 if own else 0 for own in chosen]},
        },
        "text": ["chosen" if own else "" for own in chosen],
        "hovertemplate": f"{name}, lr %{{x:g}}: %{{y:.2f}} % %{{text}}<extra></extra>",
    }
    crosses = {
        "x": [trial.lr for trial in lost],
        "y": [lowest] * len(lost),
        "mode": "markers",
        "marker": {"color": color, "size": 9, "symbol": "x"},
        "hovertemplate": f"{name}, lr %{{x:g}}: diverged<extra></extra>",
        "cliponaxis": False,
    }
    return [trace for trace, trials in ((line, done), (crosses, lost)) if trials]


def search_table(analysis: Analysis) -> tuple[list[str], Mapping[str, list[str]]]:
    """List the search in words: step sizes, and by method what each of them gave."""
    lrs = sorted({trial.lr for r in analysis.methods.values() for trial in r.trials})
    rows = {}
    for key, result in analysis.methods.items():
        if not result.trials:
            continue
        found = {trial.lr: trial for trial in result.trials}
        cells = []
        for lr in lrs:
            trial = found.get(lr)
            if trial is None:
                cells.append("")
            elif trial.status == "done" and "test_accuracy" in trial.figures:
                cells.append(f"{100 * trial.figures['test_accuracy']:.2f}")
            else:
                cells.append(trial.status)
        rows[key] = cells
    return [step_size(lr) for lr in lrs], rows


def _line(key: str) -> Chart:
    style = style_of(key)
    return {"color": style.color, "dash": style.dash, "width": style.width + 0.2}


def _named(key: str) -> Chart:
    return {"name": method(key).name, "meta": key, "showlegend": False}


def _plain(values: Iterable[float], scale: float = 1.0) -> list[float | None]:
    """Scale to JSON's numbers, of as many digits as a screen can show; None where not finite."""
    return [
        float(f"{scale * float(value):.{_SIGNIFICANT}g}") if math.isfinite(value) else None
        for value in values
    ]


def _translucent(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"
