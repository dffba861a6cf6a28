"""Theorem 1 on stochastic quadratics: rates, floors, constants and the bound they give."""

import numpy as np
import pytest
from measured import assert_within

from svag.errors import InvalidOption
from svag.theory.dynamics import simulate
from svag.theory.quadratic import StochasticQuadratic
from svag.theory.spectra import eigenvalues_uniform, random_rotation
from svag.theory.theorem1 import (
    Theorem1Constants,
    fitted_slope,
    local_slopes,
    theorem1_bound,
    theorem1_constants,
    theorem1_contenders,
)

NOISES = (0.1, 1.0, 4.0)
CASES = [(noise, False) for noise in NOISES] + [(0.1, True)]


def problem_of(noise, rotated):
    rng = np.random.default_rng(0)
    eigenvalues, rotation = eigenvalues_uniform(100, rng), random_rotation(100, rng)
    rotation = rotation if rotated else np.eye(100)
    Q = (rotation * eigenvalues) @ rotation.T  # noqa: N806
    return StochasticQuadratic(Q, rng.uniform(-10, 10, 100), noise)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"nu={case[0]} rotated={case[1]}")
def study(request):
    """Problem and trajectories, d = 100, t up to 1e4, 20 seeds."""
    problem = problem_of(*request.param)
    return problem, simulate(problem, theorem1_contenders(problem), 10_000, seeds=20)


def test_idealised_svag_falls_like_1_over_t(study):
    _, result = study
    slope = fitted_slope(result.t, result.mean("idealised SVAG"))
    assert_within("theory: Theorem 1, |slope + 1|", abs(slope + 1), 0.1)


def test_constant_step_sgd_is_flat_at_its_floor(study):
    problem, result = study
    assert abs(fitted_slope(result.t, result.mean("SGD"))) < 0.05
    lam, lr = problem.eigenvalues, 1 / problem.eigenvalues[-1]
    floor = problem.noise**2 * lr / 2 * np.sum(lam**2 / (2 - lr * lam))
    tail = result.mean("SGD")[result.t > 1_000]
    assert tail.mean() == pytest.approx(floor, rel=0.05)
    assert (result.mean("idealised SVAG")[-1] < floor / 50).all()


def test_decreasing_steps_converge_too(study):
    problem, result = study
    if problem.noise >= 1:  # at 0.1 the transient is not over
        assert fitted_slope(result.t, result.mean("SGD, 1/t")) == pytest.approx(-1, abs=0.1)
    assert result.mean("SGD, 1/t")[-1] < result.mean("SGD")[-1] / 50


def test_the_bound_holds(study):
    problem, result = study
    start = problem.suboptimality(np.zeros(100))
    bound = theorem1_bound(theorem1_constants(problem), start, 10_000)
    mean = result.mean("idealised SVAG")
    assert (mean <= bound[result.t] * (1 + 1e-12)).all()
    assert bound[-1] < 200 * mean[-1]  # about d: the proof sums over coordinates first


def test_the_bound_holds_where_the_slope_is_late():
    """Rotated, nu = 4: slope about -0.8 at t = 1e4, the directions being coupled; falling."""
    problem = problem_of(4.0, rotated=True)
    chosen = {"x": theorem1_contenders(problem)["idealised SVAG"]}
    result = simulate(problem, chosen, 10_000, seeds=5)
    start = problem.suboptimality(np.zeros(100))
    bound = theorem1_bound(theorem1_constants(problem), start, 10_000)
    assert (result.mean("x") <= bound[result.t] * (1 + 1e-12)).all()
    early = result.t <= 1_000
    before = fitted_slope(result.t[early], result.mean("x")[early])
    assert -1 < fitted_slope(result.t, result.mean("x")) < before - 0.05


@pytest.mark.parametrize("rotated", [True, False])
def test_constants_are_those_of_the_assumptions(rotated):
    problem = problem_of(2.0, rotated)
    constants = theorem1_constants(problem)
    thetas = np.random.default_rng(1).normal(size=(5, 100))
    samples = problem.sample_gradients(thetas, 4_000, np.random.default_rng(2))
    total = samples.var(axis=0, ddof=1).sum(axis=-1)
    assert total == pytest.approx(np.full(5, constants.M_v), rel=0.02)
    assert constants.c_v == 0
    assert constants.M_v == pytest.approx(np.sum(problem.gradient_std() ** 2), rel=1e-12)
    away, gradients = thetas - problem.x_star, problem.gradient(thetas)
    form = np.sum(away * gradients, axis=-1)
    size = np.sum(away**2, axis=-1)
    assert (constants.mu * size <= form).all()
    assert (form <= constants.L * size).all()


def test_the_bound_falls_like_its_asymptote():
    constants = Theorem1Constants(mu=0.5, L=2.0, c_v=0.3, M_v=4.0)
    bound = theorem1_bound(constants, 10.0, 20_000)
    assert (np.diff(bound) < 0).all()
    asymptote = constants.L * constants.M_v / (2 * constants.mu**2 * 20_000)
    assert bound[-1] == pytest.approx(asymptote, rel=0.01)


def test_the_bound_without_noise_is_that_of_gradient_descent():
    bound = theorem1_bound(Theorem1Constants(0.5, 2.0, 0.0, 0.0), 8.0, 3)
    assert bound == pytest.approx(8 * 0.75 ** np.arange(4))
    assert not theorem1_bound(Theorem1Constants(0.5, 2.0, 0.0, 0.0), 0.0, 3).any()


def test_slopes_of_powers():
    t = np.arange(1_001)
    value = np.append(np.inf, 5 * np.arange(1, 1_001) ** -1.5)
    assert fitted_slope(t, value) == pytest.approx(-1.5, abs=1e-12)
    assert fitted_slope(t, value, decades=2) == pytest.approx(-1.5, abs=1e-12)
    centres, slopes = local_slopes(t, value)
    assert slopes == pytest.approx(np.full(len(centres), -1.5), abs=1e-12)
    assert centres[0] >= 10**0.25
    assert centres[-1] <= 1_000 / 10**0.25


def test_local_slopes_follow_a_bend():
    t = np.geomspace(1, 1e6, 241)
    centres, slopes = local_slopes(t, 1 / (1 + t / 1e3))
    assert slopes[centres < 3] == pytest.approx(0, abs=0.01)
    assert slopes[centres > 3e5] == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    ("t", "value", "message"),
    [
        ([1, 2], [1.0, 2.0, 3.0], r"\(R,\)"),
        ([1, 10, 5], [1.0, 1.0, 1.0], "ascending"),
        ([0, 1], [1.0, 1.0], "two positive times"),
        ([1, 100], [1.0, 1.0], "record at least 2"),
        ([9, 10], [1.0, 0.0], "positive and finite"),
        ([9, 10], [np.inf, 1.0], "positive and finite"),
    ],
)
def test_bad_curves(t, value, message):
    with pytest.raises(InvalidOption, match=message):
        fitted_slope(t, value)
