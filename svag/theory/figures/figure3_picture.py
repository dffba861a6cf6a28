"""Figure 3: variance adaptation factors against the relative standard deviation."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from svag.theory.factors import Array, gamma_erf, gamma_sqrt, gamma_svag, largest_gap
from svag.theory.figures import canvas, tables
from svag.theory.figures.canvas import ADAM, DASHED, INK, SSD, SVAG

_ETA_MAX = 5.0


@canvas.house_style()
def draw(directory: Path) -> list[Path]:
    """Draw ``figure3`` and write its curves."""
    eta = np.linspace(0, _ETA_MAX, 501)
    curves = [gamma_erf(eta), gamma_sqrt(eta), gamma_svag(eta)]
    head = ["eta", "erf(1/(sqrt(2) eta))", "(1 + eta^2)^(-1/2)", "1/(1 + eta^2)"]
    rows = np.column_stack([eta, *curves])[::25].tolist()
    files = canvas.save(_picture(eta, curves), directory, "figure3")
    return files + tables.write(directory, "figure3", head, rows)


def _picture(eta: Array, curves: list[Array]) -> Figure:
    gap = largest_gap()
    figure = canvas.titled(
        6.2,
        4.0,
        "Figure 3: variance adaptation factors",
        "Adam's factor is close to the best one for the sign of a Gaussian gradient. The factor",
        "that is best for the gradient itself is smaller.",
    )
    axes = figure.add_axes((0.085, 0.135, 0.885, 0.645))
    styles = [(SSD, "-"), (ADAM, DASHED), (SVAG, "-")]
    for curve, (color, line) in zip(curves, styles, strict=True):
        axes.plot(eta, curve, color=color, linestyle=line, linewidth=1.9)
    axes.text(1.02, 0.775, r"$(1+\eta^2)^{-1/2}$  Adam", color=ADAM)
    axes.annotate(
        r"$\mathrm{erf}[(\sqrt{2}\,\eta)^{-1}]$  best for sign($g$)",
        (0.62, float(gamma_erf(0.62))),
        (1.02, 0.925),
        color=SSD,
        va="center",
        arrowprops={"arrowstyle": "-", "color": SSD, "linewidth": 0.7},
    )
    axes.text(1.05, 0.19, r"$(1+\eta^2)^{-1}$" + "\nbest for $g$", color=SVAG, va="center")
    ends = [float(gamma_erf(gap.eta)), float(gamma_sqrt(gap.eta))]
    axes.plot([gap.eta] * 2, ends, color=INK, linewidth=1.1)
    label = f"largest gap {gap.size:.4f}\nat η = {gap.eta:.4f}"
    axes.text(gap.eta + 0.02, 0.545, label, color=INK, fontsize=8, va="center")
    axes.set_xlim(0, _ETA_MAX)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(r"relative standard deviation $\eta = \sigma/|\nabla L|$")
    axes.set_ylabel(r"factor $\gamma$")
    canvas.tidy(axes)
    return figure
