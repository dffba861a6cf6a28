"""How much of a rotated Q is on its diagonal: a correction of §2.1, drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from svag.theory.factors import Array
from svag.theory.figures import canvas, tables
from svag.theory.figures.canvas import ADAM, DASHED, INK, MSVAG
from svag.theory.spectra import (
    SPECTRA,
    Spectrum,
    p_diag,
    p_diag_bound,
    p_diag_mean,
    random_rotation,
)

DIMENSIONS: Final = (10, 20, 50, 100, 200, 400)
ROTATIONS: Final = 1_000
_LOOK: Final[dict[Spectrum, tuple[str, str]]] = {
    "well-conditioned": ("U[0.1, 1.1]", MSVAG),
    "ill-conditioned": ("90 % U[0, 1], 10 % U[30, 60]", ADAM),
}


@dataclass(frozen=True)
class DiagonalMass:
    """Means over Haar rotations, each with eigenvalues of its own.

    Attributes:
        spectrum: a key of :data:`~svag.theory.spectra.SPECTRA`.
        d: dimension.
        rotations: how many.
        exact: d times the mean of p_diag.
        bound: d times the mean of the paper's lower bound.
        exact_error: standard error of ``exact``.
        bound_error: standard error of ``bound``.
        closed_form: d times :func:`~svag.theory.p_diag_mean` of the distribution.
    """

    spectrum: Spectrum
    d: int
    rotations: int
    exact: float
    bound: float
    exact_error: float
    bound_error: float
    closed_form: float


def measure(
    dimensions: Sequence[int] = DIMENSIONS, rotations: int = ROTATIONS
) -> list[DiagonalMass]:
    """Average over rotations, for each spectrum and dimension."""
    return [_measured(spectrum, d, rotations) for spectrum in SPECTRA for d in dimensions]


@canvas.house_style()
def draw(directory: Path, found: Sequence[DiagonalMass] | None = None) -> list[Path]:
    """Draw ``p-diag`` and write its numbers."""
    found = measure() if found is None else found
    files = canvas.save(_picture(found), directory, "p-diag")
    return files + tables.write(directory, "p-diag", *table(found))


def table(found: Sequence[DiagonalMass]) -> tables.Table:
    """Return the table of the numbers."""
    head = ["spectrum", "d", "rotations", "d p_diag", "s.e.", "closed form", "d bound", "s.e."]
    rows: list[list[object]] = [
        [
            *(_LOOK[row.spectrum][0], row.d, row.rotations, row.exact, row.exact_error),
            *(row.closed_form, row.bound, row.bound_error),
        ]
        for row in found
    ]
    return head, rows


def _measured(spectrum: Spectrum, d: int, rotations: int) -> DiagonalMass:
    rng = np.random.default_rng([d, list(SPECTRA).index(spectrum)])
    values = np.empty((rotations, 2))
    for n in range(rotations):
        eigenvalues, rotation = SPECTRA[spectrum](d, rng), random_rotation(d, rng)
        exact = p_diag((rotation * eigenvalues) @ rotation.T)
        values[n] = d * exact, d * p_diag_bound(eigenvalues, rotation)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(rotations)
    closed_form = d * p_diag_mean(_distribution(spectrum), d)
    (exact, bound), (exact_error, bound_error) = mean.tolist(), error.tolist()
    return DiagonalMass(
        *(spectrum, d, rotations), *(exact, bound), *(exact_error, bound_error), closed_form
    )


@cache
def _distribution(spectrum: Spectrum) -> Array:
    """Eigenvalues enough to stand for their distribution."""
    return SPECTRA[spectrum](1_000_000, np.random.default_rng(0))


def _picture(found: Sequence[DiagonalMass]) -> Figure:
    figure = canvas.titled(
        6.8,
        4.3,
        "Diagonal mass of randomly rotated matrices",
        r"§2.1 says $p_{\mathrm{diag}} \approx 1.57/d$ on average. That holds for its lower bound "
        "(hollow marks);",
        r"$p_{\mathrm{diag}}$ itself (filled) falls like $d^{-1/2}$. Means over rotations; "
        "standard errors are smaller than the marks.",
    )
    axes = figure.add_axes((0.085, 0.125, 0.66, 0.665))
    axes.set_xscale("log")
    axes.set_yscale("log")
    d = np.unique(np.rint(np.geomspace(8, 500, 100)).astype(int))
    for spectrum, (name, color) in _LOOK.items():
        closed = np.array([n * p_diag_mean(_distribution(spectrum), int(n)) for n in d])
        axes.plot(d, closed, color=color, linewidth=1.4)
        rows = [row for row in found if row.spectrum == spectrum]
        x = [row.d for row in rows]
        axes.plot(x, [row.exact for row in rows], "o", color=color, markersize=5)
        marker, size = ("o", 5) if spectrum == "well-conditioned" else ("s", 8)
        bounds = [row.bound for row in rows]
        axes.plot(x, bounds, marker, color=color, markersize=size, markerfacecolor="none")
        label = f"{name},\nclosed form".replace(", 10", ",\n10")
        axes.text(530, closed[-1], label, color=color, va="center", fontsize=8)
    axes.axhline(np.pi / 2, color=INK, linestyle=DASHED, linewidth=1)
    bound = "π/2 = 1.57:\nthe bound, either spectrum"
    axes.text(530, np.pi / 2, bound, color=INK, va="center", fontsize=8)
    axes.set_xlim(8, 500)
    axes.set_ylim(1, 100)
    axes.set_xticks(DIMENSIONS, [str(n) for n in DIMENSIONS])
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlabel("dimension $d$")
    axes.set_ylabel(r"$d \cdot$ mean share of the diagonal")
    canvas.tidy(axes)
    return figure
