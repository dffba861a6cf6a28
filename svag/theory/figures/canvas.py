"""The look that all pictures share, and how they are saved: the same bytes for the same numbers.

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
    """Context or decorator that replaces the caller's Matplotlib settings by svag's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="svag")
        matplotlib.rc("font", size=9)
        matplotlib.rc("axes", unicode_minus=True)
        yield


def titled(width: float, height: float, title: str, *lines: str) -> Figure:
    """Return a picture without axes yet.

    Args:
        width: inches.
        height: inches.
        title: in bold at the top left.
        lines: in grey below the title.
    """
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
    """Draw a light grid and muted labels, without ticks and without all spines but the lowest."""
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
    """Save a picture twice.

    Args:
        figure: the picture.
        directory: folder, which exists.
        stem: of ``stem.png`` and ``stem.svg``.

    Returns:
        Both paths.
    """
    png, svg = directory / f"{stem}.png", directory / f"{stem}.svg"
    figure.savefig(png, dpi=_DPI, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


def number(value: float) -> str:
    """Write a number as tables do, with the power of ten as a superscript."""
    mantissa, e, power = tables.text(value).partition("e")
    return rf"${mantissa}\times10^{{{power}}}$" if e else mantissa


def labels(
    axes: Axes, entries: Sequence[tuple[str, str]], x: float, y: float, *, upwards: bool = False
) -> None:
    """Write lines of text inside axes.

    Args:
        axes: to write in.
        entries: each line with its colour, the top one first.
        x: left end of the lines, as a share of the width of the axes.
        y: top of the first line, as a share of the height of the axes.
        upwards: y is the base of the last line instead.
    """
    for n, (text, color) in enumerate(entries):
        axes.annotate(
            text,
            (x, y),
            (0, 11 * (len(entries) - 1 - n if upwards else -n)),
            xycoords="axes fraction",
            textcoords="offset points",
            color=color,
            fontsize=8,
            va="baseline" if upwards else "top",
        )
