"""Figure 4: what variance adaptation does to stochastic gradients, with the paper's numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from svag.theory.factors import Array, expected_distance, optimal_factor
from svag.theory.figures import tables
from svag.theory.figures.canvas import INK, MUTED, SGD, SVAG, canvas, house_style, save, tidy

GRADIENT: Final = np.array([2.0, 1.0])
STD: Final = np.array([1.0, 1.5])
_SAMPLES = 60


@dataclass(frozen=True)
class Sketch:
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


def sketch() -> Sketch:
    """Work out the example of Figure 4."""
    factor = optimal_factor(GRADIENT, STD**2)
    return Sketch(
        eta_sq=STD**2 / GRADIENT**2,
        factor=factor,
        mean=factor * GRADIENT,
        std=factor * STD,
        before=float(expected_distance(1.0, GRADIENT, STD**2).sum()),
        after=float(expected_distance(factor, GRADIENT, STD**2).sum()),
    )


def draw(directory: Path) -> list[Path]:
    """Draw ``figure4`` and write its numbers."""
    found = sketch()
    head = ["coordinate", "gradient", "sigma", "eta^2", "gamma", "adapted mean", "adapted sigma"]
    columns = [GRADIENT, STD, found.eta_sq, found.factor, found.mean, found.std]
    rows = [[n + 1, *(float(column[n]) for column in columns)] for n in range(2)]
    with house_style():
        return _picture(directory, found) + tables.write(directory, "figure4", head, rows)


def _picture(directory: Path, found: Sketch) -> list[Path]:
    figure = canvas(
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
    _cloud(left, draws, GRADIENT, STD, SGD, "g")
    _cloud(right, found.factor * draws, found.mean, found.std, SVAG, r"\gamma\odot g")
    left.set_title(r"stochastic gradients $g$", loc="left", fontsize=9)
    right.set_title(
        r"adapted $\gamma\odot g$, $\gamma_i=(1+\eta_i^2)^{-1}$", loc="left", fontsize=9
    )
    for axes in (left, right):
        axes.set_xlabel(r"$\theta_1$-coordinate")
    left.set_ylabel(r"$\theta_2$-coordinate")
    return save(figure, directory, "figure4")


def _cloud(axes: Axes, draws: Array, mean: Array, std: Array, color: str, name: str) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.axvline(0, color=MUTED, linewidth=0.6)
    for width in (1, 2):
        axes.add_patch(
            Ellipse(
                (float(mean[0]), float(mean[1])),
                float(2 * width * std[0]),
                float(2 * width * std[1]),
                facecolor=color,
                edgecolor="none",
                alpha=0.13,
            )
        )
    axes.plot(*draws.T, ".", color=color, markersize=4, alpha=0.75, markeredgewidth=0)
    _arrow(axes, GRADIENT, INK)
    if not np.array_equal(mean, GRADIENT):
        _arrow(axes, mean, color)
        axes.annotate(
            rf"$\mathrm{{E}}[{name}]$",
            (float(mean[0]), float(mean[1])),
            (2.2, -1.9),
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7},
        )
    axes.annotate(
        r"$\nabla L$",
        (float(GRADIENT[0]), float(GRADIENT[1])),
        (5, 3),
        textcoords="offset points",
        color=INK,
    )
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(-1.4, 5.0)
    axes.set_ylim(-3.0, 4.6)
    tidy(axes, grid="")


def _arrow(axes: Axes, end: Array, color: str) -> None:
    axes.annotate(
        "",
        (float(end[0]), float(end[1])),
        (0, 0),
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
