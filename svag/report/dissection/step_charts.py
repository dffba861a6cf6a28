"""Chart of single steps: the decrease of the loss against the step size."""

import itertools
import math

import numpy as np

from svag.analysis.dissection_records import Row
from svag.report.charts import Chart, plain
from svag.report.dissection.drawing import line, linear, logarithmic, named, whiskers
from svag.report.dissection.sorted_records import Found, interval_of, known

_BELOW = 0.3  # the axis reaches below 0 by this share of what it reaches above
_ABOVE = 1.08


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
    measured = zip(row["lrs"], row["curve"], map(known, row["errors"]), strict=True)
    points = list(itertools.takewhile(lambda point: point[1] is not None, measured))
    if not points:
        return _best(row, style.color)
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
