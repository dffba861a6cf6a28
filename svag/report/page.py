"""Writes the report's page: analyses as one HTML file that needs no network."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from svag.analysis.overview import overview
from svag.analysis.published import PAPER
from svag.analysis.several_problems import Several
from svag.analysis.study import Analysis
from svag.report import effect_charts, line_styles, numbers, overview_tables, tables
from svag.report.charts import Chart
from svag.report.content import PagePlace, content, draw, sentences, summary
from svag.report.templates import environment, write_page


def page(analysis: Analysis, place: PagePlace) -> None:
    """Write ``report.html`` on one problem; equal analyses and folders give the same bytes.

    Example:
        >>> import tempfile
        >>> from svag.analysis.study import analyse
        >>> records = Path("results/paper-step-sizes/fmnist-2c2d")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page(analyse(records), PagePlace(Path(folder), records))
        ...     Path(folder, "report.html").exists()
        True
    """
    filled = content(analysis, place)
    text = environment().get_template("problem.html.j2").render(filled)
    name = analysis.study.base.problem
    write_page(
        place.directory / "report.html",
        title=name,
        over=f"Adam taken apart on {name}: {summary(analysis)}",
        sentences=sentences(analysis),
        overview="",
        problems=[{"text": Markup(text)}],
        charts=filled["charts"],
    )


def page_of_several(several: Several, directory: Path, records: Sequence[Path]) -> None:
    """Write ``report.html`` on several problems: an overview, and a section for each.

    Args:
        several: the studies.
        directory: the page's folder.
        records: each study's folder of records.

    Example:
        >>> import tempfile
        >>> from svag.analysis.several_problems import together
        >>> from svag.analysis.study import analyse
        >>> names = "within-batch/digits", "paper-step-sizes/fmnist-2c2d"
        >>> folders = [Path("results", name) for name in names]
        >>> found = together([analyse(one) for one in folders])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page_of_several(found, Path(folder), folders)
        ...     Path(folder, "report.html").exists()
        True
    """
    templates = environment()
    template = templates.get_template("problem.html.j2")
    forests = _forests(several)
    charts: dict[str, Chart] = dict(forests)
    problems = []
    for number, (analysis, folder) in enumerate(zip(several.analyses, records, strict=True), 1):
        place = PagePlace(directory, folder, prefix=f"p{number}-", alone=False)
        charts |= {f"{place.prefix}{name}": chart for name, chart in draw(analysis).items()}
        problems.append(
            {
                "name": analysis.study.base.problem,
                "summary": summary(analysis),
                "verdict": sentences(analysis),
                "text": Markup(template.render(content(analysis, place))),
            }
        )
    filled = _overview(several, forests, directory, records)
    write_page(
        directory / "report.html",
        title=f"{len(problems)} problems",
        over=f"Adam taken apart on {numbers.count(len(problems), 'problem')}",
        sentences=overview(several),
        overview=Markup(templates.get_template("overview.html.j2").render(filled)),
        problems=problems,
        charts=charts,
    )


def _forests(several: Several) -> dict[str, Chart]:
    """Draw the forest plots, one for each metric and one for the training loss."""
    forests = [*several.on_the_metric, *([several.on_the_loss] if several.on_the_loss else [])]
    return {
        f"forest-{number}": effect_charts.side_by_side(forest)
        for number, forest in enumerate(forests, 1)
    }


def _overview(
    several: Several, forests: dict[str, Chart], directory: Path, records: Sequence[Path]
) -> dict[str, Any]:
    ranked_on, ranked = overview_tables.ranked(several)
    on_the_metric = [f"forest-{n}" for n, _ in enumerate(several.on_the_metric, 1)]
    words = ["svag", "report", *map(str, records), "--out", str(directory)]
    return {
        "tiles": overview_tables.tiles(several),
        "titles": {"rows": tables.ROWS, "columns": tables.COLUMNS},
        "checks": [
            (*check, overview_tables.lines(several, check[0] - 1))
            for check in overview_tables.outcomes(several)
        ],
        "judged": len(several.judged),
        "of_the_paper": any(one.study.base.problem in PAPER for one in several.analyses),
        "ranked_on": ranked_on,
        "ranked": ranked,
        "forests": forests,
        "metric_forests": on_the_metric,
        "loss_forest": next((name for name in forests if name not in on_the_metric), None),
        "has_means": any(forest.means for forest in several.on_the_metric),
        "effect_styles": line_styles.EFFECTS,
        "effect_names": effect_charts.NAMES,
        "departures": [
            (one.study.base.problem, text)
            for one in several.analyses
            if (text := overview_tables.departures(one))
        ],
        "command": shlex.join(words),
    }
