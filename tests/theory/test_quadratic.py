"""Stochastic quadratics against Monte Carlo, closed forms, bounds and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy.special import erf

from svag.errors import InvalidOption
from svag.theory import (
    StochasticQuadratic,
    eigenvalues_structured,
    eigenvalues_uniform,
    p_diag,
    random_rotation,
)

SPECTRA = {"uniform": eigenvalues_uniform, "structured": eigenvalues_structured}
NOISE_LEVELS = (0.0, 0.1, 4.0)
NUMBERS = (
    "loss",
    "suboptimality",
    "expected_improvement_sgd",
    "optimal_step_size_sgd",
    "expected_improvement_ssd",
    "optimal_step_size_ssd",
    "expected_sign_curvature",
)
ARRAYS = ("gradient", "gradient_std", "expected_sign", "expected_sign_products")


def quadratic(d, noise, *, spectrum="structured", rotated=True, seed=0):
    """A problem of Figure 2, and a theta at distance U[-1, 1] from its minimum."""
    rng = np.random.default_rng(seed)
    eigenvalues = SPECTRA[spectrum](d, rng)
    rotation = random_rotation(d, rng) if rotated else np.eye(d)
    x_star = rng.uniform(-10, 10, d)
    problem = StochasticQuadratic((rotation * eigenvalues) @ rotation.T, x_star, noise)
    return problem, x_star + rng.uniform(-1, 1, d)


NOISY = st.floats(1e-3, 1e3)
ANY_NOISE = st.just(0.0) | NOISY


@st.composite
def problems(draw, noises=NOISY, *, diagonal=False):
    """Problems of few dimensions, among them ones with strongly correlated gradients."""
    d = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = 10.0 ** draw(st.integers(-6, 0))
    if diagonal:
        q = np.diag(rng.uniform(spread, 1, d))
    else:
        root = rng.normal(size=(d, draw(st.integers(1, 8))))
        q = root @ root.T + spread * np.eye(d)
    theta = rng.normal(size=d) * 10.0 ** draw(st.integers(-3, 3))
    return StochasticQuadratic(q, np.zeros(d), draw(noises)), theta


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("noise", NOISE_LEVELS)
def test_expected_improvements_against_monte_carlo(spectrum, rotated, noise):
    problem, theta = quadratic(20, noise, spectrum=spectrum, rotated=rotated)
    z = problem.sample_gradients(theta, 1_000_000, np.random.default_rng(7))
    np.negative(z, out=z)
    sgd = problem.expected_improvement(theta, z)
    ssd = problem.expected_improvement(theta, np.sign(z, out=z))
    pairs = (
        (sgd, problem.expected_improvement_sgd(theta), problem.optimal_step_size_sgd(theta)),
        (ssd, problem.expected_improvement_ssd(theta), problem.optimal_step_size_ssd(theta)),
    )
    for found, value, step_size in pairs:
        if noise == 0:
            assert found.value == pytest.approx(value, rel=1e-9)
            assert found.step_size == pytest.approx(step_size, rel=1e-9)
        else:
            distance = abs(found.value - value) / found.standard_error
            assert_within("expected improvement in Monte Carlo errors", distance, 3)
            assert found.step_size == pytest.approx(step_size, rel=0.02)


def test_monte_carlo_error_is_the_spread_over_replications():
    problem, theta = quadratic(5, 4.0)
    rng = np.random.default_rng(3)
    found = [
        problem.expected_improvement(theta, -problem.sample_gradients(theta, 2_000, rng))
        for _ in range(400)
    ]
    values, errors = np.array([(f.value, f.standard_error) for f in found]).T
    assert values.std() == pytest.approx(errors.mean(), rel=0.15)


def test_a_direction_of_ascent_has_a_negative_step_size_and_the_same_improvement():
    problem, theta = quadratic(5, 0.1)
    z = problem.sample_gradients(theta, 1_000, np.random.default_rng(3))
    up, down = (problem.expected_improvement(theta, s * z) for s in (1, -1))
    assert up.value == down.value
    assert up.step_size == -down.step_size < 0


@given(problems(ANY_NOISE))
def test_the_exact_improvement_is_at_least_the_bound(case):
    problem, theta = case
    exact = problem.expected_improvement_ssd(theta)
    bound = problem.expected_improvement_ssd(theta, exact=False)
    assert exact >= bound * (1 - 1e-12)


@given(problems(diagonal=True))
def test_the_bound_is_exact_for_diagonal_q_with_noise(case):
    problem, theta = case
    exact = problem.expected_improvement_ssd(theta)
    assert exact == pytest.approx(problem.expected_improvement_ssd(theta, exact=False), rel=1e-13)
    slope = np.sum(problem.gradient(theta) * problem.expected_sign(theta))
    assert exact == pytest.approx(slope**2 / (2 * problem.eigenvalues.sum()), rel=1e-13)


@given(problems())
def test_the_bound_is_equation_14(case):
    problem, theta = case
    gradient = problem.gradient(theta)
    two_rho_minus_1 = erf(np.abs(gradient) / np.sqrt(2) / problem.gradient_std())
    share = p_diag(problem.Q) / problem.eigenvalues.sum()
    bound = 0.5 * np.sum(two_rho_minus_1 * np.abs(gradient)) ** 2 * share
    assert problem.expected_improvement_ssd(theta, exact=False) == pytest.approx(bound, rel=1e-9)


@given(problems(ANY_NOISE))
def test_sgd_is_equation_13(case):
    problem, theta = case
    g = problem.gradient(theta)
    noise = problem.noise**2 * np.sum(problem.eigenvalues**3)
    improvement = 0.5 * (g @ g) ** 2 / (g @ problem.Q @ g + noise)
    assert problem.expected_improvement_sgd(theta) == pytest.approx(improvement, rel=1e-9)


@given(problems())
def test_the_two_ways_to_the_sign_curvature_agree(case):
    problem, theta = case
    products = problem.expected_sign_products(theta)
    assert np.array_equal(products, products.T)
    error = abs(problem.expected_sign_curvature(theta) - np.sum(problem.Q * products))
    assert_within("E[s^T Q s], expansion against Owen's T", error / np.abs(problem.Q).sum(), 1e-14)
    mean = problem.expected_sign(theta)
    assert np.linalg.eigvalsh(products - np.outer(mean, mean))[0] > -1e-13


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("noise", [0.1, 1.0, 4.0])
def test_the_two_ways_agree_at_the_size_of_figure_2(spectrum, noise):
    problem, theta = quadratic(100, noise, spectrum=spectrum)
    slow = np.sum(problem.Q * problem.expected_sign_products(theta))
    error = abs(problem.expected_sign_curvature(theta) / slow - 1)
    assert_within("E[s^T Q s], expansion against Owen's T", error, 1e-14)


@pytest.mark.parametrize("noise", NOISE_LEVELS)
@pytest.mark.parametrize("name", [*NUMBERS, *ARRAYS])
def test_a_stack_is_its_thetas_one_by_one(name, noise):
    problem, theta = quadratic(6, noise)
    stack = problem.x_star + (theta - problem.x_star) * np.array([0, 1e-3, 1, 30.0]).reshape(
        2, 2, 1
    )
    compute = getattr(problem, name)
    together = compute(stack)
    for index in np.ndindex(2, 2):
        alone = compute(stack[index])
        assert isinstance(alone, float if name in NUMBERS else np.ndarray)
        assert together[index] == pytest.approx(alone, rel=1e-12)
    assert len(compute(stack[:0])) == 0


def test_loss_is_the_average_over_the_data():
    problem, theta = quadratic(4, 0.5)
    x = np.random.default_rng(0).normal(problem.x_star, 0.5, size=(200_000, 4))
    losses = 0.5 * np.einsum("ni,ij,nj->n", theta - x, problem.Q, theta - x)
    error = losses.std() / np.sqrt(len(x))
    assert abs(problem.loss(theta) - losses.mean()) < 4 * error
    minimum = problem.loss(problem.x_star)
    assert minimum == pytest.approx(0.5**2 / 2 * np.trace(problem.Q))
    assert problem.suboptimality(theta) == pytest.approx(problem.loss(theta) - minimum)


def test_the_gradient_is_the_slope_of_the_loss():
    problem, theta = quadratic(4, 0.5)
    steps = 1e-3 * np.eye(4)
    slope = (problem.suboptimality(theta + steps) - problem.suboptimality(theta - steps)) / 2e-3
    assert problem.gradient(theta) == pytest.approx(slope, rel=1e-8)


def test_sampled_gradients_have_the_covariance_nu_squared_q_squared():
    problem, theta = quadratic(4, 2.0)
    g = problem.sample_gradients(theta, 200_000, np.random.default_rng(0))
    covariance = problem.gradient_covariance()
    assert covariance == pytest.approx(4 * problem.Q @ problem.Q)
    assert np.diagonal(covariance) == pytest.approx(problem.gradient_std(theta) ** 2)
    deviation = np.abs(g.mean(axis=0) - problem.gradient(theta))
    assert np.all(deviation < 4 * problem.gradient_std() / np.sqrt(len(g)))
    assert np.cov(g.T) == pytest.approx(covariance, abs=0.02 * covariance.max())
    signs = np.sign(g).T @ np.sign(g) / len(g)
    assert problem.expected_sign_products(theta) == pytest.approx(signs, abs=0.01)
    assert problem.sample_gradients(np.zeros((3, 4)), 2, np.random.default_rng(0)).shape == (
        2,
        3,
        4,
    )


def test_one_dimension():
    problem = StochasticQuadratic([[2.0]], [1.0], 0.5)
    gradient, std = 2 * 3.0, 0.5 * 2
    assert problem.dimension == 1
    assert problem.loss([4.0]) == 0.5 * 2 * 9 + 0.25
    assert problem.gradient([4.0]) == [gradient]
    assert problem.gradient_std() == [std]
    sgd = 0.5 * gradient**4 / (2 * gradient**2 + 0.25 * 8)
    assert problem.expected_improvement_sgd([4.0]) == pytest.approx(sgd, rel=1e-14)
    ssd = 0.5 * (gradient * erf(gradient / std / np.sqrt(2))) ** 2 / 2
    for exact in (True, False):
        value = problem.expected_improvement_ssd([4.0], exact=exact)
        assert value == pytest.approx(ssd, rel=1e-14)
    assert np.array_equal(problem.expected_sign_products([4.0]), [[1.0]])


@pytest.mark.parametrize("noise", NOISE_LEVELS)
@pytest.mark.parametrize("d", [1, 5])
def test_without_a_gradient_nothing_is_gained_and_nothing_moves(noise, d):
    problem, _ = quadratic(d, noise)
    for exact in (True, False):
        assert problem.expected_improvement_ssd(problem.x_star, exact=exact) == 0
        assert problem.optimal_step_size_ssd(problem.x_star, exact=exact) == 0
    assert problem.expected_improvement_sgd(problem.x_star) == 0
    assert problem.optimal_step_size_sgd(problem.x_star) == 0
    assert np.array_equal(problem.expected_sign(problem.x_star), np.zeros(d))
    if noise == 0:
        g = problem.sample_gradients(problem.x_star, 3, np.random.default_rng(0))
        assert np.array_equal(g, np.zeros((3, d)))
        assert problem.expected_improvement(problem.x_star, -g) == (0, 0, 0)


def test_without_noise_a_coordinate_without_gradient_does_not_move():
    problem = StochasticQuadratic(np.diag([1.0, 2.0]), [0.0, 0.0], 0.0)
    assert np.array_equal(problem.expected_sign([3.0, 0.0]), [1, 0])
    assert problem.optimal_step_size_ssd([3.0, 0.0]) == 3.0
    assert problem.expected_improvement_ssd([3.0, 0.0]) == 4.5
    assert problem.expected_improvement_ssd([3.0, 0.0], exact=False) == 1.5


def test_small_noise_tends_to_none():
    quiet, theta = quadratic(10, 1e-9)
    silent, _ = quadratic(10, 0.0)
    for name in NUMBERS:
        assert getattr(quiet, name)(theta) == pytest.approx(getattr(silent, name)(theta), rel=1e-9)


def test_small_gradients_do_not_underflow():
    problem, theta = quadratic(5, 0.0)
    centred = StochasticQuadratic(problem.Q, np.zeros(5), 0.0)
    away = theta - problem.x_star
    for name in ("optimal_step_size_sgd", "expected_sign_curvature"):
        value = getattr(centred, name)(away)
        assert getattr(centred, name)(1e-300 * away) == pytest.approx(value, rel=1e-9)
    noisy = StochasticQuadratic(problem.Q, np.zeros(5), 1.0)
    assert noisy.optimal_step_size_sgd(1e-300 * away) == 0
    assert noisy.optimal_step_size_ssd(1e-300 * away) == 0


def test_problems_cannot_be_changed():
    q = np.eye(2)
    problem = StochasticQuadratic(q, np.zeros(2), 1)
    q[0, 0] = 5.0
    assert problem.Q[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        problem.Q[0, 0] = 2.0
    with pytest.raises(AttributeError):
        problem.noise = 2.0


def test_rounding_in_q_is_forgiven():
    rng = np.random.default_rng(0)
    rotation, eigenvalues = random_rotation(50, rng), eigenvalues_structured(50, rng)
    problem = StochasticQuadratic((rotation * eigenvalues) @ rotation.T, np.zeros(50), 1.0)
    assert np.array_equal(problem.Q, problem.Q.T)
    assert problem.eigenvalues == pytest.approx(np.sort(eigenvalues), rel=1e-9)
    assert StochasticQuadratic(np.diag([1e-20, 1.0]), np.zeros(2), 1.0).eigenvalues[0] == 1e-20


ONES = np.ones((2, 2))
GOOD = (np.eye(2), np.zeros(2), 1.0)


@pytest.mark.parametrize(
    ("q", "x_star", "noise", "quoted"),
    [
        ([[1.0, 0.5], [0.0, 1.0]], [0, 0], 1.0, r"transpose by 0\.5.*\(Q \+ Q\.T\) / 2"),
        ([[1.0, 2.0], [2.0, 1.0]], [0, 0], 1.0, "eigenvalue -1.*positive definite.*identity"),
        (ONES, [0, 0], 1.0, "eigenvalue.*positive definite"),
        (np.zeros((2, 2)), [0, 0], 1.0, "eigenvalue 0.*positive definite"),
        (np.ones((2, 3)), [0, 0], 1.0, r"\(2, 3\).*\(d, d\)"),
        (np.ones(2), [0, 0], 1.0, r"\(2,\).*\(d, d\)"),
        (np.ones((0, 0)), [], 1.0, r"\(0, 0\).*d >= 1"),
        ([[np.nan]], [0], 1.0, "finite"),
        (np.eye(2), [0, 0, 0], 1.0, r"x_star of shape \(3,\).*\(2,\)"),
        (np.eye(2), [0, np.inf], 1.0, "finite"),
        (np.eye(2), [0, 0], -0.1, r"noise=-0\.1.*>= 0"),
        (np.eye(2), [0, 0], np.nan, "noise=nan.*>= 0"),
        (np.eye(2), [0, 0], np.inf, "noise=inf.*finite"),
    ],
)
def test_problems_that_are_none(q, x_star, noise, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        StochasticQuadratic(q, x_star, noise)


def test_thetas_and_directions_that_do_not_fit():
    problem = StochasticQuadratic(*GOOD)
    for theta in (1.0, [1.0], np.zeros((2, 3))):
        for name in (*NUMBERS, *ARRAYS):
            with pytest.raises(InvalidOption, match=r"theta has shape.*\(2,\).*\(\.\.\., 2\)"):
                getattr(problem, name)(theta)
    for directions in (np.zeros(2), np.zeros((1, 2)), np.zeros((5, 3))):
        with pytest.raises(InvalidOption, match=r"at least two samples, \(n, 2\)"):
            problem.expected_improvement(np.ones(2), directions)
    with pytest.raises(InvalidOption, match="one theta"):
        problem.expected_improvement(np.ones((2, 2)), np.ones((5, 2)))
