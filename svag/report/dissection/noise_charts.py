"""Charts of the noise: eta by layer as a heat strip, and its histogram under Figure 3's factors."""

import math
from typing import Final

import numpy as np

from svag.analysis.dissection_records import Row
from svag.report.charts import Chart, plain, translucent
from svag.report.dissection.drawing import GREY, shortened, text
from svag.report.dissection.sorted_records import Found, known
from svag.report.line_styles import STYLES, Style
from svag.report.numbers import NONE, significant
from svag.theory.factors import gamma_erf, gamma_sqrt, gamma_svag

FACTORS: Final = (
    ("1/(1 + η²), SVAG's, best for the gradient", Style(STYLES["m-svag"].color, "solid"), 0),
    ("1/√(1 + η²), Adam's", Style(STYLES["adam"].color, "solid"), 1),
    ("erf(1/(√2 η)), best for the sign", Style(STYLES["m-ssd"].color, "dash"), 2),
)
"""Names and lines of Figure 3's factors, and their place in a record's ``factors``."""

RAMP: Final = ("#ece6f5", "#c3b1e1", "#9a7bc8", "#6b4aa3", "#3a1d6e")
"""Colours of eta in the strip, from 0.1 or less to 10 or more."""

_CURVES = (gamma_svag, gamma_sqrt, gamma_erf)
_QUANTILES = ("10 %", "25 %", "median", "75 %", "90 %")
_CLEAR, _NOISY = 0.1, 10.0  # ends of the colours
_MOST_NAMES = 12
_MOST_GAPS = 60
_LEAST_ETA, _MOST_ETA = 0.1, 10.0
_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def strip(found: Found) -> Chart | None:
    """Draw quantiles of eta as colours, a column a layer; None for a single layer."""
    layers, named = found.layers, len(found.layers) <= _MOST_NAMES
    if len(layers) < 2:
        return None
    heat = {
        "type": "heatmap",
        "x": list(range(1, len(layers) + 1)),
        "y": list(_QUANTILES),
        "z": [plain(_colour(one, q) for one in layers) for q in range(len(_QUANTILES))],
        "text": [[eta(one, q) for one in layers] for q in range(len(_QUANTILES))],
        "customdata": [[text(one["name"]) for one in layers]] * len(_QUANTILES),
        "hovertemplate": "%{customdata}, %{y}: η = %{text}<extra></extra>",
        "colorscale": [[n / (len(RAMP) - 1), color] for n, color in enumerate(RAMP)],
        "zmin": math.log10(_CLEAR),
        "zmax": math.log10(_NOISY),
        "showscale": False,
        "xgap": 1 if len(layers) <= _MOST_GAPS else 0,
        "ygap": 1,
        **({"texttemplate": "%{text}"} if named else {}),
    }
    names = [shortened(one["name"]) for one in layers]
    ticks = {"tickvals": heat["x"], "ticktext": names} if named else {"nticks": 12}
    return {
        "data": [heat],
        "height": 230 if named else 210,
        "layout": {
            "xaxis": {**ticks, "title": {"text": "" if named else "Number of the parameter"}},
            "yaxis": {"type": "category", "showgrid": False, "ticksuffix": " "},
            "hovermode": "closest",
        },
    }


def eta(row: Row, place: int) -> str:
    """Write a quantile of eta: infinite where it is unresolved, a dash where nothing moved."""
    value = row["eta"][place]
    if value is None:
        return NONE if _still(row) else "∞"
    return significant(value, 2)


def _colour(row: Row, place: int) -> float:
    """Return the logarithm of a quantile of eta; an infinite one has the last colour."""
    value = row["eta"][place]
    if value is None:
        return math.nan if _still(row) else math.log10(_NOISY)
    return math.log10(max(value, _CLEAR / 10))


def _still(row: Row) -> bool:
    return known(row["still"]) >= 1


def histogram(found: Found) -> Chart | None:
    """Draw the three factors over eta, and under them where the coordinates are."""
    bins: Row | None = (found.overall or {}).get("histogram")
    if not bins or not any(bins["shares"]):
        return None
    filled = [n for n, share in enumerate(bins["shares"]) if share > 0]
    low = min(_LEAST_ETA, bins["edges"][filled[0]])
    high = max(_MOST_ETA, bins["edges"][filled[-1] + 1])
    return {
        "data": [_bars(bins, low, high), *_factors(low, high)],
        "layout": {
            "xaxis": {
                "title": {"text": "η = σ/|∇L| of a coordinate"},
                "type": "log",
                "range": plain([math.log10(low), math.log10(high)]),
                "tickvals": list(_TICKS),
                "ticktext": [f"{tick:g}" for tick in _TICKS],
            },
            "yaxis": {"title": {"text": "Factor γ"}, "range": [0, 1.04]},
            "yaxis2": {
                "title": {"text": "Share of coordinates (%)"},
                "overlaying": "y",
                "side": "right",
                "showgrid": False,
                "automargin": True,
                "tickmode": "auto",
                "nticks": 5,
                "range": plain([0, 170 * max(bins["shares"])]),
            },
            "hovermode": "closest",
        },
    }


def _bars(bins: Row, low: float, high: float) -> Chart:
    """Return the histogram between two of its edges, as a filled line with steps."""
    edges, shares = bins["edges"], bins["shares"]
    inside = [n for n in range(len(shares)) if low < edges[n + 1] and edges[n] < high]
    heights = [shares[n] for n in inside]
    return {
        "x": plain([*(edges[n] for n in inside), edges[inside[-1] + 1]]),
        "y": plain([*heights, heights[-1]], 100),
        "yaxis": "y2",
        "mode": "lines",
        "line": {"shape": "hv", "color": GREY, "width": 1},
        "fill": "tozeroy",
        "fillcolor": translucent(GREY),
        "hovertemplate": "%{y:.2g} % of the coordinates from η = %{x:.2g} on<extra></extra>",
        "showlegend": False,
    }


def _factors(low: float, high: float) -> list[Chart]:
    """Return the curves of Figure 3."""
    at = np.geomspace(low, high, 120)
    return [
        {
            "x": plain(at),
            "y": plain(_CURVES[place](at)),
            "mode": "lines",
            "line": {"color": style.color, "dash": style.dash, "width": 2},
            "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
            "showlegend": False,
        }
        for name, style, place in FACTORS
    ]
