"""The page of a dissection: text, tables and charts, in the order in which a reader asks."""

import os
import shlex
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from svag.analysis.contrasts import ADAPTATION, SIGN
from svag.analysis.dissection_records import FILE
from svag.analysis.wording import listed
from svag.report import line_styles, numbers
from svag.report import tables as study_tables
from svag.report.charts import Chart
from svag.report.details import duration
from svag.report.dissection import (
    curvature_charts,
    noise_charts,
    race_charts,
    step_charts,
    tables,
    variant_charts,
)
from svag.report.dissection.sorted_records import ROTATED, Found, known
from svag.report.effect_charts import NAMES
from svag.report.templates import environment, write_page

_HALVES: Final = {SIGN: "The sign", ADAPTATION: "Variance adaptation"}
_SAID: Final = {"cannot tell": "cannot be told"}
_DASHES: Final = {"solid": "", "dash": "7 3", "dot": "2 2.5", "dashdot": "7 2.5 1.5 2.5"}
_MOST_OPEN = 12  # rows of a table of parameters that is open at first


def page(found: Found, path: Path, records: Path) -> None:
    """Write the page.

    Args:
        found: the records.
        path: file of the page.
        records: folder of the records.
    """
    charts = draw(found)
    filled = content(found, charts, path, records)
    text = environment().get_template("dissection.html.j2").render(filled)
    name = found.setting["problem"]
    write_page(
        path,
        title=f"{name}, dissected",
        over=f"Adam dissected on {name}: {summary(found)}",
        sentences=[found.conclusion["headline"]] if found.conclusion else [],
        overview="",
        problems=[{"text": Markup(text)}],
        charts=charts,
    )


def draw(found: Found) -> dict[str, Chart]:
    """Draw the charts, by name; only those that there are records for."""
    drawn = {
        "decrease": step_charts.decrease(found),
        "rotated": variant_charts.rotated(found),
        "batches": variant_charts.batches(found),
        "effects": variant_charts.effects(found),
        "race": race_charts.by_step_size(found),
        "finals": race_charts.finals(found),
        "strip": noise_charts.strip(found),
        "eta": noise_charts.histogram(found),
        "spectrum": curvature_charts.spectrum(found),
    }
    return {name: chart for name, chart in drawn.items() if chart is not None}


def summary(found: Found) -> str:
    """Write in one line what was dissected."""
    setting = found.setting
    parts = [point(found), numbers.count(setting["parameters"], "parameter")]
    if setting["batch_size"]:
        parts.append(f"batches of {setting['batch_size']}")
    return ", ".join(parts)


def point(found: Found) -> str:
    """Write where the model stands."""
    step = found.setting["step"]
    if step is None:
        return "at the parameters given"
    return f"after {numbers.count(step, 'step')}" if step else "at initialisation"


def content(found: Found, charts: dict[str, Chart], path: Path, records: Path) -> dict[str, Any]:
    """Return the values for the template, by name.

    Args:
        found: the records.
        charts: the charts by name.
        path: file of the page.
        records: folder of the records.
    """
    return {
        "found": found,
        "setting": found.setting,
        "charts": charts,
        "name_of": found.name,
        "style_of": found.lines.__getitem__,
        "dashes": _DASHES,
        "point": point(found),
        "methods": tables.methods(found),
        "reference": found.name(found.reference) if found.reference else "",
        **_answer(found),
        **_halves(found),
        **_race(found),
        **_noise(found),
        **_curvature(found),
        **_made(found, path, records),
    }


def _answer(found: Found) -> dict[str, Any]:
    concluded = found.conclusion or {}
    matters = concluded.get("matters")
    statements = [
        {
            "name": _HALVES[one["effect"]],
            "said": _SAID.get(one["verdict"], one["verdict"]),
            "text": one["text"],
        }
        for one in concluded.get("statements", [])
    ]
    suggestions = concluded.get("suggestions", [])
    return {
        "statements": statements,
        "notes": concluded.get("notes", []),
        "matters": f"{100 * matters:.0f} %" if matters else "",
        "suggestions": suggestions,
        "planned": found.setting.get("planned"),
        "changed": any(one.get("raced") not in (None, one["lr"]) for one in suggestions),
        "raced_steps": f"{found.race['steps']:,}" if found.race and suggestions else "",
    }


def _halves(found: Found) -> dict[str, Any]:
    return {
        "titles": {"rows": study_tables.ROWS, "columns": study_tables.COLUMNS},
        "cells": {place: tables.cell(found, key) for place, key in found.cells.items()},
        "margins": tables.margins(found),
        "effect_key": {
            NAMES[name]: line_styles.EFFECTS[name] for name in variant_charts.EFFECT_NAMES
        },
        "rotated": ROTATED in found.tracks,
        "larger": bool(found.larger_batches),
    }


def _race(found: Found) -> dict[str, Any]:
    lengths = sorted({row["steps"] for row in found.heats})
    return {
        "lengths": listed(f"{steps:,}" for steps in lengths) if lengths else "",
        "rounds": len(lengths),
        "orders": len({row["seed"] for row in found.heats}),
    }


def _noise(found: Found) -> dict[str, Any]:
    """Return the noise of all parameters together, as text, and the table of the layers."""
    row, noise = found.overall, {}
    if row is not None:
        noise = {
            "scale": tables.noise_scale(row),
            "success": tables.percent(row["success"]),
            "gaussian": tables.percent(row["gaussian_success"]),
            "kurtosis": numbers.significant(known(row["kurtosis"]), 2),
            "unresolved": tables.percent(row["unresolved"]),
            "still": tables.percent(row["still"]),
        }
    averages = (row or {}).get("factors") or [None] * len(noise_charts.FACTORS)
    return {
        "noise": noise,
        "factors": [
            (name, line, numbers.significant(known(averages[place]), 2))
            for name, line, place in noise_charts.FACTORS
        ],
        "ramp": noise_charts.RAMP,
        "layers": tables.layers(found),
        "open": len(found.layers) <= _MOST_OPEN,
        "gradients": f"{found.layers[0]['gradients']:,}" if found.layers else "",
    }


def _curvature(found: Found) -> dict[str, Any]:
    present = {row["matrix"] for row in found.curvature.get("density", [])}
    return {
        "eigenvalues": tables.eigenvalues(found),
        "diagonal": tables.diagonal(found),
        "along": tables.along(found),
        "matrices": [p for name, p in curvature_charts.MATRICES.items() if name in present],
    }


def _made(found: Found, path: Path, records: Path) -> dict[str, Any]:
    """Return how the records and the page were made, and how to make them again."""
    setting = found.setting
    again = ["svag", "report", str(records)]
    away = path.parent.resolve() != records.resolve()
    again += ["--out", str(path.parent)] * away
    return {
        "command": setting.get("command", ""),
        "again": shlex.join(again),
        "seconds": duration(setting["seconds"]),
        "budget": duration(setting["budget"]),
        "loss": numbers.significant(setting["loss"], 4) if setting["loss"] is not None else "",
        "method_names": listed(one.name for one in found.entrants.values()),
        "link": quote(os.path.relpath(records / FILE, path.parent).replace(os.sep, "/")),
        "file": FILE,
    }
