"""The report's page: what an analysis says, as one HTML file that needs no network."""

import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from svag.analysis.study import Analysis
from svag.analysis.verdict import verdict
from svag.analysis.wording import difference
from svag.report import charts, style, tables
from svag.report.figures import caption, legend

_DASHES = {"solid": "", "dash": "7 3", "dot": "2 2.5", "dashdot": "7 2.5 1.5 2.5"}


def page(analysis: Analysis, directory: Path, records: Path) -> None:
    """Write ``report.html`` into a folder, the same bytes for the same analysis and folders."""
    environment = Environment(
        loader=PackageLoader("svag.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    text = environment.get_template("page.html.j2").render(_content(analysis, directory, records))
    (directory / "report.html").write_text(text, encoding="utf-8")


def typeset(text: str) -> Markup:
    """Give a sentence's numbers true minus signs, and set its intervals apart."""
    text = str(escape(re.sub(r"(?<![\w.-])-(?=\d)", style.MINUS, text)))
    return Markup(re.sub(r"\[[^\]\w]*\d[^\]]*\]", r'<span class="interval">\g<0></span>', text))


def command(analysis: Analysis, records: Path) -> str:
    """Write the command that makes these runs, or goes on from those there are."""
    study, base = analysis.study, analysis.study.base
    words = ["svag", "compare", study.source or base.problem, "--methods", ",".join(study.methods)]
    for key, lr in study.lrs.items():
        words += ["--lr", f"{key}={lr!r}"]
    for key, lrs in study.grids.items():
        words += ["--grid", f"{key}={','.join(map(repr, lrs))}"]
    words += ["--steps", str(base.steps), "--seeds", str(study.seeds), "--select", base.select]
    words += ["--protocol", study.protocol] * (study.protocol != "tuned")
    words += ["--selection-seeds", str(study.selection_seeds)] * (study.selection_seeds != 3)
    words += ["--batch-size", str(base.batch_size), "--weight-decay", repr(base.weight_decay)]
    words += ["--device", base.device] * (base.device != "cpu")
    words += ["--autocast", base.autocast or "off"]
    if study.smallest_effect is not None:
        words += ["--smallest-effect", repr(study.smallest_effect)]
    return shlex.join([*words, "--out", str(records)])


def _content(analysis: Analysis, directory: Path, records: Path) -> dict[str, Any]:
    drawn = _charts(analysis)
    claims, study = analysis.claims, analysis.study
    lines = style.styles(result.entrant for result in analysis.methods.values())
    intervals = claims is not None and claims.finding != "one seed"
    margin = "" if claims is None else difference(claims.margin, analysis.quantity, signed=False)
    return {
        "verdict": re.split(r"(?<=\.)\s+(?=[A-Z])", verdict(analysis)),
        "study": study,
        "base": study.base,
        "judged": analysis.judged,
        "loss": analysis.figures[0],
        "figures": analysis.figures,
        "headlines": tables.headlines(analysis),
        "better": "larger" if analysis.quantity.larger_is_better else "smaller",
        "versions": {
            name: style.listed(found) for name, found in analysis.versions.items() if found
        },
        "summary": _summary(analysis),
        "caption": caption(analysis),
        "key": legend(analysis),
        "titles": {"rows": tables.ROWS, "columns": tables.COLUMNS},
        "square": tables.square(analysis),
        "margins": tables.margins(analysis),
        "claims": tables.claims(analysis),
        "margin_of_interest": margin,
        "margin_given": claims is not None and claims.margin_given,
        "power": 0.0 if claims is None else 100 * claims.power,
        "against_cells": tables.others(analysis),
        "cell_names": [analysis.methods[key].entrant.name for key in analysis.cells.values()],
        "set_aside": tables.set_aside(analysis),
        "missing": tables.missing(analysis),
        "lost": any(not r.runs for r in analysis.methods.values()),
        "rows": tables.rows(analysis),
        "published": tables.published(analysis),
        "dashes": _DASHES,
        "style_of": lines.__getitem__,
        "charts": drawn,
        "search": charts.search_table(analysis),
        "given": [r.entrant.name for r in analysis.methods.values() if not r.trials],
        "observations": analysis.observations,
        "command": command(analysis, records),
        "report_command": _report_command(analysis, directory, records),
        "intervals": intervals,
        "single": any(len(r.runs) == 1 for r in analysis.methods.values()),
        "duration": _duration(analysis.seconds),
        "listed": style.listed,
        "not_used": analysis.set_aside,
        "other_studies": analysis.other_studies,
        "plotly": Markup(get_plotlyjs()) if drawn else "",
    }


def _report_command(analysis: Analysis, directory: Path, records: Path) -> str:
    words = ["svag", "report", str(records), "--study", analysis.study.id]
    return shlex.join(words + ["--out", str(directory)] * (directory != records))


def _charts(analysis: Analysis) -> dict[str, charts.Chart]:
    found = {}
    if any(result.runs for result in analysis.methods.values()):
        found["train_loss"] = charts.curves(analysis, analysis.figures[0])
        found["judged"] = charts.curves(analysis, analysis.judged)
    searched = charts.sensitivity(analysis)
    if searched is not None:
        found["sensitivity"] = searched
    return found


def _summary(analysis: Analysis) -> str:
    base = analysis.study.base
    counts = sorted({result.many for result in analysis.methods.values()} - {0}) or [0]
    many = style.count(counts[-1], "seed")
    return ", ".join(
        (
            style.count(len(analysis.methods), "method"),
            style.count(base.steps, "step"),
            f"batches of {base.batch_size}",
            many if len(counts) == 1 else f"{counts[0]} to {many}",
        )
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
