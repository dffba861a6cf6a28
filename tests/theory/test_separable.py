"""Binary least squares: its quantities, full-batch methods, and the max-margin solution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import run
from scipy.optimize import minimize

from svag import METHODS
from svag.errors import InvalidOption
from svag.theory.separable import (
    FULL_BATCH,
    LeastSquares,
    angle,
    full_batch_iterates,
    proportionality_error,
)


def problem(n=8, d=20, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(n, d)), rng.choice([-1.0, 1.0], n))


def test_gradient_is_that_of_the_risk():
    here, theta = problem(), np.random.default_rng(1).normal(size=20)
    step = 1e-5 * np.eye(20)
    numerical = [(here.risk(theta + h) - here.risk(theta - h)) / 2e-5 for h in step]
    assert here.gradient(theta) == pytest.approx(numerical, rel=1e-6, abs=1e-8)
    assert here.risk(theta) == pytest.approx(np.sum(here.residual(theta) ** 2) / 16)


def test_smoothness_is_the_largest_curvature():
    here = problem()
    assert here.smoothness() == pytest.approx(np.linalg.eigvalsh(here.X.T @ here.X / 8)[-1])


def test_gradient_descent_is_stable_below_2_over_smoothness():
    here = problem()
    *_, below = full_batch_iterates(here, "gd", 500, lr=1.9 / here.smoothness())
    *_, above = full_batch_iterates(here, "gd", 20_000, lr=2.2 / here.smoothness())
    assert here.risk(below) < here.risk(np.zeros(20))
    assert not np.isfinite(above).all()
    assert np.isnan(proportionality_error(above, here.sign_direction()))


def test_a_score_of_0_is_an_error():
    here = LeastSquares(np.eye(4), np.array([1.0, 1.0, -1.0, -1.0]))
    assert here.train_error(np.array([1.0, 0.0, -1.0, 1.0])) == 0.5


@pytest.mark.parametrize("method", ["adam", "m-svag"])
def test_rows_of_the_table_follow_the_oracle(method):
    here, row, theta = problem(), METHODS[method], np.zeros(20)
    options = {"betas": row.betas, "eps": 0.0} if method == "adam" else {"beta": row.betas[0]}
    gradients = (here.gradient(theta) for _ in range(100))  # where theta then stands
    found = full_batch_iterates(here, method, 100, lr=0.01)
    for step in run(row.anatomy, gradients, theta, lr=0.01, **options):
        theta = step.theta
        assert next(found) == pytest.approx(theta, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["sign-descent", "adam", "adagrad"])
def test_the_first_step_of_sign_methods_is_a_sign(method):
    here = problem()
    first = next(full_batch_iterates(here, method, 1, lr=0.3))
    assert first == pytest.approx(0.3 * here.sign_direction(), rel=1e-12)


@pytest.mark.parametrize("method", ["gd", "m-svag"])
def test_the_first_step_of_the_others_is_a_gradient(method):
    here = problem()
    first = next(full_batch_iterates(here, method, 1, lr=0.3))
    assert first == pytest.approx(-0.3 * here.gradient(np.zeros(20)), rel=1e-12)


@pytest.mark.parametrize("method", FULL_BATCH)
def test_default_step_sizes_train(method):
    here = problem()
    *_, last = full_batch_iterates(here, method, 2_000)
    assert here.train_error(last) == 0
    assert here.risk(last) < 0.01


@pytest.mark.parametrize("method", FULL_BATCH)
def test_nothing_moves_without_a_gradient(method):
    empty = LeastSquares(np.zeros((2, 3)), np.array([1.0, -1.0]))
    assert not np.any(list(full_batch_iterates(empty, method, 3, lr=0.1)))


@pytest.mark.parametrize("method", ["sign-descent", "adam", "adagrad", "rmsprop"])
def test_without_the_premise_the_line_is_left(method):
    here = problem()
    assert here.lemma2_constant() is None
    *_, last = full_batch_iterates(here, method, 200)
    assert proportionality_error(last, here.sign_direction()) > 1e-3


def test_max_margin_equals_a_numerical_minimiser():
    here = problem()
    found = here.max_margin()
    rows = here.y[:, None] * here.X
    expected = minimize(
        lambda w: w @ w / 2,
        np.linalg.pinv(rows) @ np.ones(8),
        jac=lambda w: w,
        constraints={"type": "ineq", "fun": lambda w: rows @ w - 1, "jac": lambda w: rows},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    assert (rows @ found >= 1 - 1e-10).all()
    assert found == pytest.approx(expected, abs=1e-6)


def test_gradient_descent_finds_the_max_margin_only_if_all_are_support_vectors():
    """The paper's "provably converge to the max-margin solution" needs a condition."""
    here = problem()
    *_, limit = full_batch_iterates(here, "gd", 20_000)
    least_norm = np.linalg.pinv(here.X) @ here.y
    assert angle(limit, least_norm) < 1e-6
    weights = np.linalg.solve(here.X @ here.X.T, here.y) * here.y
    assert weights.min() < 0  # of the examples in the solution of least norm
    assert angle(limit, here.max_margin()) > 1


def test_least_norm_and_max_margin_are_63_degrees_apart():
    here = LeastSquares(np.array([[1.0, 0.0], [3.0, 1.0]]), np.ones(2))
    assert here.least_norm() == pytest.approx([1, -2])
    assert here.max_margin() == pytest.approx([1, 0])
    *_, limit = full_batch_iterates(here, "gd", 20_000)
    assert limit == pytest.approx([1, -2], rel=1e-6)
    assert angle(limit, here.max_margin()) == pytest.approx(63.43, abs=0.01)


def test_on_random_problems_gradient_descent_misses_the_margin_by_8_degrees():
    angles = [
        angle(here.least_norm(), here.max_margin())
        for here in (problem(10, 20, seed) for seed in range(300))
    ]
    assert 6.5 < np.median(angles) < 10
    supported = [
        (np.linalg.solve(here.X @ here.X.T, here.y) * here.y).min() >= 0
        for here in (problem(10, 20, seed) for seed in range(300))
    ]
    assert np.array_equal(np.array(angles) < 1e-5, supported)
    assert 0.05 < np.mean(supported) < 0.4


@pytest.mark.parametrize("scale", [1e-200, 1e-7, 1e7, 1e200])
def test_solutions_scale_with_the_features(scale):
    here = problem()
    scaled = LeastSquares(scale * here.X, here.y)
    assert scale * scaled.max_margin() == pytest.approx(here.max_margin(), rel=1e-9)
    assert scale * scaled.least_norm() == pytest.approx(here.least_norm(), rel=1e-9)
    assert angle(scaled.max_margin(), here.least_norm()) == pytest.approx(
        angle(here.max_margin(), here.least_norm())
    )
    assert proportionality_error(scale * here.y, here.y) < 1e-15
    assert proportionality_error(here.y, scale * here.y) < 1e-15
    if 1e-100 < scale < 1e100:
        assert scaled.smoothness() == pytest.approx(scale**2 * here.smoothness())
    else:
        with pytest.raises(InvalidOption, match="leaves the range of float64"):
            scaled.smoothness()


def test_an_exact_hit_keeps_to_the_line_with_sign_0_of_0_and_leaves_it_with_1():
    """Lemma 3 fails with the paper's sign(0) = 1 where X theta = y exactly."""
    here = LeastSquares(np.eye(2), np.array([1.0, -1.0]))
    line = here.sign_direction()
    *_, hit, after = full_batch_iterates(here, "sign-descent", 4, lr=0.5)
    assert not here.residual(hit).any()
    assert np.array_equal(after, hit)
    assert proportionality_error(after, line) == 0
    printed = hit - 0.5 * np.where(here.gradient(hit) >= 0, 1.0, -1.0)
    assert proportionality_error(printed, line) > 0.1


def test_what_has_diverged_is_no_success():
    here = problem()
    assert here.train_error(np.full(20, np.nan)) == 1
    assert np.isnan(angle(np.full(2, np.inf), np.ones(2)))
    assert np.isnan(angle(np.array([np.nan, 1.0]), np.ones(2)))


def test_a_margin_that_is_tiny_is_found_or_refused():
    """Examples that differ in one feature in a million: right to 1e-6, or an error."""
    y = np.array([1.0, -1.0])
    for gap in (1e-3, 1e-5, 1e-7, 1e-12):
        X = np.column_stack((np.ones(2), gap * y))  # noqa: N806
        try:
            found = LeastSquares(X, y).max_margin()
        except InvalidOption:
            assert gap < 1e-6
            continue
        assert found == pytest.approx([0, 1 / gap], rel=1e-5, abs=1e-5 / gap)


def test_inseparable_examples_have_no_margin():
    with pytest.raises(InvalidOption, match="not linearly separable"):
        LeastSquares(np.array([[1.0], [1.0]]), np.array([1.0, -1.0])).max_margin()


@given(st.integers(1, 30), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_multiples_are_proportional(d, c, seed):
    direction = np.sign(np.random.default_rng(seed).normal(size=d))
    assert proportionality_error(c * direction, direction) <= 1e-14


def test_proportionality_error_is_relative():
    sign = np.array([1.0, -1.0, 0.0, 1.0])
    off = sign + np.array([0.0, 0.0, 1e-5, 0.0])
    assert proportionality_error(off, sign) == pytest.approx(1e-5)
    assert proportionality_error(1e8 * off, sign) == pytest.approx(1e-5)
    assert proportionality_error(np.array([0.0, 0.0, 3.0, 0.0]), sign) == 1
    assert proportionality_error(np.zeros(4), sign) == 0


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 45.0, 90.0, 179.9999999, 180.0])
def test_angles(degrees):
    radians = np.radians(degrees)
    found = angle(np.array([3.0, 0.0]), 7 * np.array([np.cos(radians), np.sin(radians)]))
    assert found == pytest.approx(degrees, abs=1e-12)


def test_angle_to_nothing():
    assert np.isnan(angle(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.eye(2), np.ones(3), r"\(n, d\) and \(n,\)"),
        (np.ones(2), np.ones(2), r"\(n, d\) and \(n,\)"),
        (np.ones((0, 2)), np.ones(0), "n, d >= 1"),
        (np.eye(2), np.array([1.0, 0.0]), "each must be 1 or -1"),
        (np.full((1, 1), np.nan), np.ones(1), "not finite"),
    ],
)
def test_bad_data(X, y, message):  # noqa: N803
    with pytest.raises(InvalidOption, match=message):
        LeastSquares(X, y)


def test_bad_method_and_step_size():
    with pytest.raises(InvalidOption, match="choose one of 'sign-descent', 'adam'"):
        full_batch_iterates(problem(), "adamw", 3)
    for lr in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidOption, match="positive and finite"):
            full_batch_iterates(problem(), "gd", 3, lr=lr)


@pytest.mark.parametrize(
    ("theta", "direction"),
    [(np.ones(2), np.ones(3)), (np.ones(2), np.zeros(2)), (np.ones(2), np.array([1.0, np.nan]))],
)
def test_bad_directions(theta, direction):
    with pytest.raises(InvalidOption, match="direction"):
        proportionality_error(theta, direction)
