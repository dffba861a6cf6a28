"""The page to explore Figure 2: a grid of problems, computed once and looked up by the reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from svag.theory.dynamics import follow, random_starts
from svag.theory.factors import Array
from svag.theory.figure2 import CONTENDERS, TIE, median_interval, suboptimality_ratios
from svag.theory.figures.canvas import SGD, SSD
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import SPECTRA, p_diag, random_rotation

SPREADS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the way from the well-conditioned spectrum to the ill-conditioned, on a log scale."""
ANGLES: Final = (0.0, 0.01, 0.05, 0.2, 1.0)
"""Powers of a Haar rotation that turn the eigenbasis away from the axes."""
NOISE: Final = (0.0, 0.1, 0.3, 1.0, 4.0)

_SEEDS = 8
_STEPS = 100
_SCALE = 10.0
_LEAST = 1e-300


@dataclass(frozen=True)
class Grid:
    """Everything the page shows, in logarithms to base 10 as whole hundredths.

    Attributes:
        steps: of the curves.
        eigenvalues: of each spread.
        p_diag: of each spread and angle.
        cells: for each spread, angle and noise level. ``SGD`` and ``SSD``: 5 %, 50 % and 95 %
            quantiles over seeds of the method's suboptimality, by step. ``at SGD`` and
            ``at SSD``: what the best next step from that method's iterates is expected to gain,
            as a share of the suboptimality, by SGD, by SSD, and by SSD according to Eq. (14);
            medians over seeds, by step. ``ratio``: the final SGD/SSD, as low end of the interval
            of the median (95 % or more), median and high end.
    """

    steps: list[int]
    eigenvalues: list[list[float]]
    p_diag: list[list[float]]
    cells: list[dict[str, Any]]


def compute(
    spreads: Sequence[float] = SPREADS,
    angles: Sequence[float] = ANGLES,
    noise_levels: Sequence[float] = NOISE,
    *,
    seeds: int = _SEEDS,
    steps: int = _STEPS,
    dimension: int = 100,
) -> Grid:
    """Run SGD and SSD with optimal local step sizes on every problem of the grid.

    Args:
        spreads: shares of the way between the two spectra, 0 to 1.
        angles: powers of the rotation, 0 to 1.
        noise_levels: nu.
        seeds: starts of each problem.
        steps: of each method; every fifth is kept.
        dimension: d.

    Returns:
        The grid: for each spread every angle, for each of these every noise level.
    """
    rng = np.random.default_rng(0)
    ends = [np.sort(draw(dimension, rng)) for draw in SPECTRA.values()]
    bases = _powers(random_rotation(dimension, rng), angles)
    starts = random_starts(range(seeds), dimension, _SCALE)
    record = list(range(0, steps + 1, 5))
    spectra = [ends[0] ** (1 - spread) * ends[1] ** spread for spread in spreads]
    matrices = [[_clean((basis * x) @ basis.T) for basis in bases] for x in spectra]
    problems = (
        StochasticQuadratic(matrix, np.zeros(dimension), noise)
        for row in matrices
        for matrix in row
        for noise in noise_levels
    )
    return Grid(
        steps=record,
        eigenvalues=[[float(f"{x:.4g}") for x in spectrum] for spectrum in spectra],
        p_diag=[[float(f"{p_diag(matrix):.4g}") for matrix in row] for row in matrices],
        cells=[_cell(problem, starts, record) for problem in problems],
    )


def write(directory: Path, grid: Grid | None = None) -> Path:
    """Write ``theory.html``, which needs neither network nor server."""
    grid = compute() if grid is None else grid
    environment = Environment(
        loader=PackageLoader("svag.theory.figures", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("theory.html.j2").render(
        grid=vars(grid),
        noise=NOISE,
        angles=ANGLES,
        spreads=SPREADS,
        tie=TIE,
        colors={"SGD": SGD, "SSD": SSD},
        seeds=_SEEDS,
        scale=_SCALE,
        plotly=Markup(get_plotlyjs()),
    )
    file = directory / "theory.html"
    file.write_text(text, encoding="utf-8")
    return file


def _powers(rotation: Array, powers: Sequence[float]) -> list[Array]:
    """Fractional powers of a rotation: the same planes, turned by shares of its angles."""
    values, vectors = np.linalg.eig(rotation)
    angles = np.angle(values)
    found = []
    for power in powers:
        turned = (vectors * np.exp(1j * power * angles)) @ np.linalg.inv(vectors)
        found.append(np.asarray(turned.real))
    return found


def _clean(matrix: Array) -> Array:
    """Remove round-off: asymmetry, and off-diagonal entries of a diagonal matrix."""
    symmetric = (matrix + matrix.T) / 2
    return np.where(np.abs(symmetric) > 1e-12 * np.abs(symmetric).max(), symmetric, 0.0)


def _cell(problem: StochasticQuadratic, starts: Array, record: list[int]) -> dict[str, Any]:
    # At the minimum a stochastic gradient is nothing but its noise.
    noise = problem.sample_gradients(np.zeros_like(starts), record[-1], np.random.default_rng(0))
    states = enumerate(follow(problem, CONTENDERS, starts, noise))
    paths = np.array([away.copy() for step, (away, _) in states if step in record])  # (R, K, S, d)
    cell: dict[str, Any] = {}
    final = []
    for k, name in enumerate(CONTENDERS):
        path = paths[:, k]
        away = np.asarray(problem.suboptimality(path))  # (R, S)
        cell[name] = [_hundredths(q) for q in np.quantile(away, (0.05, 0.5, 0.95), axis=1)]
        cell[f"at {name}"] = _gains(problem, path, away)
        final.append(away[-1])
    ratios = suboptimality_ratios(*final)
    low, high = np.clip(median_interval(ratios), _LEAST, 1 / _LEAST)
    cell["ratio"] = _hundredths(np.array([low, np.median(ratios), high]))
    return cell


def _gains(problem: StochasticQuadratic, path: Array, away: Array) -> list[list[int]]:
    gains = (
        problem.expected_improvement_sgd(path),
        problem.expected_improvement_ssd(path),
        problem.expected_improvement_ssd(path, exact=False),
    )
    return [_hundredths(np.median(gain / away, axis=1)) for gain in gains]


def _hundredths(values: Array) -> list[int]:
    return [round(100 * float(x)) for x in np.log10(np.maximum(values, _LEAST))]
