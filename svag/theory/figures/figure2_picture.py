"""Figure 2: SGD and SSD on four stochastic quadratics at three noise levels, and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svag.theory.figure2 import NOISE_LEVELS, SEEDS, TIE, Panel, figure2_panels
from svag.theory.figures import explorer, tables
from svag.theory.figures.canvas import (
    BAND_OPACITY,
    DASHED,
    GRID,
    MSVAG,
    MUTED,
    SGD,
    SSD,
    canvas,
    house_style,
    labels,
    log_y,
    number,
    save,
    tidy,
)

BAND: Final = (
    *(("SGD", None), ("SGD", 1 / 2.6), ("SGD", 1 / 1.4)),
    *(("SGD", None), ("SSD", 4.8), ("SSD", 1.4)),
    *(("SGD", 1 / 1.4), ("tie", 1.0), ("tie", 1.0)),
    *(("SSD", 600.0), ("SSD", 2900.0), ("SSD", 12.0)),
)
"""Winner and ratio SGD/SSD that another replication found, panel by panel; without noise on the
well-conditioned problems the ratio spreads over decades, so that there is none to hold against."""

PRECISE: Final = 400
"""Seeds of the figure itself, whose medians are held against a band and the edges of a tie."""

SIGNALS: Final = (0.25, 1.0, 2.5, 10.0, 25.0, 100.0, 1000.0)
"""Ratios of the scale of theta_0 - x* to the noise level nu, at which the problem is solved."""

_COLORS = {"SGD": SGD, "SSD": SSD}
_SCALE = 10.0


@dataclass(frozen=True)
class Verdict:
    """A panel of Figure 2 beside the band.

    Attributes:
        panel: ours.
        band: in words.
        agrees: winner and, where the band has one, magnitude.
        why: where it does not agree, the reason; else what to know.
    """

    panel: Panel
    band: str
    agrees: bool
    why: str


@dataclass(frozen=True)
class ScaleRow:
    """Ratios of a problem at one scale of theta_0 - x* over noise level.

    Attributes:
        problem: in words.
        signal: scale/nu, with theta_0 - x* ~ U[-scale, scale]^d.
        ratio: median over seeds of the suboptimality of SGD over that of SSD.
        low: of the interval that holds 90 % of the seeds.
        high: likewise.
        median: 95 % interval of the median.
    """

    problem: str
    signal: float
    ratio: float
    low: float
    high: float
    median: tuple[float, float]


def name(panel: Panel) -> str:
    """Name a panel's problem."""
    return f"{panel.spectrum}, {'rotated' if panel.rotated else 'axis-aligned'}"


def verdicts(panels: Sequence[Panel]) -> list[Verdict]:
    """Hold the twelve panels against the band."""
    return [_verdict(panel, *band) for panel, band in zip(panels, BAND, strict=True)]


def by_scale(signals: Sequence[float] = SIGNALS, seeds: int = SEEDS) -> list[ScaleRow]:
    """Measure how the ratios move with the scale of theta_0 - x*.

    Only scale/nu matters (:func:`~svag.theory.figure2.figure2_panels`), so nu is moved. The seeds
    are the same at every scale.
    """
    panels = figure2_panels(seeds=seeds, noise_levels=[_SCALE / signal for signal in signals])
    return [
        ScaleRow(
            *(name(panel), _SCALE / panel.noise, panel.ratio, *panel.interval()),
            median=panel.median_interval(),
        )
        for panel in panels
    ]


def draw(
    directory: Path,
    panels: Sequence[Panel] | None = None,
    scales: Sequence[ScaleRow] | None = None,
    *,
    page: bool = True,
) -> list[Path]:
    """Draw ``figure2``, ``figure2-scale``, their tables, and the page ``theory.html``."""
    panels = figure2_panels(seeds=PRECISE) if panels is None else panels
    scales = by_scale() if scales is None else scales
    with house_style():
        files = _picture(directory, panels) + _scale_picture(directory, scales)
    files += tables.write(directory, "figure2", *table(panels))
    files += tables.write(directory, "figure2-scale", *scale_table(scales))
    return files + ([explorer.write(directory)] if page else [])


def table(panels: Sequence[Panel]) -> tuple[list[str], list[list[object]]]:
    """Return head and rows of the ratios beside the band."""
    head = ["problem", "nu", "SGD/SSD", "95 % interval", "90 % of seeds", "nearer", "band"]
    head += ["agrees", "note"]
    rows: list[list[object]] = [
        [
            name(verdict.panel),
            f"{verdict.panel.noise:g}",
            verdict.panel.ratio,
            tables.interval(*verdict.panel.median_interval()),
            tables.interval(*verdict.panel.interval()),
            verdict.panel.winner,
            verdict.band,
            "yes" if verdict.agrees else "no",
            verdict.why,
        ]
        for verdict in verdicts(panels)
    ]
    return head, rows


def scale_table(scales: Sequence[ScaleRow]) -> tuple[list[str], list[list[object]]]:
    """Return head and rows of the ratios by scale: a row a problem, a column a scale."""
    signals = sorted({row.signal for row in scales})
    found = {(row.problem, row.signal): row for row in scales}
    head = ["problem", *(f"scale/nu = {signal:g}" for signal in signals)]
    rows: list[list[object]] = []
    for problem in dict.fromkeys(row.problem for row in scales):
        cells = [found[problem, signal] for signal in signals]
        rows.append(
            [
                problem,
                *(f"{tables.text(r.ratio)} ({tables.interval(*r.median)})" for r in cells),
            ]
        )
    return head, rows


def _verdict(panel: Panel, winner: str, ratio: float | None) -> Verdict:
    low, high = panel.interval()
    accepted = {winner} if ratio is None else {winner, _winner(ratio)}
    agrees, notes = bool(accepted & set(panel.possible)), []
    if panel.winner == "open":
        notes.append(f"the interval allows {' and '.join(panel.possible)}")
    if len(accepted) > 1:
        notes.append(f"the band's own {tables.text(ratio)} counts as a tie")
    if not agrees:
        notes.append(f"median {tables.text(panel.ratio)}: {' or '.join(panel.possible)}")
    if ratio is None or panel.noise == 0:
        band = f"{winner}" if ratio is None else _words(winner, ratio)
        notes.append("without noise only the winner counts")
    else:
        band = _words(winner, ratio)
        allowed = 10 if panel.spectrum == "ill-conditioned" and not panel.rotated else 3
        factor = max(panel.ratio / ratio, ratio / panel.ratio)
        if factor > allowed:
            agrees = False
            notes.append(f"{factor:.1f} times the band's magnitude, more than {allowed}")
        if not agrees:
            inside = low <= ratio <= high
            notes.append(
                "the band's one draw is among our seeds"
                if inside
                else "the band's one draw of Q is outside our seeds' range"
            )
    return Verdict(panel, band, agrees, "; ".join(notes))


def _winner(ratio: float) -> str:
    if ratio < TIE[0]:
        return "SGD"
    return "SSD" if ratio > TIE[1] else "tie"


def _words(winner: str, ratio: float) -> str:
    return winner if winner == "tie" else f"{winner} {max(ratio, 1 / ratio):.4g}x"


def _picture(directory: Path, panels: Sequence[Panel]) -> list[Path]:
    seeds = len(panels[0].trajectories.seeds)
    figure = canvas(
        11.0,
        9.2,
        "Figure 2: SGD and SSD on stochastic quadratics, d = 100",
        "Loss above its minimum over steps, each with its optimal local step size. Line: "
        f"median of {seeds} seeds; band: the middle 90 %.",
        "Numbers: that of SGD over that of SSD after 100 steps, median over seeds; above 1 SSD is "
        "nearer to the minimum. Tie: 0.7 to 1.5; open: its 95 % interval is on an edge.",
    )
    grid = figure.subplots(4, 4, width_ratios=(0.75, 1, 1, 1))
    figure.subplots_adjust(left=0.055, right=0.98, top=0.855, bottom=0.055, wspace=0.27, hspace=0.5)
    columns = len(NOISE_LEVELS)
    for row in range(4):
        in_row = panels[columns * row : columns * (row + 1)]
        _spectrum(grid[row, 0], in_row[0], last=row == 3)
        for axes, panel in zip(grid[row, 1:], in_row, strict=True):
            _panel(axes, panel, last=row == 3)
            if row == 0:
                axes.set_title(f"ν = {panel.noise:g}", loc="left", fontweight="bold", fontsize=10)
    _key(figure)
    return save(figure, directory, "figure2")


def _key(figure: Figure) -> None:
    figure.text(0.885, 0.975, "SGD", color=SGD, fontsize=11, fontweight="bold", va="center")
    figure.text(0.935, 0.975, "SSD", color=SSD, fontsize=11, fontweight="bold", va="center")


def _spectrum(axes: Axes, panel: Panel, *, last: bool) -> None:
    eigenvalues = panel.problem.eigenvalues
    wide = panel.spectrum == "ill-conditioned"
    axes.hist(
        eigenvalues,
        bins=[float(x) for x in np.linspace(0, 60 if wide else 1.2, 25)],
        color="#8c95a0",
    )
    axes.set_xlim(0, 61 if wide else 1.22)
    if wide:
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([0, 5, 10, 90], ["0", "5", "10", "90"])
        axes.minorticks_off()
    axes.set_title(name(panel).replace(", ", "\n"), loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xticks([0, 20, 40, 60] if wide else [0, 0.5, 1])
    axes.set_ylabel("count")
    tidy(axes, grid="")
    if last:
        axes.set_xlabel("eigenvalue of $Q$")


def _panel(axes: Axes, panel: Panel, *, last: bool) -> None:
    t = panel.trajectories.t
    for method, color in _COLORS.items():
        values = panel.trajectories.suboptimality[method]
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=0)
        axes.fill_between(t, low, high, color=color, alpha=BAND_OPACITY, linewidth=0)
        axes.plot(t, middle, color=color, linewidth=1.8)
    axes.set_xlim(0, t[-1])
    log_y(axes, 5)
    tidy(axes)
    side = panel.winner if panel.winner in ("tie", "open") else f"{panel.winner} nearer"
    color = _COLORS.get(panel.winner, MUTED)
    axes.set_title(f"{number(panel.ratio)}  {side}", loc="right", fontsize=8.5, pad=3, color=color)
    if last:
        axes.set_xlabel("step")


def _scale_picture(directory: Path, scales: Sequence[ScaleRow]) -> list[Path]:
    figure = canvas(
        6.6,
        4.3,
        "Figure 2's ratios against the scale of the start",
        r"Suboptimality of SGD over that of SSD after 100 steps, $\theta_0-x_*\sim U[-s,s]^{100}$, "
        "at noise ν: only s/ν matters.",
        "Median and middle 90 % of the seeds. Dotted: Figure 2's columns, s = 10. Grey: a tie.",
    )
    axes = figure.add_axes((0.09, 0.125, 0.61, 0.665))
    axes.axhspan(*TIE, color=GRID, linewidth=0)
    for signal, label in ((10 / 4.0, "ν = 4"), (10 / 0.1, "ν = 0.1")):
        axes.axvline(signal, color=MUTED, linewidth=0.8, linestyle=":")
        axes.text(signal * 1.06, 1e5, label, color=MUTED, fontsize=8, va="center")
    turned, aligned = "#8a4b8f", MSVAG
    styles = ((turned, "-"), (aligned, "-"), (turned, DASHED), (aligned, DASHED))
    problems = list(dict.fromkeys(row.problem for row in scales))
    for problem, (color, line) in zip(problems, styles, strict=True):
        rows = sorted((r for r in scales if r.problem == problem), key=lambda r: r.signal)
        x = [row.signal for row in rows]
        axes.fill_between(
            x, [r.low for r in rows], [r.high for r in rows], color=color, alpha=0.14, linewidth=0
        )
        y = [row.ratio for row in rows]
        axes.plot(x, y, "o", linestyle=line, color=color, markersize=3.5, clip_on=False)
        axes.annotate(
            problem,
            (1, y[-1]),
            (7, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=color,
            fontsize=8,
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xlim(min(r.signal for r in scales), max(r.signal for r in scales))
    log_y(axes, 8)
    axes.set_ylim(3e-5, 2e5)
    labels(axes, [("SSD nearer", MUTED)], 0.02, 0.97)
    labels(axes, [("SGD nearer", MUTED)], 0.02, 0.06)
    axes.set_xlabel("scale of the start over noise level, $s/ν$")
    axes.set_ylabel("suboptimality, SGD / SSD")
    tidy(axes)
    return save(figure, directory, "figure2-scale")
