"""Measures statements of the paper with and without a condition that the paper leaves out.

Each function returns the numbers and tables of one section of ``docs/theory.md``.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from svag.anatomy import METHODS
from svag.theory.averages import mean_and_variance, rho
from svag.theory.drift import (
    epoch_covariance,
    expected_variance_estimate,
    linear_drift_bias,
    stationary_overestimate,
    variance_of_average,
)
from svag.theory.factors import gamma_erf, gamma_sqrt
from svag.theory.figures import tables
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.rules import AnatomyRule
from svag.theory.separable import LeastSquares, angle, iterates
from svag.theory.sign_factors import (
    gamma_laplace,
    gamma_logistic,
    gamma_student,
    gamma_uniform,
    gamma_unimodal_floor,
)
from svag.theory.spectra import rotated_and_aligned
from svag.theory.wilson import wilson_data

Section = dict[str, Any]

_BETA: Final = 0.9
_N: Final = 50
_PROBLEMS: Final = 1_000
_RUNS: Final = 5_000


def drawn_problem(
    rotated: bool, noise: float, rng: np.random.Generator, d: int = 20
) -> StochasticQuadratic:
    """Draw a well-conditioned problem with its minimum at 0.

    Args:
        rotated: whether its eigenbasis is rotated at random.
        noise: nu.
        rng: draws eigenvalues and rotation, whether rotated or not.
        d: dimension.
    """
    matrix = rotated_and_aligned("well-conditioned", d, rng)[rotated]
    return StochasticQuadratic(matrix, np.zeros(d), noise)


def interaction() -> Section:
    """Whether noise and eigenvalues interact in I_SSD: axis-aligned, and rotated."""
    rows: list[list[object]] = []
    levels = (0.1, 1.0, 4.0)
    for rotated in (True, False):
        found = [_interaction(rotated, noise) for noise in levels]
        curvatures, changes = zip(*found, strict=True)
        basis = "rotated" if rotated else "axis-aligned"
        rows.append([basis, *(f"{x:.3f}" for x in (*curvatures, *changes))])
    head = ["basis", *(f"E[sᵀQs]/tr Q, nu = {x:g}" for x in levels)]
    head += [f"change, nu = {x:g}" for x in levels]
    return {"table": tables.markdown(head, rows)}


def _interaction(rotated: bool, noise: float) -> tuple[float, float]:
    """E[s^T Q s]/tr Q, and the largest change of an E[s_i] when Q becomes Q^2."""
    rng = np.random.default_rng(0)
    problem = drawn_problem(rotated, noise, rng)
    squared = StochasticQuadratic(problem.Q @ problem.Q, problem.x_star, noise)
    theta = rng.uniform(-1, 1, problem.dimension)
    change = squared.expected_sign(theta) - problem.expected_sign(theta)
    curvature = float(problem.expected_sign_curvature(theta) / np.trace(problem.Q))
    return curvature, float(np.abs(change).max())


def noises() -> Section:
    """Adam's factor over the best one, for the sign, under five kinds of noise."""
    best: dict[str, Callable[[Any], Any]] = {
        "Gaussian": gamma_erf,
        "Laplace": gamma_laplace,
        "Student's t, 5 degrees of freedom": lambda eta: gamma_student(eta, 5),
        "logistic": gamma_logistic,
        "uniform": gamma_uniform,
        "least of any symmetric noise with one mode": gamma_unimodal_floor,
    }
    etas = [0.25, 0.5, 1.0, 2.0, 4.0, 1e6]
    rows = [
        [name, *(f"{x:.2f}" for x in gamma_sqrt(etas) / factor(etas))]
        for name, factor in best.items()
    ]
    head = ["noise", *(f"η = {eta:g}" for eta in etas[:-1]), "η → ∞"]
    g, p = np.array([200.0, -1.0]), np.array([0.01, 0.99])
    return {
        "table": tables.markdown(head, rows),
        "mean": f"{p @ g:.2f}",
        "factor": f"{np.sign(p @ g) * (p @ np.sign(g)):.2f}",
    }


def drift() -> Section:
    """Both estimates of the variance where gradients drift, or depend on one another."""
    return {
        "table": tables.markdown(*_drifting()),
        "epochs": tables.markdown(*_epochs()),
        "runs": f"{_RUNS:,}",
        "per_square": f"{linear_drift_bias(1.0, _BETA):g}",
        "sgd": f"{stationary_overestimate(0.1, _BETA):.2f}",
        "msgd": f"{stationary_overestimate(0.1, _BETA, 'm-sgd'):.3f}",
    }


def _drifting(steps: int = 300) -> tables.Table:
    """E[s] along means that move by a constant a step, in closed form and measured."""
    rng = np.random.default_rng(0)
    rows: list[list[object]] = []
    for slope in (0.0, 0.03, 0.1, 0.3):
        path = slope * np.arange(steps)
        _, variance = mean_and_variance(path[:, None] + rng.standard_normal((steps, _RUNS)), _BETA)
        estimates = variance[-1] / (1 - rho(_BETA, steps - 1))
        error = estimates.std(ddof=1) / np.sqrt(_RUNS)
        exact = expected_variance_estimate(path, 1.0, _BETA)
        rows.append([f"{slope:g}", f"{exact:.3f}", f"{estimates.mean():.3f} ± {error:.3f}"])
    return ["drift a step, in σ", "E[s] in σ²", "measured"], rows


def _epochs() -> tables.Table:
    """How many times too large r_t is where epochs are drawn without replacement."""
    rows: list[list[object]] = []
    for batches in (5, 10, 20, 50, 100):
        steps = batches * -(-300 // batches)
        ratios = [
            rho(_BETA, t - 1) / variance_of_average(epoch_covariance(batches, t), _BETA)
            for t in range(steps + 1, steps + batches + 1)
        ]
        mean = 1 / np.mean(1 / np.array(ratios))
        rows.append([batches, f"{mean:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
    return ["mini-batches an epoch", "r/var[m]", "from step to step of an epoch"], rows


def margins() -> Section:
    """The limits of gradient descent and M-SVAG, compared with the max-margin solution."""
    rng = np.random.default_rng(0)
    angles = []
    for _ in range(_PROBLEMS):
        y = rng.choice([-1.0, 1.0], 10)
        drawn = LeastSquares(rng.standard_normal((10, 20)), y)
        angles.append(angle(drawn.least_norm(), drawn.max_margin()))
    small = LeastSquares(np.array([[1.0, 0.0], [3.0, 1.0]]), np.ones(2))
    problem = wilson_data(_N)
    ends = []
    for row in (METHODS["m-sgd"], METHODS["m-svag"]):
        rule = AnatomyRule(row.anatomy, row.betas)
        *_, end = iterates(problem, rule, 2_000, lr=1 / problem.smoothness())
        ends.append(angle(end, problem.max_margin()))
    return {
        "problems": f"{_PROBLEMS:,}",
        "small": f"{angle(small.least_norm(), small.max_margin()):.0f}",
        "median": f"{np.median(angles):.1f}",
        "same": f"{100 * np.mean(np.array(angles) < 1e-5):.0f}",
        "n": _N,
        "averaged": f"{ends[0]:.1f}",
        "adapted": f"{ends[1]:.1f}",
    }
