"""Charts of what changes the worth of one step: rotated axes, larger batches, sign, adaptation."""

import math
from typing import Final

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN
from svag.analysis.dissection_records import Row
from svag.report.charts import Chart, plain, translucent
from svag.report.dissection.drawing import (
    GREY,
    ROW,
    Bounds,
    limits,
    line,
    linear,
    logarithmic,
    named,
    shortened,
    whiskers,
)
from svag.report.dissection.sorted_records import ROTATED, Found, interval_of, known
from svag.report.dissection.tables import factor
from svag.report.effect_charts import NAMES
from svag.report.line_styles import EFFECTS

EFFECT_NAMES: Final = (SIGN, ADAPTATION, INTERACTION)

_SIDES = (("circle", "as they are"), ("circle-open", "rotated"))
_WORTH = {"title": {"text": "Decrease by the best step"}}
_MOST_ROWS = 6  # of a chart of the usual height
_APART, _APART_OF_THREE = 0.16, 0.22  # distance of points from the middle of their row
_SPREAD = 1.025  # points at the same batch size are moved apart by this factor


def rotated(found: Found) -> Chart | None:
    """Draw what a step is worth with the axes as they are and rotated, a row a method."""
    turned = found.tracks.get(ROTATED, {})
    keys = [key for key in found.steps if key in turned]
    if not keys:
        return None
    traces = [
        _side(found, key, place, side, rows[key])
        for side, rows in enumerate((found.steps, turned))
        for place, key in enumerate(keys)
    ]
    both = [rows[key] for rows in (found.steps, turned) for key in keys]
    return {
        "data": traces,
        **({"height": 76 + ROW * len(keys)} if len(keys) > _MOST_ROWS else {}),
        "layout": {
            "xaxis": {**_WORTH, "showgrid": True, "nticks": 6, **_about(both)},
            "yaxis": _rows([found.name(key) for key in keys]),
            "hovermode": "closest",
        },
    }


def _side(found: Found, key: str, place: int, side: int, row: Row) -> Chart:
    """Return a method's point with the axes as they are (side 0) or rotated (1)."""
    symbol, words = _SIDES[side]
    color, value = found.lines[key].color, known(row["value"])
    rim = {"width": 2, "color": color}
    return {
        "x": plain([value]),
        "y": [-place + _APART * (1 - 2 * side)],
        "mode": "markers",
        "marker": {"size": 9, "symbol": symbol, "color": color, "line": rim},
        "error_x": whiskers([value], [interval_of(row)], color),
        "hovertemplate": f"%{{fullData.name}}, axes {words}: %{{x:.4g}}<extra></extra>",
        **named(found, key),
    }


def batches(found: Found) -> Chart | None:
    """Draw what a step is worth against the batch size, a line a method."""
    larger = found.larger_batches
    if not larger:
        return None
    size = found.setting["batch_size"] or 1
    sizes = [many * size for many in sorted(larger)]
    keys = [key for key in found.entrants if any(key in own for own in larger.values())]
    every = [row for own in larger.values() for row in own.values()]
    return {
        "data": [_over_sizes(found, key, place, len(keys)) for place, key in enumerate(keys)],
        "layout": {
            "xaxis": {
                "title": {"text": "Batch size" if found.setting["batch_size"] else "Batches"},
                "type": "log",
                "tickvals": sizes,
                "ticktext": [f"{each:,}" for each in sizes],
                "range": plain([math.log10(sizes[0] / 1.2), math.log10(sizes[-1] * 1.2)]),
            },
            "yaxis": {**_WORTH, **_about(every), "zeroline": True},
            "hovermode": "closest",
        },
    }


def _over_sizes(found: Found, key: str, place: int, methods: int) -> Chart:
    """Return a method's line over the batch sizes, moved a little beside the others."""
    size, style = found.setting["batch_size"] or 1, found.lines[key]
    beside = _SPREAD ** (place - (methods - 1) / 2)
    rows = {
        many * size: own[key] for many, own in sorted(found.larger_batches.items()) if key in own
    }
    values = [known(row["value"]) for row in rows.values()]
    return {
        "x": plain(at * beside for at in rows),
        "y": plain(values),
        "customdata": list(rows),
        "mode": "lines+markers",
        "line": line(style),
        "marker": {"size": 7, "color": style.color},
        "error_y": whiskers(values, [interval_of(row) for row in rows.values()], style.color),
        "hovertemplate": "%{fullData.name}, %{customdata}: %{y:.4g}<extra></extra>",
        **named(found, key),
    }


def effects(found: Found) -> Chart | None:
    """Draw the effects on the worth of one step with their intervals, a row a track.

    None unless something was changed.
    """
    rows = {key: row for key, row in found.effects.items() if row["ratio"] is not None}
    tracks = list(dict.fromkeys(track for track, _ in rows))
    if len(tracks) < 2:
        return None
    logs = [math.log(row["ratio"]) for row in rows.values()]
    shown = limits(logs, [_logs(interval_of(row)) for row in rows.values()], 0.0) or (-1.0, 1.0)
    return {
        "data": [_effect(rows, tracks, number) for number in range(len(EFFECT_NAMES))],
        "height": 76 + ROW * len(tracks),
        "layout": {
            "xaxis": {
                "title": {"text": "Factor on one step"},
                "showgrid": True,
                **_ratios(*map(math.exp, shown)),
            },
            "yaxis": _rows([found.track(track) for track in tracks]),
            "shapes": _neutral(found),
            "hovermode": "closest",
        },
    }


def _effect(rows: dict[tuple[str, str], Row], tracks: list[str], number: int) -> Chart:
    """Return an effect's points, one a track."""
    name = EFFECT_NAMES[number]
    color = EFFECTS[name].color
    own = {n: rows[track, name] for n, track in enumerate(tracks) if (track, name) in rows}
    values = [row["ratio"] for row in own.values()]
    return {
        "x": plain(values),
        "y": [-place + _APART_OF_THREE * (1 - number) for place in own],
        "text": [" ".join(factor(row)) for row in own.values()],
        "mode": "markers",
        "name": NAMES[name],
        "marker": {"size": 8, "color": color},
        "error_x": whiskers(values, [interval_of(row) for row in own.values()], color),
        "hovertemplate": f"{NAMES[name]}: %{{text}}<extra></extra>",
        "showlegend": False,
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


def _about(rows: list[Row]) -> Chart:
    """Return an axis for the worths of rows, from 0."""
    values = [known(row["value"]) for row in rows]
    return linear(limits(values, [interval_of(row) for row in rows], 0.0) or (0.0, 1.0))


def _logs(bounds: Bounds) -> Bounds:
    if bounds is None or not bounds[0] > 0:
        return None
    return math.log(bounds[0]), math.log(bounds[1])


def _ratios(low: float, high: float) -> Chart:
    """Return a logarithmic axis of factors, with ticks at round ones."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, math.inf) if high - low <= 6 * s)
    if math.isinf(step):
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
        "ticktext": [shortened(name) for name in names],
        "range": [-len(names) + 0.4, 0.6],
        "showgrid": False,
    }
