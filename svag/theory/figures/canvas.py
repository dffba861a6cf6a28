"""The look that all figures share, and how they are saved: the same bytes for the same numbers.

Colour tells methods that take the sign (warm) from those that do not (cool).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from svag.theory.figures import tables

INK, MUTED, GRID = "#1a1d21", "#59616b", "#e3e6ea"
SGD, SSD, SVAG, MSVAG, ADAM = "#2a9387", "#cc7a00", "#14867a", "#2166c4", "#cf3a1c"
BAND_OPACITY: Final = 0.18
DASHED: Final = (0, (4.5, 1.6))
DOTTED: Final = (0, (1.2, 1.3))

_DPI = 160


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save within this, whatever the caller's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="svag")
        matplotlib.rc("font", size=9)
        matplotlib.rc("axes", unicode_minus=True)
        yield


def canvas(width: float, height: float, title: str, *lines: str) -> Figure:
    """Return an empty figure of so many inches, with a title and muted lines below it."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    left, top = 0.12 / width, 1 - 0.12 / height
    figure.text(left, top, title, fontsize=12.5, fontweight="bold", color=INK, va="top")
    for n, line in enumerate(lines, 1):
        figure.text(
            left, top - (0.1 + 0.175 * n) / height, line, fontsize=8.5, color=MUTED, va="top"
        )
    return figure


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Take away what carries no information."""
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, labelsize=8, which="both")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.title.set_color(INK)


def log_y(axes: Axes, ticks: int = 5) -> None:
    """Make the vertical axis logarithmic, with at most so many powers of ten on it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=ticks + 1))
    axes.yaxis.set_minor_locator(NullLocator())


def save(figure: Figure, directory: Path, stem: str) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg``."""
    png, svg = directory / f"{stem}.png", directory / f"{stem}.svg"
    figure.savefig(png, dpi=_DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def number(value: float) -> str:
    """Write a number as tables do, its power of ten raised."""
    mantissa, e, power = tables.text(value).partition("e")
    return rf"${mantissa}\times10^{{{power}}}$" if e else mantissa


def labels(axes: Axes, entries: Sequence[tuple[str, str]], x: float, y: float) -> None:
    """Write lines of text in their colours inside an axes, from (x, y) downwards."""
    for n, (text, color) in enumerate(entries):
        axes.annotate(
            text,
            (x, y),
            (0, -11 * n),
            xycoords="axes fraction",
            textcoords="offset points",
            color=color,
            fontsize=8,
            va="top",
        )
