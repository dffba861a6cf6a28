"""Figure 4: what variance adaptation does to stochastic gradients, with the paper's numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from svag.theory.factors import Array, expected_distance, optimal_factor
from svag.theory.figures import canvas, tables
from svag.theory.figures.canvas import INK, MUTED, SGD, SVAG

GRADIENT: Final = np.array([2.0, 1.0])
STD: Final = np.array([1.0, 1.5])
_SAMPLES = 60


@dataclass(frozen=True)
class Example:
    """The numbers of Figure 4.

    Attributes:
        eta_sq: relative variances, (2,).
        factor: gamma of Eq. (15), (2,).
        mean: of the adapted gradient, (2,).
        std: of the adapted gradient, (2,).
        before: expected squared distance of a stochastic gradient to the true one.
        after: that of an adapted one.
    """

    eta_sq: Array
    factor: Array
    mean: Array
    std: Array
    before: float
    after: float


def example() -> Example:
    """Work out the example of Figure 4."""
    factor = optimal_factor(GRADIENT, STD**2)
    return Example(
        eta_sq=STD**2 / GRADIENT**2,
        factor=factor,
        mean=factor * GRADIENT,
        std=factor * STD,
        before=float(expected_distance(1.0, GRADIENT, STD**2).sum()),
        after=float(expected_distance(factor, GRADIENT, STD**2).sum()),
    )


@canvas.house_style()
def draw(directory: Path) -> list[Path]:
    """Draw ``figure4`` and write its numbers."""
    found = example()
    head = ["coordinate", "gradient", "sigma", "eta^2", "gamma", "adapted mean", "adapted sigma"]
    columns = np.array([GRADIENT, STD, found.eta_sq, found.factor, found.mean, found.std])
    rows = [[n, *column] for n, column in enumerate(columns.T.tolist(), 1)]
    files = canvas.save(_picture(found), directory, "figure4")
    return files + tables.write(directory, "figure4", head, rows)


def _picture(found: Example) -> Figure:
    figure = canvas.titled(
        7.4,
        4.15,
        "Figure 4: stochastic gradients before and after variance adaptation",
        "Dots: 60 draws around the true gradient (2, 1), σ = (1, 1.5); ellipses: one and two "
        "standard deviations.",
        f"Scaled by γ = ({found.factor[0]:.2f}, {found.factor[1]:.2f}), they are biased but "
        f"nearer: expected squared distance {found.before:.2f} before, {found.after:.2f} after.",
    )
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.755, bottom=0.115, wspace=0.08)
    draws = GRADIENT + STD * np.random.default_rng(3).standard_normal((_SAMPLES, 2))
    _cloud(left, draws, GRADIENT, STD, SGD)
    left.set_title(r"stochastic gradients $g$", loc="left", fontsize=9)
    _cloud(right, found.factor * draws, found.mean, found.std, SVAG)
    title = r"adapted $\gamma\odot g$, $\gamma_i=(1+\eta_i^2)^{-1}$"
    right.set_title(title, loc="left", fontsize=9)
    _arrow(right, found.mean, SVAG)
    right.annotate(
        r"$\mathrm{E}[\gamma\odot g]$",
        found.mean.tolist(),
        (2.2, -1.9),
        color=SVAG,
        arrowprops={"arrowstyle": "-", "color": SVAG, "linewidth": 0.7},
    )
    left.set_ylabel(r"$\theta_2$-coordinate")
    return figure


def _cloud(axes: Axes, draws: Array, mean: Array, std: Array, color: str) -> None:
    """Draws with their ellipses, and the true gradient."""
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.axvline(0, color=MUTED, linewidth=0.6)
    for width in (1, 2):
        size = (2 * width * std).tolist()
        ellipse = Ellipse(mean.tolist(), *size, facecolor=color, edgecolor="none", alpha=0.13)
        axes.add_patch(ellipse)
    axes.plot(*draws.T, ".", color=color, markersize=4, alpha=0.75, markeredgewidth=0)
    _arrow(axes, GRADIENT, INK)
    axes.annotate(r"$\nabla L$", GRADIENT.tolist(), (5, 3), textcoords="offset points", color=INK)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(-1.4, 5.0)
    axes.set_ylim(-3.0, 4.6)
    axes.set_xlabel(r"$\theta_1$-coordinate")
    canvas.tidy(axes, grid="")


def _arrow(axes: Axes, end: Array, color: str) -> None:
    look = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end.tolist(), (0, 0), arrowprops=look)
