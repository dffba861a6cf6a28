"""The page's interactive charts, as Plotly.js's data: lists and dictionaries, ready for JSON.

The page itself sets the colours of text and grid, since it has a light and a dark theme.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from svag.analysis.results import Figure, MethodResult, Trial
from svag.analysis.study import Analysis
from svag.entrants import Entrant
from svag.report.axis_limits import axis, band, drawn
from svag.report.line_styles import BAND_OPACITY, Style, styles
from svag.report.numbers import headed, step_size

Chart: TypeAlias = dict[str, Any]

_SIGNIFICANT = 6
_SHOWN = 4.0  # the axis reaches below the best by this multiple of the methods' spread
_LEAST_SHOWN = 0.1  # and at least by this share of the distance from the best to the worst
_CHOSEN = {False: 18, True: 12}  # sizes of marks, so that of two in one place both are visible


def curves(analysis: Analysis, figure: Figure) -> Chart:
    """Draw a figure over the steps: a line and a band for each method."""
    shown = axis(list(drawn(analysis, figure).values()), figure)
    scale, form = unit(figure)
    lines = _styles(analysis)
    traces: list[Chart] = []
    for key, curve in drawn(analysis, figure).items():
        result = analysis.methods[key]
        low, high = band(curve, shown)
        steps = plain(curve.steps)
        around = {
            "x": steps + steps[::-1],
            "y": plain(high, scale) + plain(low, scale)[::-1],
            "fill": "toself",
            "fillcolor": translucent(lines[key].color),
            "line": {"width": 0},
            "hoverinfo": "skip",
            "mode": "lines",
        }
        single = len(result.runs) == 1
        sd = "" if single else " ± %{customdata:.2g}"
        line = {
            "x": steps,
            "y": plain(curve.mean, scale),
            "customdata": plain(curve.sd, scale),
            "mode": "lines",
            "line": _line(lines[key]),
            "hovertemplate": f"%{form}{sd}",
        }
        named = _named(result.entrant)
        traces += [{**trace, **named} for trace in ([line] if single else [around, line])]
    limits = [scale * shown.low, scale * shown.high]
    logarithmic = {"type": "log", "range": [math.log10(max(limit, 1e-300)) for limit in limits]}
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "Step"}, "range": [0, analysis.study.base.steps]},
            "yaxis": {
                **(logarithmic if shown.log else {"type": "linear", "range": limits}),
                **({"dtick": "D2", "exponentformat": "power"} if shown.log else {}),
                "title": {"text": headed(figure)},
            },
            "hovermode": "x unified",
        },
    }


def sensitivity(analysis: Analysis) -> Chart | None:
    """Draw the metric against the step size; None if no step size was searched for.

    The axis shows the best values and some below them, among which the choice is made. Values far
    below would compress the rest, and are drawn at the edge.
    """
    if not any(result.trials for result in analysis.methods.values()):
        return None
    figure, quantity = analysis.judged, analysis.quantity
    scale, _ = unit(figure)
    reached = [
        scale * mean
        for result in analysis.methods.values()
        for trial in result.trials
        if math.isfinite(mean := trial.mean(figure))
    ]
    shown = _decisive(analysis, [value / scale for value in reached])
    low, high = (scale * bound for bound in shown)
    room = 0.05 * (high - low)
    worst, towards = (low, -1) if quantity.larger_is_better else (high, 1)
    traces: list[Chart] = []
    lines, crosses = _styles(analysis), 0
    for result in analysis.methods.values():
        crosses += any(trial.diverged == trial.runs for trial in result.trials)
        place = worst + towards * room * (0.5 + crosses)
        found = _searched(result, figure, lines[result.entrant.key], place, (low, high))
        traces += [{**trace, **_named(result.entrant)} for trace in found]
    edge = worst + towards * room * (1.5 + crosses)
    best = high + room if quantity.larger_is_better else low - room
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
                "title": {"text": f"Final {headed(figure)[0].lower()}{headed(figure)[1:]}"},
                "range": sorted((edge, best)),
                "zeroline": False,
            },
            "hovermode": "closest",
        },
    }


def _decisive(analysis: Analysis, reached: list[float]) -> tuple[float, float]:
    """Choose the limits of the axis: from the best value to well below the chosen step sizes'."""
    if not reached:
        return 0.0, 1.0
    turn = analysis.quantity.merit
    figure = analysis.judged.name
    merits = sorted(turn(value) for value in reached)
    chosen = [
        turn(result.final[figure].mean)
        for result in analysis.methods.values()
        if math.isfinite(result.final[figure].mean)
    ]
    best = max([*merits, *chosen])
    spread = best - min(chosen or merits)
    least = max(merits[0], best - max(_SHOWN * spread, _LEAST_SHOWN * (best - merits[0])))
    bounds = sorted((turn(least), turn(best)))
    return bounds[0], bounds[1] if bounds[1] > bounds[0] else bounds[0] + 1e-9


def _searched(
    result: MethodResult, figure: Figure, style: Style, place: float, shown: tuple[float, float]
) -> list[Chart]:
    done = [trial for trial in result.trials if math.isfinite(trial.mean(figure))]
    lost = [trial for trial in result.trials if trial.diverged]
    scale, form = unit(figure)
    values = [scale * trial.mean(figure) for trial in done]
    chosen = [trial.lr == result.lr for trial in done]
    name = result.entrant.name
    line = {
        "x": [trial.lr for trial in done],
        "y": plain(min(max(value, shown[0]), shown[1]) for value in values),
        "mode": "lines+markers",
        "line": _line(style),
        "marker": {
            "color": style.color,
            "opacity": 1,
            "size": [_CHOSEN[result.entrant.adapted] if own else 6 for own in chosen],
            "symbol": ["diamond-open" if own else "circle" for own in chosen],
            "line": {"color": style.color, "width": [2 if own else 0 for own in chosen]},
        },
        "customdata": plain(values),
        "text": [
            f"mean of {_survivors(trial)}{', chosen' if own else ''}"
            for trial, own in zip(done, chosen, strict=True)
        ],
        "hovertemplate": f"{name}, lr %{{x:g}}: %{form.replace('{y', '{customdata')} "
        "(%{text})<extra></extra>",
    }
    crosses = {
        "x": [trial.lr for trial in lost],
        "y": [place] * len(lost),
        "mode": "markers",
        "marker": {"color": style.color, "size": 9, "symbol": "x"},
        "text": [f"{trial.diverged} of {trial.runs}" for trial in lost],
        "hovertemplate": f"{name}, lr %{{x:g}}: %{{text}} diverged<extra></extra>",
        "cliponaxis": False,
    }
    return [trace for trace, trials in ((line, done), (crosses, lost)) if trials]


def _survivors(trial: Trial) -> str:
    count = trial.runs - trial.diverged
    return f"{count} run{'s' * (count != 1)}"


def search_table(analysis: Analysis) -> tuple[list[str], Mapping[str, list[str]]]:
    """Return the search as a table: step sizes, and the result of each by method, as text."""
    lrs = sorted({trial.lr for r in analysis.methods.values() for trial in r.trials})
    rows = {}
    for key, result in analysis.methods.items():
        if not result.trials:
            continue
        found = {trial.lr: trial for trial in result.trials}
        rows[key] = [_tried(found.get(lr), analysis.judged) for lr in lrs]
    return [step_size(lr) for lr in lrs], rows


def _tried(trial: Trial | None, figure: Figure) -> str:
    """Write the mean of a step size's runs, their number, and the number that diverged."""
    if trial is None:
        return ""
    if trial.diverged == trial.runs:
        return "diverged"
    scale, _ = unit(figure)
    digits = ".2f" if figure.quantity.percent else ".4g"
    many = f" ({trial.runs})" if trial.runs > 1 else ""
    lost = f", {trial.diverged} diverged" if trial.diverged else ""
    return f"{scale * trial.mean(figure):{digits}}{many}{lost}"


def unit(figure: Figure) -> tuple[float, str]:
    """Return the factor on a figure's values, and Plotly's format for them."""
    if figure.quantity.percent:
        return 100.0, "{y:.2f} %"
    own = figure.quantity.unit
    return 1.0, "{y:.4g}" + (f" {own}" if own else "")


def _styles(analysis: Analysis) -> dict[str, Style]:
    return styles(result.entrant for result in analysis.methods.values())


def _line(style: Style) -> Chart:
    return {"color": style.color, "dash": style.dash, "width": style.width + 0.2}


def _named(entrant: Entrant) -> Chart:
    return {"name": entrant.name, "meta": entrant.key, "showlegend": False}


def plain(values: Iterable[float], scale: float = 1.0) -> list[float | None]:
    """Scale values and round them to the digits that a screen can show; None if not finite."""
    return [
        float(f"{scale * float(value):.{_SIGNIFICANT}g}") if math.isfinite(value) else None
        for value in values
    ]


def translucent(color: str) -> str:
    """Return a colour with the opacity of a band."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{BAND_OPACITY})"
