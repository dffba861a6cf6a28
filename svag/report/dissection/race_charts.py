"""Charts of the race: loss against step size in every round, and the finals."""

import math
from typing import Final

from svag.analysis.dissection_records import Row
from svag.report.charts import Chart, plain
from svag.report.dissection.drawing import GREY, line, linear, logarithmic, named, text
from svag.report.dissection.sorted_records import Found, known

_CALLS_FOR_LOG: Final = 8.0
_ROOM: Final = 0.07
_FAINT: Final = 0.4


def what_counts(found: Found) -> str:
    """Return what the race is judged by: the loss, or a problem's own figure."""
    return "Loss" if found.steps else "Figure (smaller is better)"


def by_step_size(found: Found) -> Chart | None:
    """Draw the final loss against the step size; earlier, shorter rounds are faint."""
    if found.race is None or not found.heats:
        return None
    low, high, log = _shown(found)
    lengths = sorted({row["steps"] for row in found.heats})
    traces: list[Chart] = []
    for key in found.race["lrs"]:
        for steps in lengths:
            rows = [r for r in found.heats if (r["method"], r["steps"]) == (key, steps)]
            first = [r for r in rows if r["seed"] == 0]
            last = steps == lengths[-1]
            traces += _round(found, key, first, (low, high, log), last=last)
        traces += _winner(found, key, (low, high))
    lrs = [row["lr"] for row in found.heats]
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": {
            "xaxis": {
                "title": {"text": "Step size"},
                **logarithmic(min(lrs) / 1.5, max(lrs) * 1.5),
            },
            "yaxis": {
                "title": {"text": f"{what_counts(found)} at the end"},
                **_axis(low, high, log),
            },
            "shapes": _start(found),
            "hovermode": "closest",
        },
    }


def finals(found: Found) -> Chart | None:
    """Draw the final losses of the last round, with every order of the batches."""
    if found.race is None:
        return None
    keys = [key for key, lr in found.race["lrs"].items() if lr is not None]
    runs = {key: _last(found, key) for key in keys}
    losses = [known(row["loss"]) for rows in runs.values() for row in rows]
    losses = [loss for loss in losses if math.isfinite(loss)]
    if not losses:
        return None
    log = min(losses) > 0 and max(losses) / min(losses) > _CALLS_FOR_LOG
    low, high = _with_room(min(losses), max(losses), log)
    traces = [*_orders(runs), *(_mean(found, key, place) for place, key in enumerate(keys))]
    for place, key in enumerate(keys):
        dots = {
            "x": [place] * len(runs[key]),
            "y": plain(known(row["loss"]) for row in runs[key]),
            "mode": "markers",
            "marker": {"size": 6, "color": found.lines[key].color},
            "text": [f"order {row['seed'] + 1}" for row in runs[key]],
            "hovertemplate": "%{fullData.name}, %{text}: %{y:.4g}<extra></extra>",
        }
        traces.append({**dots, **named(found, key)})
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "tickvals": list(range(len(keys))),
                "ticktext": [text(found.name(key)) for key in keys],
                "range": [-0.5, len(keys) - 0.5],
                "zeroline": False,
            },
            "yaxis": {
                "title": {"text": f"{what_counts(found)} at the end"},
                **_axis(low, high, log),
            },
            "hovermode": "closest",
        },
    }


def _round(
    found: Found, key: str, rows: list[Row], shown: tuple[float, float, bool], *, last: bool
) -> list[Chart]:
    """Return the line of a method in a round, and crosses where it diverged."""
    low, high, _ = shown
    style = found.lines[key]
    rows = sorted(rows, key=lambda row: row["lr"])
    done = [row for row in rows if row["loss"] is not None]
    lost = [row for row in rows if row["loss"] is None]
    steps = rows[0]["steps"] if rows else 0
    width = {"width": style.width + 0.2 if last else 1.1}
    curve = {
        "x": [row["lr"] for row in done],
        "y": plain(min(max(row["loss"], low), high) for row in done),
        "customdata": plain(row["loss"] for row in done),
        "mode": "lines+markers",
        "line": {**line(style), **width},
        "marker": {"size": 6 if last else 4, "color": style.color},
        "opacity": 1.0 if last else _FAINT,
        "hovertemplate": f"%{{fullData.name}}, step size %{{x:g}}, {steps} steps: "
        "%{customdata:.4g}<extra></extra>",
    }
    crosses = {
        "x": [row["lr"] for row in lost],
        "y": plain([high]) * len(lost),
        "mode": "markers",
        "marker": {"size": 9, "symbol": "x", "color": style.color},
        "opacity": 1.0 if last else _FAINT,
        "cliponaxis": False,
        "hovertemplate": f"%{{fullData.name}}, step size %{{x:g}}: diverged within {steps} steps"
        "<extra></extra>",
    }
    return [{**trace, **named(found, key)} for trace in (curve, crosses)]


def _winner(found: Found, key: str, shown: tuple[float, float]) -> list[Chart]:
    """Return a diamond at the step size chosen, at the mean over the orders."""
    assert found.race is not None
    lr, loss = found.race["lrs"][key], found.race["losses"][key]
    if lr is None or loss is None:
        return []
    diamond = {
        "x": [lr],
        "y": plain([min(max(loss, shown[0]), shown[1])]),
        "customdata": plain([loss]),
        "mode": "markers",
        "marker": {
            "size": 14,
            "symbol": "diamond-open",
            "color": found.lines[key].color,
            "line": {"width": 2},
        },
        "hovertemplate": "%{fullData.name}: step size %{x:g}, mean %{customdata:.4g}"
        "<extra></extra>",
    }
    return [{**diamond, **named(found, key)}]


def _orders(runs: dict[str, list[Row]]) -> list[Chart]:
    """Return a thin line for each order of the batches, through all methods."""
    seeds = sorted({row["seed"] for rows in runs.values() for row in rows})
    found = []
    for seed in seeds:
        own = {
            place: row["loss"]
            for place, rows in enumerate(runs.values())
            for row in rows
            if row["seed"] == seed
        }
        found.append(
            {
                "x": list(own),
                "y": plain(map(known, own.values())),
                "mode": "lines",
                "line": {"color": GREY, "width": 0.8},
                "opacity": 0.6,
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return found


def _mean(found: Found, key: str, place: int) -> Chart:
    assert found.race is not None
    mark = {
        "x": [place],
        "y": plain([known(found.race["losses"][key])]),
        "mode": "markers",
        "marker": {
            "size": 14,
            "symbol": "diamond-open",
            "color": found.lines[key].color,
            "line": {"width": 2},
        },
        "hovertemplate": "%{fullData.name}: mean %{y:.4g}<extra></extra>",
    }
    return {**mark, **named(found, key)}


def _last(found: Found, key: str) -> list[Row]:
    """Return a method's trainings at its step size in the last round."""
    assert found.race is not None
    wanted = (key, found.race["lrs"][key], found.race["steps"])
    return [row for row in found.heats if (row["method"], row["lr"], row["steps"]) == wanted]


def _shown(found: Found) -> tuple[float, float, bool]:
    """Choose the limits of the loss: from the least to that at the start."""
    assert found.race is not None
    losses = [known(row["loss"]) for row in found.heats]
    losses = [loss for loss in losses if math.isfinite(loss)]
    chosen = [known(loss) for loss in found.race["losses"].values()]
    tops = [value for value in (known(found.race["start_loss"]), *chosen) if math.isfinite(value)]
    low, high = min(losses, default=0.0), max(tops, default=1.0)
    high = max(high, low)
    log = low > 0 and high / low > _CALLS_FOR_LOG
    return (*_with_room(low, high, log), log)


def _with_room(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        room = (high / low) ** _ROOM
        return low / room, high * room
    room = _ROOM * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _axis(low: float, high: float, log: bool) -> Chart:
    return logarithmic(low, high) if log else linear((low, high))


def _start(found: Found) -> list[Chart]:
    """Return a line at the loss before training."""
    start = found.race["start_loss"] if found.race else None
    if start is None:
        return []
    line = {"color": GREY, "width": 1, "dash": "dot"}
    whole = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    return [{**whole, "y0": start, "y1": start, "line": line}]
