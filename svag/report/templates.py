"""Fills the templates of pages: one HTML file each, which needs no network."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from svag.report.numbers import MINUS


def environment() -> Environment:
    """Return the templates, with the filter ``typeset``."""
    found = Environment(
        loader=PackageLoader("svag.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["typeset"] = typeset
    return found


def typeset(text: str) -> Markup:
    """Return a sentence as HTML, with true minus signs and with intervals in their own spans."""
    text = str(escape(re.sub(r"(?<![\w.-])-(?=\d)", MINUS, text)))
    return Markup(re.sub(r"\[[^\]\w]*\d[^\]]*\]", r'<span class="interval">\g<0></span>', text))


def write_page(path: Path, **filled: Any) -> None:
    """Write a page: headline, sections and charts; Plotly is in it if there is a chart.

    Args:
        path: file of the page.
        filled: values for the template ``page.html.j2``, by name.
    """
    template = environment().get_template("page.html.j2")
    plotly = Markup(get_plotlyjs()) if filled["charts"] else ""
    path.write_text(
        template.render(plotly=plotly, **filled), encoding="utf-8", errors="backslashreplace"
    )
