"""Figure 2: SGD and SSD on four stochastic quadratics at three noise levels, and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svag.theory.figure2 import NOISE_LEVELS, SEEDS, TIE, Panel, figure2_panels
from svag.theory.figures import canvas, explorer, tables
from svag.theory.figures.canvas import BAND_OPACITY, DASHED, GRID, MSVAG, MUTED, SGD, SSD

BAND: Final = (
    *(("SGD", None), ("SGD", 1 / 2.6), ("SGD", 1 / 1.4)),
    *(("SGD", None), ("SSD", 4.8), ("SSD", 1.4)),
    *(("SGD", 1 / 1.4), ("tie", 1.0), ("tie", 1.0)),
    *(("SSD", 600.0), ("SSD", 2900.0), ("SSD", 12.0)),
)
"""Winner and ratio SGD/SSD that another replication found, panel by panel. None: without noise on
the well-conditioned problems the ratio spreads over decades, and only the winner is compared."""

PRECISE: Final = 400
"""Seeds of the figure itself, whose medians are compared with a band and the edges of a tie."""

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


def verdicts(panels: Sequence[Panel]) -> list[Verdict]:
    """Compare the twelve panels with the band."""
    return [_verdict(panel, *band) for panel, band in zip(panels, BAND, strict=True)]


def by_scale(signals: Sequence[float] = SIGNALS, seeds: int = SEEDS) -> list[Panel]:
    """Solve the four problems at other ratios of the scale of theta_0 - x* to the noise level.

    Only scale/nu matters (:func:`~svag.theory.figure2.figure2_panels`), so nu is changed. The
    seeds are the same at every ratio.
    """
    return figure2_panels(seeds=seeds, noise_levels=[_SCALE / signal for signal in signals])


@canvas.house_style()
def draw(
    directory: Path,
    panels: Sequence[Panel] | None = None,
    scales: Sequence[Panel] | None = None,
    *,
    page: bool = True,
) -> list[Path]:
    """Draw ``figure2``, ``figure2-scale``, their tables, and the page ``theory.html``.

    Args:
        directory: folder, which exists.
        panels: the twelve of Figure 2; None solves the problems for :data:`PRECISE` seeds.
        scales: of :func:`by_scale`, which None calls.
        page: whether to write the page, too.

    Returns:
        The files written.
    """
    panels = figure2_panels(seeds=PRECISE) if panels is None else panels
    scales = by_scale() if scales is None else scales
    files = canvas.save(_picture(panels), directory, "figure2")
    files += canvas.save(_scale_picture(scales), directory, "figure2-scale")
    files += tables.write(directory, "figure2", *table(panels))
    files += tables.write(directory, "figure2-scale", *scale_table(scales))
    return files + ([explorer.write(directory)] if page else [])


def table(panels: Sequence[Panel]) -> tables.Table:
    """Return the table of the ratios beside the band."""
    head = ["problem", "nu", "SGD/SSD", "95 % interval", "90 % of seeds", "nearer", "band"]
    rows: list[list[object]] = [
        [
            *(found.panel.name, f"{found.panel.noise:g}", found.panel.ratio),
            tables.interval(*found.panel.median_interval()),
            tables.interval(*found.panel.interval()),
            *(found.panel.winner, found.band, "yes" if found.agrees else "no", found.why),
        ]
        for found in verdicts(panels)
    ]
    return [*head, "agrees", "note"], rows


def scale_table(scales: Sequence[Panel]) -> tables.Table:
    """Return the table of the ratios by scale: a row a problem, a column a scale."""
    problems = _by_problem(scales)
    signals = [_signal(panel) for panel in next(iter(problems.values()))]
    rows: list[list[object]] = [
        [name, *(f"{tables.text(p.ratio)} ({tables.interval(*p.median_interval())})" for p in row)]
        for name, row in problems.items()
    ]
    return ["problem", *(f"scale/nu = {signal:g}" for signal in signals)], rows


def _by_problem(scales: Sequence[Panel]) -> dict[str, list[Panel]]:
    """The panels of each problem, by ascending scale over noise level."""
    ordered = sorted(scales, key=_signal)
    names = dict.fromkeys(panel.name for panel in scales)
    return {name: [panel for panel in ordered if panel.name == name] for name in names}


def _signal(panel: Panel) -> float:
    """Scale of theta_0 - x* over noise level."""
    return _SCALE / panel.noise


def _verdict(panel: Panel, winner: str, ratio: float | None) -> Verdict:
    accepted = {winner} if ratio is None else {winner, _winner(ratio)}
    agrees, notes = bool(accepted & set(panel.possible)), []
    if panel.winner == "open":
        notes.append(f"the interval allows {' and '.join(panel.possible)}")
    if len(accepted) > 1:
        notes.append(f"the band's own {tables.text(ratio)} counts as a tie")
    if not agrees:
        notes.append(f"median {tables.text(panel.ratio)}: {' or '.join(panel.possible)}")
    if ratio is None or panel.noise == 0:
        notes.append("without noise only the winner counts")
    else:
        allowed = 10 if panel.spectrum == "ill-conditioned" and not panel.rotated else 3
        factor = max(panel.ratio / ratio, ratio / panel.ratio)
        if factor > allowed:
            agrees = False
            notes.append(f"{factor:.1f} times the band's magnitude, more than {allowed}")
        if not agrees:
            low, high = panel.interval()
            inside = "among our seeds" if low <= ratio <= high else "outside our seeds' range"
            notes.append(f"the band's one draw of Q is {inside}")
    return Verdict(panel, _words(winner, ratio), agrees, "; ".join(notes))


def _winner(ratio: float) -> str:
    if ratio < TIE[0]:
        return "SGD"
    return "SSD" if ratio > TIE[1] else "tie"


def _words(winner: str, ratio: float | None) -> str:
    if ratio is None or winner == "tie":
        return winner
    return f"{winner} {max(ratio, 1 / ratio):.4g}x"


def _picture(panels: Sequence[Panel]) -> Figure:
    seeds = len(panels[0].trajectories.seeds)
    figure = canvas.titled(
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
    for x, (name, color) in zip((0.885, 0.935), _COLORS.items(), strict=True):
        figure.text(x, 0.975, name, color=color, fontsize=11, fontweight="bold", va="center")
    return figure


def _spectrum(axes: Axes, panel: Panel, *, last: bool) -> None:
    wide = panel.spectrum == "ill-conditioned"
    bins = np.linspace(0, 60 if wide else 1.2, 25).tolist()
    axes.hist(panel.problem.eigenvalues, bins=bins, color="#8c95a0")
    axes.set_xlim(0, 61 if wide else 1.22)
    if wide:
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([0, 5, 10, 90], ["0", "5", "10", "90"])
        axes.minorticks_off()
    title = panel.name.replace(", ", "\n")
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xticks([0, 20, 40, 60] if wide else [0, 0.5, 1])
    axes.set_ylabel("count")
    canvas.tidy(axes, grid="")
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
    canvas.log_y(axes, 5)
    canvas.tidy(axes)
    side = panel.winner if panel.winner in ("tie", "open") else f"{panel.winner} nearer"
    color = _COLORS.get(panel.winner, MUTED)
    title = f"{canvas.number(panel.ratio)}  {side}"
    axes.set_title(title, loc="right", fontsize=8.5, pad=3, color=color)
    if last:
        axes.set_xlabel("step")


def _scale_picture(scales: Sequence[Panel]) -> Figure:
    figure = canvas.titled(
        6.6,
        4.3,
        "Figure 2's ratios against the scale of the start",
        r"Suboptimality of SGD over that of SSD after 100 steps, $\theta_0-x_*\sim U[-s,s]^{100}$, "
        "at noise ν: only s/ν matters.",
        "Median and middle 90 % of the seeds. Dotted: Figure 2's columns, s = 10. Grey: a tie.",
    )
    axes = figure.add_axes((0.09, 0.125, 0.61, 0.665))
    axes.axhspan(*TIE, color=GRID, linewidth=0)
    for noise in NOISE_LEVELS[:0:-1]:
        axes.axvline(_SCALE / noise, color=MUTED, linewidth=0.8, linestyle=":")
        at = 1.06 * _SCALE / noise
        axes.text(at, 1e5, f"ν = {noise:g}", color=MUTED, fontsize=8, va="center")
    turned, aligned = "#8a4b8f", MSVAG
    styles = ((turned, "-"), (aligned, "-"), (turned, DASHED), (aligned, DASHED))
    problems = _by_problem(scales)
    for (name, row), (color, line) in zip(problems.items(), styles, strict=True):
        x, y = [_signal(panel) for panel in row], [panel.ratio for panel in row]
        low, high = zip(*(panel.interval() for panel in row), strict=True)
        axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(x, y, "o", linestyle=line, color=color, markersize=3.5, clip_on=False)
        axes.annotate(
            name,
            (1, y[-1]),
            (7, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=color,
            fontsize=8,
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xlim(min(x), max(x))
    canvas.log_y(axes, 8)
    axes.set_ylim(3e-5, 2e5)
    canvas.labels(axes, [("SSD nearer", MUTED)], 0.02, 0.97)
    canvas.labels(axes, [("SGD nearer", MUTED)], 0.02, 0.06)
    axes.set_xlabel("scale of the start over noise level, $s/ν$")
    axes.set_ylabel("suboptimality, SGD / SSD")
    canvas.tidy(axes)
    return figure
