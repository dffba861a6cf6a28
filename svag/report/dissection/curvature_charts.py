"""Chart of the curvature: the spectrum of the Hessian and of its Gauss-Newton part."""

import math
from typing import Final

from svag.report.charts import Chart, plain
from svag.report.dissection.sorted_records import Found
from svag.report.line_styles import Style

MATRICES: Final = {
    "hessian": ("Hessian", Style("#7a5ab5", "solid")),
    "ggn": ("Gauss-Newton", Style("#5a8f29", "solid")),
}
"""Names and lines of the matrices, by their names in the records."""

_LEAST = 1e-12


def spectrum(found: Found) -> Chart | None:
    """Draw the spectral density as stems: share of the eigenvalues against eigenvalue."""
    rows = [row for row in found.curvature.get("density", []) if row["nodes"]]
    floor = min(
        (w for row in rows for w in row["weights"] if w is not None and w > _LEAST), default=None
    )
    if floor is None:
        return None
    floor = 10.0 ** math.floor(math.log10(floor) - 0.3)
    traces = [trace for row in rows for trace in _stems(row["matrix"], row, floor)]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": "Eigenvalue"}, "zeroline": True},
            "yaxis": {
                "title": {"text": "Share of all eigenvalues"},
                "type": "log",
                "range": plain([math.log10(floor), 0.15]),
                "exponentformat": "power",
                "dtick": max(1, round(-math.log10(floor) / 6)),
            },
            "hovermode": "closest",
        },
    }


def _stems(matrix: str, row: Chart, floor: float) -> list[Chart]:
    """Return the stems of a matrix's density, and their ends."""
    name, style = MATRICES.get(matrix, (matrix, Style("#6b7280", "solid")))
    points = [
        (node, weight)
        for node, weight in zip(row["nodes"], row["weights"], strict=True)
        if node is not None and weight is not None and weight > _LEAST
    ]
    x = [v for node, _ in points for v in (*plain([node, node]), None)]
    y = [v for _, weight in points for v in (*plain([floor, weight]), None)]
    stems: Chart = {
        "x": x,
        "y": y,
        "mode": "lines",
        "line": {"color": style.color, "width": 1.2},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    ends: Chart = {
        "x": plain(node for node, _ in points),
        "y": plain(weight for _, weight in points),
        "mode": "markers",
        "marker": {"size": 5, "color": style.color},
        "hovertemplate": f"{name}: %{{y:.2g}} at %{{x:.4g}}<extra></extra>",
        "showlegend": False,
    }
    return [stems, ends]
