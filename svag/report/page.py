"""The report's page: what an analysis says, as one HTML file that needs no network."""

import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from svag.anatomy import method
from svag.lab.analysis import Analysis
from svag.lab.verdict import observations, verdict
from svag.report import charts, style, tables
from svag.report.figures import caption, legend

_DASHES = {"solid": "", "dash": "7 3", "dot": "2 2.5", "dashdot": "7 2.5 1.5 2.5"}


def page(analysis: Analysis, directory: Path) -> None:
    """Write ``report.html``, the same bytes for the same analysis and folder."""
    environment = Environment(
        loader=PackageLoader("svag.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    text = environment.get_template("page.html.j2").render(_content(analysis, directory))
    (directory / "report.html").write_text(text, encoding="utf-8")


def typeset(text: str) -> Markup:
    """Give a sentence's numbers true minus signs, and set its intervals apart."""
    text = str(escape(re.sub(r"(?<![\w.-])-(?=\d)", style.MINUS, text)))
    return Markup(re.sub(r"\[[^\]\w]*\d[^\]]*\]", r'<span class="interval">\g<0></span>', text))


def command(analysis: Analysis, directory: Path) -> str:
    """Write the command that makes these runs, or goes on from those there are."""
    settings, methods = analysis.settings, analysis.methods
    sources = analysis.versions["source"] or [str(settings["problem"])]
    words = ["svag", "compare", sources[0], "--methods", ",".join(methods)]
    for key, result in methods.items():
        if not result.trials:
            words += ["--lr", f"{key}={result.lr!r}"]
    seeds = max(len(r.replications) + r.diverged for r in methods.values())
    words += ["--steps", str(settings["steps"]), "--seeds", str(seeds)]
    words += ["--select", str(settings["select"]), "--out", str(directory)]
    return shlex.join(words)


def _content(analysis: Analysis, directory: Path) -> dict[str, Any]:
    drawn = _charts(analysis)
    effects = analysis.effects.get("train_loss", {})
    return {
        "verdict": re.split(r"(?<=\.)\s+(?=[A-Z])", verdict(analysis)),
        "settings": analysis.settings,
        "versions": {
            name: style.listed(found) for name, found in analysis.versions.items() if found
        },
        "summary": _summary(analysis),
        "caption": caption(analysis),
        "key": legend(analysis),
        "titles": {"rows": tables.ROWS, "columns": tables.COLUMNS},
        "square": tables.square(analysis),
        "margins": tables.margins(analysis),
        "missing": tables.missing(analysis),
        "lost": any(not r.replications for r in analysis.methods.values()),
        "rows": tables.rows(analysis),
        "published": tables.published(analysis),
        "dashes": _DASHES,
        "style_of": style.style_of,
        "charts": drawn,
        "search": charts.search_table(analysis),
        "given": [method(key).name for key, r in analysis.methods.items() if not r.trials],
        "observations": observations(analysis),
        "command": command(analysis, directory),
        "report_command": shlex.join(["svag", "report", str(directory)]),
        "intervals": any(effect.interval is not None for effect in effects.values()),
        "single": any(len(r.replications) == 1 for r in analysis.methods.values()),
        "duration": _duration(analysis.seconds),
        "listed": style.listed,
        "others": analysis.others,
        "plotly": Markup(get_plotlyjs()) if drawn else "",
    }


def _charts(analysis: Analysis) -> dict[str, charts.Chart]:
    found = {}
    if any(result.replications for result in analysis.methods.values()):
        found["train_loss"] = charts.curves(analysis, "train_loss")
        found["test_accuracy"] = charts.curves(analysis, "test_accuracy")
    searched = charts.sensitivity(analysis)
    if searched is not None:
        found["sensitivity"] = searched
    return found


def _summary(analysis: Analysis) -> str:
    counts = {len(r.replications) + r.diverged for r in analysis.methods.values()}
    seeds = sorted(counts - {0}) or [0]
    many = style.count(seeds[-1], "seed")
    return ", ".join(
        (
            style.count(len(analysis.methods), "method"),
            style.count(int(analysis.settings["steps"]), "step"),
            f"batches of {analysis.settings['batch_size']}",
            many if len(seeds) == 1 else f"{seeds[0]} to {many}",
        )
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
