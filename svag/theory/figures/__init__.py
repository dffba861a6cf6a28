"""The figures of the theory, computed and drawn: PNG, SVG, and their numbers as tables.

Importing this costs nothing: Matplotlib, Plotly and Jinja2 are loaded when something is drawn.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final

from svag.errors import UnknownName, nearest

FIGURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "2": "figure2_picture",
        "3": "figure3_picture",
        "4": "figure4_picture",
        "theorem1": "theorem1_picture",
        "wilson": "wilson_picture",
        "p-diag": "p_diag_picture",
    }
)
"""The module of this package that draws each figure, by the figure's name."""


def draw(name: str, directory: Path) -> list[Path]:
    """Compute and draw a figure.

    Args:
        name: a key of :data:`FIGURES`.
        directory: where to put it; made if it is not there.

    Returns:
        The files written: pictures, tables and, for Figure 2, a page to explore.

    Raises:
        UnknownName: there is no such figure.
    """
    if name not in FIGURES:
        known = ", ".join(FIGURES)
        raise UnknownName(f"no figure {name!r}; there are {known}.{nearest(name, FIGURES)}")
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = import_module(f"{__name__}.{FIGURES[name]}").draw(directory)
    return files
