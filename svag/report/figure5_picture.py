"""The paper's Figure 5: training loss and the metric on test data over the steps, by problem.

One problem has its two panels side by side. Several problems have a column each, with two rows as
in the paper; after six columns the next ones begin below.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from svag.analysis.results import MethodResult
from svag.analysis.study import Analysis
from svag.entrants import in_order
from svag.report.line_styles import Style, styles
from svag.report.numbers import count, headed
from svag.report.panels import INK, LINES, MUTED, line_end_labels, panel, short

_KEY = "Warm colours: with the sign; cool: without. Solid: variance-adapted; broken: not."
_KEY_OF_VARIANTS = " Dash-dotted: a variant in the colour of its method."
_KEY_OF_OTHERS = " Dotted, thin: others."

_LEFT, _TICKS = 0.065, 0.048  # shares of the width: left of the left panel, ticks of the right one
_SIZE = (10.0, 4.3)
_DPI = 200
_MOST_COLUMNS = 6
_COLUMN, _BAND, _HEAD, _LINE = 3.3, 4.9, 0.68, 0.15  # inches
_MARGIN, _GAP, _PANEL = 0.62, 0.62, 1.655
_WIDE = 9.0  # width in inches from which the notes are on one line


def figure5(analyses: Sequence[Analysis], directory: Path) -> None:
    """Draw ``figure5.png`` and ``figure5.svg``, the same bytes for the same analyses.

    Example:
        >>> import tempfile
        >>> from svag.analysis.study import analyse
        >>> analysis = analyse(Path("results/paper-step-sizes/fmnist-2c2d"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figure5([analysis], Path(folder))
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['figure5.png', 'figure5.svg']
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        # letters that the font lacks are drawn as boxes here; the page shows them
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rc("svg", hashsalt="svag")
        matplotlib.rc("font", size=9.5)
        canvas = _one(analyses[0]) if len(analyses) == 1 else _several(analyses)
        canvas.savefig(directory / "figure5.png", dpi=_DPI, metadata={"Software": None})
        canvas.savefig(directory / "figure5.svg", metadata={"Date": None, "Creator": None})


def caption(analysis: Analysis) -> str:
    """Write the caption: the number of seeds, and which methods have no line."""
    seeds = sorted({len(r.runs) for r in analysis.methods.values() if r.runs})
    if not seeds:
        return "There is no final run that did not diverge."
    if seeds == [1]:
        text = "One seed, so no standard deviation."
    else:
        many = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
        text = f"Mean of {many}; shaded: one standard deviation."
    missing = [r.entrant.name for r in analysis.methods.values() if not r.runs]
    return text + (f" Without a run that did not diverge: {', '.join(missing)}." if missing else "")


def legend(analyses: Sequence[Analysis]) -> str:
    """Write the meaning of colours and dashes."""
    entrants = [result.entrant for one in analyses for result in one.methods.values()]
    variants = any(one.row and one.key != one.row for one in entrants)
    others = any(not one.row for one in entrants)
    return _KEY + _KEY_OF_VARIANTS * variants + _KEY_OF_OTHERS * others


def _one(analysis: Analysis) -> Canvas:
    """Draw one problem's two panels side by side, with the methods' names at the lines' ends."""
    canvas = _canvas(_SIZE)
    left, right = canvas.subplots(1, 2)
    longest = max((len(r.entrant.name) for r in analysis.methods.values()), default=0)
    names = min(max(0.092, 0.03 + 0.0088 * longest), 0.3)
    width = (1 - _LEFT - _TICKS - 2 * names) / 2
    canvas.subplots_adjust(
        left=_LEFT, right=1 - names, top=0.80, bottom=0.115, wspace=(names + _TICKS) / width
    )
    left_edge, (_, height) = _LEFT * _SIZE[0], _SIZE
    _written(canvas, (left_edge, 0.065 * height), analysis.study.base.problem, 13, bold=True)
    note = f"{caption(analysis)} {legend([analysis])}"
    _written(canvas, (left_edge, 0.115 * height), note, 8.5)
    lines = styles(result.entrant for result in analysis.methods.values())
    for axes, figure in zip((left, right), (analysis.figures[0], analysis.judged), strict=True):
        ends = panel(axes, analysis, figure, lines)
        line_end_labels(axes, ends, lines)
        axes.set_title(headed(figure), loc="left", fontsize=9.5, color=INK, pad=5)
        axes.set_xlabel("Step", color=MUTED)
    return canvas


def _several(analyses: Sequence[Analysis]) -> Canvas:
    """Draw one column for each problem, with a common legend."""
    columns = min(len(analyses), _MOST_COLUMNS)
    bands = -(-len(analyses) // columns)
    head = _HEAD + (_LINE if columns < 3 else 0)
    canvas = _canvas((_MARGIN + columns * _COLUMN, head + bands * _BAND))
    results = _methods(analyses)
    lines = styles(result.entrant for result in results)
    for number, analysis in enumerate(analyses):
        band, column = divmod(number, columns)
        _column(canvas, analysis, lines, _MARGIN + column * _COLUMN, head + band * _BAND)
    _legend(canvas, analyses, results, lines)
    return canvas


def _column(
    canvas: Canvas, analysis: Analysis, lines: Mapping[str, Style], left: float, top: float
) -> None:
    """Draw a problem's two panels, ``left`` and ``top`` inches from the picture's edges."""
    base = analysis.study.base
    _written(canvas, (left, top + 0.24), short(base.problem), 11, bold=True)
    _written(canvas, (left, top + 0.44), f"{count(base.steps, 'step')}, {_seeds(analysis)}", 8.5)
    width, height = canvas.get_size_inches()
    for row, figure in enumerate((analysis.figures[0], analysis.judged)):
        low = top + 0.78 + _PANEL + row * (_PANEL + 0.36)
        axes = canvas.add_axes(
            (left / width, 1 - low / height, (_COLUMN - _GAP) / width, _PANEL / height)
        )
        panel(axes, analysis, figure, lines, ticks=4)
        axes.set_title(headed(figure), loc="left", fontsize=8.5, color=INK, pad=4)
        if row:
            axes.set_xlabel("Step", color=MUTED, fontsize=8.5)
        else:
            axes.tick_params(labelbottom=False)


def _legend(
    canvas: Canvas,
    analyses: Sequence[Analysis],
    results: Sequence[MethodResult],
    lines: Mapping[str, Style],
) -> None:
    """Draw the legend above the columns, and a note on the meaning of the lines."""
    width, height = canvas.get_size_inches()
    handles = [_sample_of(result, lines[result.entrant.key]) for result in results]
    canvas.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=((_MARGIN - 0.03) / width, 1 - 0.08 / height),
        ncols=max(1, min(len(handles), int((width - _MARGIN) // 1.25))),
        frameon=False,
        fontsize=9.5,
        handlelength=2.6,
        borderpad=0,
        borderaxespad=0,
    )
    wide = width > _WIDE
    text = f"Means of final runs; shaded: one standard deviation.{' ' if wide else chr(10)}"
    _written(canvas, (_MARGIN, 0.56 if wide else 0.7), text + legend(analyses), 8.5)


def _sample_of(result: MethodResult, style: Style) -> Line2D:
    """Return a piece of a method's line for the legend."""
    return Line2D(
        [],
        [],
        color=style.color,
        linestyle=LINES[style.dash],
        linewidth=style.width,
        label=short(result.entrant.name),
    )


def _methods(analyses: Sequence[Analysis]) -> list[MethodResult]:
    """Return one result for each method that has a line in any panel, in the table's order."""
    found: dict[str, MethodResult] = {}
    for analysis in analyses:
        for key, result in analysis.methods.items():
            if result.runs:
                found.setdefault(key, result)
    return [found[key] for key in in_order(found)]


def _seeds(analysis: Analysis) -> str:
    """Write the number of seeds of the means, and whether runs are missing."""
    seeds = sorted({len(r.runs) for r in analysis.methods.values() if r.runs})
    going_on = any(not r.outcome.complete for r in analysis.methods.values())
    if not seeds:
        return "no finished run"
    many = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return many + ", not finished" * going_on


def _canvas(size: tuple[float, float]) -> Canvas:
    canvas = Canvas(figsize=size, facecolor="white")
    FigureCanvasAgg(canvas)
    return canvas


def _written(
    canvas: Canvas, place: tuple[float, float], text: str, size: float, *, bold: bool = False
) -> None:
    """Draw a name (bold, black) or a note (grey) at inches from the left and the top edge."""
    width, height = canvas.get_size_inches()
    weight, color = ("bold", INK) if bold else ("normal", MUTED)
    canvas.text(
        place[0] / width,
        1 - place[1] / height,
        text,
        fontsize=size,
        fontweight=weight,
        color=color,
        parse_math=False,
    )
