"""Scales far from 1: the right limit or a clear error, and NaN never hidden."""

import numpy as np
import pytest
from scipy.special import erf

from svag import METHODS, Anatomy
from svag.errors import InvalidOption
from svag.theory import (
    FULL_BATCH,
    Contender,
    LeastSquares,
    StochasticQuadratic,
    Theorem1Constants,
    adam_relative_variance,
    adam_split,
    estimate_optimal_factor,
    expected_distance,
    expected_sign_form,
    full_batch_iterates,
    optimal_factor,
    simulate,
    success_probability,
    theorem1_bound,
    theorem1_constants,
)
from svag.theory.rules import AdaGrad, AnatomyRule, RMSProp

EXPONENTS = {  # value of a problem with 2^c Q and 2^k (theta, nu) over that of the problem
    "suboptimality": (1, 2),
    "loss": (1, 2),
    "expected_improvement_sgd": (1, 2),
    "expected_improvement_ssd": (1, 2),
    "optimal_step_size_sgd": (-1, 0),
    "optimal_step_size_ssd": (0, 1),
    "expected_sign_curvature": (1, 0),
    "gradient": (1, 1),
    "gradient_std": (1, 1),
    "expected_sign": (0, 0),
    "expected_sign_products": (0, 0),
}


def quadratic(c, k, diagonal):
    """A problem in d = 4 with Q and noise scaled by powers of 2, and a theta."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 6))
    matrix = np.diag(rng.uniform(1, 5, 4)) if diagonal else root @ root.T
    theta = np.ldexp(rng.normal(size=4), k)
    return StochasticQuadratic(np.ldexp(matrix, c), np.zeros(4), float(np.ldexp(0.7, k))), theta


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("c", [-1000, -664, 345, 900])  # 1e-301, 1e-200, 1e104, 1e271
@pytest.mark.parametrize("k", [-532, 0, 532])  # 1e160 either way
def test_quadratics_at_any_scale(c, k, diagonal):
    """Exact to rounding where the value is in the range of float64, else 0 or inf."""
    base, here = quadratic(0, 0, diagonal)
    scaled, there = quadratic(c, k, diagonal)
    for name, (by_q, by_theta) in EXPONENTS.items():
        shift = c * by_q + k * by_theta
        found, expected = getattr(scaled, name)(there), getattr(base, name)(here)
        if abs(shift) < 1_000:
            assert found == pytest.approx(np.ldexp(expected, shift), rel=1e-12), name
        elif abs(shift) > 1_100:
            assert np.all(np.abs(found) == (0 if shift < 0 else np.inf)), name
    if abs(2 * (c + k)) < 1_000:
        covariance = np.ldexp(base.gradient_covariance(), 2 * (c + k))
        assert scaled.gradient_covariance() == pytest.approx(covariance, rel=1e-12)
    assert not np.isnan(scaled.gradient_covariance()).any()


@pytest.mark.parametrize("c", [-664, 345])
@pytest.mark.parametrize("k", [-532, 0, 532])
def test_improvements_from_samples_at_any_scale(c, k):
    base, here = quadratic(0, 0, False)
    scaled, there = quadratic(c, k, False)
    z = -base.sample_gradients(here, 100, np.random.default_rng(0))
    expected = base.expected_improvement(here, z)
    for power in (-600, 0, 600):
        found = scaled.expected_improvement(there, np.ldexp(z, power))
        if abs(c + 2 * k) < 1_000:
            scale = c + 2 * k
            assert found.value == pytest.approx(np.ldexp(expected.value, scale), rel=1e-12)
            assert found.standard_error == pytest.approx(
                np.ldexp(expected.standard_error, scale), rel=1e-12
            )
        if abs(k - power) < 1_000:
            assert found.step_size == pytest.approx(
                np.ldexp(expected.step_size, k - power), rel=1e-12
            )


def test_a_spectrum_over_200_decades():
    problem = StochasticQuadratic(np.diag([1e-200, 1.0]), np.zeros(2), 1.0)
    assert problem.gradient_std() == pytest.approx([1e-200, 1.0], rel=1e-15, abs=0)
    assert problem.expected_sign([1.0, 1.0]) == pytest.approx([erf(0.5**0.5)] * 2)


def test_samples_beyond_the_range_are_refused():
    problem = StochasticQuadratic(1e200 * np.eye(2), np.zeros(2), 1e160)
    with pytest.raises(InvalidOption, match="leave the range of float64"):
        problem.sample_gradients(np.zeros(2), 3, np.random.default_rng(0))


def test_theta_and_directions_that_diverged_are_refused():
    problem = StochasticQuadratic(np.eye(2), np.zeros(2), 0.0)
    for name in EXPONENTS:
        for theta in ([np.nan, 1.0], [np.inf, 1.0]):
            with pytest.raises(InvalidOption, match="theta holds NaN or inf"):
                getattr(problem, name)(theta)
    with pytest.raises(InvalidOption, match="directions hold NaN"):
        problem.expected_improvement([1.0, 1.0], [[1.0, np.nan], [1.0, 1.0]])


@pytest.mark.parametrize("power", [-660, -532, 500])
@pytest.mark.parametrize("key", METHODS)
def test_rules_at_any_scale(key, power):
    """What keeps the magnitude scales with the gradient, what takes the sign does not change."""
    row, g = METHODS[key], np.random.default_rng(0).normal(0.5, 1, (30, 8))
    g[:, 0] = 0
    one, far = (AnatomyRule(row.anatomy, row.betas, eps=0.0) for _ in range(2))
    for gradient in g:
        expected = one(gradient)
        shift = 0 if row.anatomy.sign else power
        assert far(np.ldexp(gradient, power)) == pytest.approx(
            np.ldexp(expected, shift), rel=1e-9, abs=0
        )


@pytest.mark.parametrize("make", [AdaGrad, RMSProp])
@pytest.mark.parametrize("power", [-660, 530])
def test_adagrad_and_rmsprop_at_any_scale(make, power):
    g, one, far = np.random.default_rng(0).normal(size=(30, 8)), make(), make()
    for gradient in g:
        assert far(np.ldexp(gradient, power)) == pytest.approx(one(gradient), rel=1e-12)


@pytest.mark.parametrize("power", [-300, 200])
def test_runs_at_any_scale(power):
    """Idealised SVAG and M-SVAG 1e-90 and 1e60 times as far away."""
    base, _ = quadratic(0, 0, False)
    far, start = quadratic(0, power, False)
    contenders = {
        "ideal": Contender(Anatomy(factor="svag"), 0.05, idealised=True),
        "m-svag": Contender.of("m-svag", 0.05),
    }
    expected = simulate(base, contenders, 30, seeds=2, theta_0=np.ldexp(start, -power))
    found = simulate(far, contenders, 30, seeds=2, theta_0=start)
    for name, values in found.suboptimality.items():
        assert values == pytest.approx(np.ldexp(expected.suboptimality[name], 2 * power), rel=1e-9)


def test_m_svag_goes_on_where_squares_underflow():
    """Without noise, from a distance whose gradients square to 0."""
    problem = StochasticQuadratic(np.eye(2), np.zeros(2), 0.0)
    start = np.full(2, 1e-170)
    rule, theta = AnatomyRule(METHODS["m-svag"].anatomy, (0.9,)), start
    for _ in range(100):
        theta = theta - 0.5 * rule(problem.gradient(theta))
    assert 0 < np.abs(theta).max() < 1e-172


def test_relative_variances_of_adam():
    assert adam_relative_variance(1e160, 1e308) == pytest.approx(-1, abs=1e-11)
    assert adam_relative_variance(1e160, 0.0) == -1
    assert adam_relative_variance(1e-200, 3e-300) == pytest.approx(3e100)
    assert adam_relative_variance(1e-200, 1e308) == np.inf
    assert adam_relative_variance(5e-324, 0.0) == -1
    assert adam_relative_variance(2.0, np.inf) == np.inf
    m = np.array([0.3, -2.0, 7.0])
    for power in (-500, 0, 400):
        found = adam_relative_variance(np.ldexp(m, power), np.ldexp(5 * m**2, 2 * power))
        if power > -500:
            assert found == pytest.approx(4)


def test_distances_and_factors_of_large_numbers():
    assert expected_distance(1.0, 1e200, 4.0) == 4
    assert expected_distance(0.0, 2.0, np.inf) == 4
    assert expected_distance(0.5, 1e200, 1.0) == np.inf
    assert optimal_factor(1e160, 1e308) == pytest.approx(1, rel=1e-11)
    for scale in (1e-200, 1e200):
        samples = scale * np.array([1.0, 2.0, 3.0])
        found, base = (
            estimate_optimal_factor(samples, 2 * scale),
            estimate_optimal_factor([1.0, 2.0, 3.0], 2.0),
        )
        assert found.factor == pytest.approx(base.factor, rel=1e-14)
        assert found.factor_error == pytest.approx(base.factor_error, rel=1e-14)
    half = estimate_optimal_factor(1e-100 * np.array([1.0, 2.0, 3.0]), 2e-100)
    assert half.distance == pytest.approx(1e-200 * base.distance, rel=1e-12, abs=0)


@pytest.mark.parametrize("method", FULL_BATCH)
def test_least_squares_of_tiny_features(method):
    """Features of 1e-90: steps in proportion, and the same training errors."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 9)), rng.choice([-1.0, 1.0], 4)  # noqa: N806
    far, near = LeastSquares(2.0**-300 * X, y), LeastSquares(X, y)
    sign = method not in ("gd", "m-svag")
    lr = 1e-3 if sign else None
    for one, other in zip(
        full_batch_iterates(near, method, 30, lr=lr),
        full_batch_iterates(far, method, 30, lr=2.0**300 * lr if lr else None),
        strict=True,
    ):
        assert np.ldexp(other, -300) == pytest.approx(one, rel=1e-9)


def test_theorem_1_at_extremes():
    constants = theorem1_constants(StochasticQuadratic(1e-120 * np.eye(2), np.zeros(2), 1e160))
    assert constants.M_v == pytest.approx(2e80, rel=1e-12)
    far = Theorem1Constants(mu=1e160, L=2e160, c_v=0.0, M_v=1e-200)
    assert theorem1_bound(far, 1e150, 2) == pytest.approx([1e150, 5e149, 2.5e149])
    assert theorem1_bound(Theorem1Constants(1.0, 1.0, 0.0, 1.0), 1e-200, 1)[1] == 1e-200


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: success_probability(np.nan, 0.0), "mean has the value nan"),
        (lambda: success_probability(np.inf, np.inf), "both infinite"),
        (lambda: optimal_factor([1.0, np.nan], 0.0), "mean has the value nan"),
        (lambda: expected_distance(np.nan, 1.0, 1.0), "factor has the value nan"),
        (lambda: adam_relative_variance(np.nan, 1.0), "m has the value nan"),
        (lambda: adam_relative_variance(np.inf, np.inf), "m has the value inf.*finite"),
        (lambda: adam_split(np.nan, 0.0), "m has the value nan"),
        (lambda: theorem1_bound(Theorem1Constants(0.0, 1.0, 0.0, 1.0), 1.0, 1), "0 < mu <= L"),
        (lambda: theorem1_bound(Theorem1Constants(1.0, 2.0, 0.0, np.nan), 1.0, 1), "all finite"),
        (lambda: theorem1_bound(Theorem1Constants(1.0, 2.0, 0.0, 1.0), np.nan, 1), "start=nan"),
        (lambda: theorem1_bound(Theorem1Constants(1.0, 2.0, 0.0, 1.0), 1.0, -1), "steps=-1"),
        (lambda: RMSProp(1.0), r"beta=1\.0"),
        (lambda: expected_sign_form(np.eye(2), np.zeros(2), np.eye(2)), r"\(n, d\)"),
        (lambda: expected_sign_form(np.eye(2), np.zeros((1, 3)), np.eye(2)), "must be 2"),
        (lambda: expected_sign_form(np.eye(2), np.zeros((1, 2)), 2 * np.eye(2)), r"\[-1, 1\]"),
        (lambda: expected_sign_form(np.eye(1), np.full((1, 1), np.nan), np.eye(1)), "a number"),
    ],
)
def test_what_is_no_number_is_refused(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()
