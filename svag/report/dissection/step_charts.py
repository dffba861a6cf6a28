"""Charts of single steps: decrease against step size, rotated axes, larger batches, effects."""

import math
from typing import Final

import numpy as np

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN
from svag.analysis.dissection_records import Row
from svag.report.charts import Chart, plain, translucent
from svag.report.dissection.drawing import (
    GREY,
    ROW,
    limits,
    line,
    linear,
    logarithmic,
    named,
    text,
    whiskers,
)
from svag.report.dissection.found import ROTATED, Found, interval_of, known
from svag.report.dissection.tables import factor
from svag.report.effect_charts import NAMES
from svag.report.style import EFFECTS

EFFECT_NAMES: Final = (SIGN, ADAPTATION, INTERACTION)

_BELOW = 0.3  # the axis reaches below 0 by this share of what it reaches above
_ABOVE = 1.08
_MOST_ROWS = 6  # of a chart of the usual height
_APART = 0.16  # rows of a chart that share a place are this far apart
_SPREAD = 1.025  # points at the same batch size are moved apart by this factor


def decrease(found: Found) -> Chart | None:
    """Draw the decrease of the loss against the step size, and the best step sizes."""
    if not found.steps:
        return None
    tops = [known(row["value"]) for row in found.steps.values()]
    tops += [bound[1] for row in found.steps.values() if (bound := interval_of(row))]
    top = max((value for value in tops if math.isfinite(value)), default=1.0)
    low, high = (-_BELOW * top, _ABOVE * top) if top > 0 else (2 * top or -1.0, -top or 1.0)
    traces = [
        {**trace, **named(found, key)}
        for key, row in found.steps.items()
        for trace in _curve(found, key, row, low)
    ]
    shown = [x for trace in traces if trace["mode"] == "lines" for x in trace["x"]]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "Step size"},
                **logarithmic(min(shown, default=0.1) / 1.3, max(shown, default=1.0) * 1.3),
            },
            "yaxis": {
                "title": {"text": "Decrease of the loss by one step"},
                **linear((low, high)),
                "zeroline": True,
            },
            "hovermode": "closest",
        },
    }


def _curve(found: Found, key: str, row: Row, low: float) -> list[Chart]:
    """Return the fitted line, the points measured with their errors, and the best step size."""
    style = found.lines[key]
    points = [
        (lr, float(value), known(error))
        for lr, value, error in zip(row["lrs"], row["curve"], row["errors"], strict=True)
        if value is not None
    ]
    lrs, values, errors = (list(part) for part in zip(*points, strict=True))
    fit = row.get("fit") or values
    at = np.geomspace(lrs[0], lrs[-1], len(fit)) if row.get("fit") else lrs
    smooth: Chart = {
        "x": plain(at),
        "y": plain(map(known, fit)),
        "mode": "lines",
        "line": {**line(style), "shape": "spline"},
        "hoverinfo": "skip",
    }
    dots: Chart = {
        "x": plain(lrs),
        "y": plain(values),
        "customdata": plain(errors),
        "mode": "markers",
        "marker": {"size": 5, "color": style.color},
        "error_y": whiskers(values, [(v - e, v + e) for _, v, e in points], style.color),
        "hovertemplate": "%{fullData.name}, step size %{x:.3g}: %{y:.4g} ± %{customdata:.2g}"
        "<extra></extra>",
    }
    return [*(_until(trace, low) for trace in (smooth, dots)), *_best(row, style.color)]


def _until(trace: Chart, low: float) -> Chart:
    """Leave out points far below the axis, after the first."""
    below = [n for n, y in enumerate(trace["y"]) if y is not None and y < low]
    end = below[0] + 1 if below else len(trace["y"])
    return trace | {name: trace[name][:end] for name in ("x", "y", "customdata") if name in trace}


def _best(row: Row, color: str) -> list[Chart]:
    """Return the best step size with both intervals, where the step is worth something."""
    value, lr = known(row["value"]), known(row["lr"])
    if not value > 0:
        return []
    return [
        {
            "x": plain([lr]),
            "y": plain([value]),
            "mode": "markers",
            "marker": {"size": 11, "symbol": "diamond", "color": color},
            "error_x": whiskers([lr], [interval_of(row, "lr_interval")], color),
            "error_y": whiskers([value], [interval_of(row)], color),
            "hovertemplate": "%{fullData.name}: best step size %{x:.3g}, worth %{y:.4g}"
            "<extra></extra>",
        }
    ]


def rotated(found: Found) -> Chart | None:
    """Draw what a step is worth with the axes as they are and rotated, a row a method."""
    turned = found.tracks.get(ROTATED, {})
    keys = [key for key in found.steps if key in turned]
    if not keys:
        return None
    sides = [(found.steps, "circle", "as they are"), (turned, "circle-open", "rotated")]
    traces = []
    for side, (rows, symbol, words) in enumerate(sides):
        for place, key in enumerate(keys):
            color = found.lines[key].color
            value, bounds = known(rows[key]["value"]), interval_of(rows[key])
            trace = {
                "x": plain([value]),
                "y": [-place + _APART * (1 - 2 * side)],
                "mode": "markers",
                "marker": {"size": 9, "symbol": symbol, "color": color, "line": _rim(color)},
                "error_x": whiskers([value], [bounds], color),
                "hovertemplate": f"%{{fullData.name}}, axes {words}: %{{x:.4g}}<extra></extra>",
            }
            traces.append({**trace, **named(found, key)})
    both = [rows[key] for rows, _, _ in sides for key in keys]
    shown = limits([known(r["value"]) for r in both], [interval_of(r) for r in both], 0.0)
    return {
        "data": traces,
        **({"height": 76 + ROW * len(keys)} if len(keys) > _MOST_ROWS else {}),
        "layout": {
            "xaxis": {
                "title": {"text": "Decrease by the best step"},
                "showgrid": True,
                "nticks": 6,
                **linear(shown or (0.0, 1.0)),
            },
            "yaxis": _rows([found.name(key) for key in keys]),
            "hovermode": "closest",
        },
    }


def _rim(color: str) -> Chart:
    return {"width": 2, "color": color}


def batches(found: Found) -> Chart | None:
    """Draw what a step is worth against the batch size, a line a method."""
    larger = found.larger_batches
    if not larger:
        return None
    size = found.setting["batch_size"] or 1
    middle = (len(found.steps) - 1) / 2
    traces, values, bounds = [], [], []
    for place, key in enumerate(found.entrants):
        rows = [(many, own[key]) for many, own in sorted(larger.items()) if key in own]
        if not rows:
            continue
        style = found.lines[key]
        own = [known(row["value"]) for _, row in rows]
        around = [interval_of(row) for _, row in rows]
        values += own
        bounds += around
        trace = {
            "x": plain(many * size * _SPREAD ** (place - middle) for many, _ in rows),
            "y": plain(own),
            "customdata": [many * size for many, _ in rows],
            "mode": "lines+markers",
            "line": line(style),
            "marker": {"size": 7, "color": style.color},
            "error_y": whiskers(own, around, style.color),
            "hovertemplate": "%{fullData.name}, %{customdata}: %{y:.4g}<extra></extra>",
        }
        traces.append({**trace, **named(found, key)})
    unit = "Batch size" if found.setting["batch_size"] else "Batch size, as a multiple"
    sizes = [many * size for many in sorted(larger)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "title": {"text": unit},
                "type": "log",
                "tickvals": sizes,
                "ticktext": [f"{each:,}" for each in sizes],
                "range": plain([math.log10(sizes[0] / 1.2), math.log10(sizes[-1] * 1.2)]),
            },
            "yaxis": {
                "title": {"text": "Decrease by the best step"},
                **linear(limits(values, bounds, 0.0) or (0.0, 1.0)),
                "zeroline": True,
            },
            "hovermode": "closest",
        },
    }


def effects(found: Found) -> Chart | None:
    """Draw the effects on the worth of one step with their intervals, a row a track."""
    rows = {key: row for key, row in found.effects.items() if row["ratio"] is not None}
    tracks = list(dict.fromkeys(track for track, _ in rows))
    if not tracks:
        return None
    traces = []
    for number, name in enumerate(EFFECT_NAMES):
        places = [n for n, track in enumerate(tracks) if (track, name) in rows]
        own = [rows[tracks[place], name] for place in places]
        values, around = [row["ratio"] for row in own], [interval_of(row) for row in own]
        color = EFFECTS[name].color
        traces.append(
            {
                "x": plain(values),
                "y": [-place + _APART * 1.4 * (1 - number) for place in places],
                "text": [" ".join(factor(row)) for row in own],
                "mode": "markers",
                "name": NAMES[name],
                "marker": {"size": 8, "color": color},
                "error_x": whiskers(values, around, color),
                "hovertemplate": f"{NAMES[name]}: %{{text}}<extra></extra>",
                "showlegend": False,
            }
        )
    logs = [math.log(row["ratio"]) for row in rows.values()]
    around = [_logs(interval_of(row)) for row in rows.values()]
    shown = limits(logs, around, 0.0) or (-1.0, 1.0)
    low, high = (math.exp(bound) for bound in shown)
    return {
        "data": traces,
        "height": 76 + ROW * len(tracks),
        "layout": {
            "xaxis": {
                "title": {"text": "Factor on one step"},
                "showgrid": True,
                **_ratios(low, high),
            },
            "yaxis": _rows([found.track(track) for track in tracks]),
            "shapes": _neutral(found),
            "hovermode": "closest",
        },
    }


def _neutral(found: Found) -> list[Chart]:
    """Return a line at 1, and the band of factors that do not matter, if the records say it."""
    one = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shapes: list[Chart] = [{**one, "line": {"color": GREY, "width": 1.5}}]
    matters = (found.conclusion or {}).get("matters")
    if matters:
        band = {**one, "type": "rect", "x0": 1 - matters, "x1": 1 + matters}
        shapes.append({**band, "fillcolor": translucent(GREY), "line": {"width": 0}})
    return shapes


def _logs(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is None or not bounds[0] > 0:
        return None
    return math.log(bounds[0]), math.log(bounds[1])


def _ratios(low: float, high: float) -> Chart:
    """Return a logarithmic axis of factors, with ticks at round ones."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1e9) if high - low <= 6 * s)
    if step > 0.5:
        return logarithmic(low, high)
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = [round(step * n, 4) for n in range(first, last + 1)]
    return {
        "type": "log",
        "range": plain([math.log10(low), math.log10(high)]),
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def _rows(names: list[str]) -> Chart:
    """Return a vertical axis with a name at each row, from 0 downwards."""
    return {
        "tickvals": [-place for place in range(len(names))],
        "ticktext": [text(name) for name in names],
        "range": [-len(names) + 0.4, 0.6],
        "showgrid": False,
    }
