"""The two estimates of the variance on moving and dependent gradients, against simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within

from svag.errors import InvalidOption
from svag.theory import (
    averaging_weights,
    epoch_covariance,
    expected_variance_estimate,
    linear_drift_bias,
    mean_and_variance,
    rho,
    stationary_overestimate,
    variance_of_average,
)


def off(samples, expected):
    """Distance of the samples' mean from the expected one, in standard errors."""
    return abs(samples.mean() - expected) / (samples.std(ddof=1) / len(samples) ** 0.5)


@pytest.mark.parametrize("beta", [0.3, 0.9, 0.99])
def test_what_moving_averages_estimate_along_a_path(beta):
    """Any path, any variances: E[v - m^2] and E[s] over 20,000 runs."""
    rng = np.random.default_rng(1)
    path, std = np.cumsum(rng.normal(size=40)), rng.uniform(0.1, 3, 40)
    g = path[:, None] + std[:, None] * rng.laplace(scale=0.5**0.5, size=(40, 20_000))
    variance = mean_and_variance(g, beta)[1][-1]
    raw = expected_variance_estimate(path, std**2, beta, corrected=False)
    assert_within("theory: E[v - m^2] in standard errors", off(variance, raw), 4)
    corrected = variance / (1 - rho(beta, 39))
    assert off(corrected, expected_variance_estimate(path, std**2, beta)) < 4


def test_a_mean_that_stays_is_assumption_1():
    for t in (1, 5, 100):
        found = expected_variance_estimate(np.full(t + 1, 7.0), 2.5, 0.9)
        assert found == pytest.approx(2.5, rel=1e-12)
        raw = expected_variance_estimate(np.full(t + 1, 7.0), 2.5, 0.9, corrected=False)
        assert raw == pytest.approx(2.5 * (1 - rho(0.9, t)), rel=1e-12)


@given(st.floats(0.01, 0.98), st.floats(-10, 10))
def test_linear_drift_is_the_limit_of_a_long_path(beta, slope):
    steps = int(40 / (1 - beta)) + 10
    long = expected_variance_estimate(slope * np.arange(steps), 0.0, beta)
    assert long == pytest.approx(linear_drift_bias(slope, beta), rel=1e-6, abs=1e-12)


def test_linear_drift_has_the_values_of_beta_09():
    assert linear_drift_bias(1.0, 0.9) == pytest.approx(95, rel=1e-12)
    assert linear_drift_bias(0.1, 0.9) == pytest.approx(0.95, rel=1e-12)
    assert 1 + linear_drift_bias(0.3, 0.9) == pytest.approx(9.55, rel=1e-12)


def test_variance_of_an_average_of_dependent_gradients():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(30, 30))
    samples = rng.standard_normal((100_000, 30)) @ mixing.T
    expected = variance_of_average(mixing @ mixing.T, 0.8)
    averages = samples @ averaging_weights(0.8, 29)
    assert averages.var() == pytest.approx(expected, rel=0.02)
    assert variance_of_average(3 * np.eye(30), 0.8) == pytest.approx(3 * rho(0.8, 29))


@pytest.mark.parametrize(("batches", "steps"), [(3, 10), (7, 7), (10, 45)])
def test_epochs_without_replacement(batches, steps):
    """Gradients of shuffled data: their covariance, and what s and r_t make of it."""
    rng, size, runs = np.random.default_rng(0), 4, 20_000
    data = rng.normal(1.0, 2.0, batches * size)
    epochs = -(-steps // batches)
    order = rng.permuted(np.tile(data, (runs, epochs, 1)), axis=2)
    groups = order.reshape(runs, epochs * batches, size)[:, :steps]
    g, s = groups.mean(axis=2), groups.var(axis=2, ddof=1) / size
    sigma_sq = data.var(ddof=1) / size
    assert off(s.mean(axis=1), sigma_sq) < 4
    expected = sigma_sq * epoch_covariance(batches, steps)
    assert np.cov(g.T) == pytest.approx(expected, abs=0.05 * sigma_sq)
    centred = (g - data.mean()) @ averaging_weights(0.9, steps - 1)
    wanted = sigma_sq * variance_of_average(epoch_covariance(batches, steps), 0.9)
    assert np.mean(centred**2) == pytest.approx(wanted, rel=0.05)
    r = s @ averaging_weights(0.9, steps - 1) ** 2
    assert off(r, sigma_sq * rho(0.9, steps - 1)) < 4


def test_a_whole_epoch_has_no_noise():
    assert epoch_covariance(4, 8).sum() == pytest.approx(0, abs=1e-12)
    assert variance_of_average(epoch_covariance(1, 5), 0.9) == pytest.approx(0, abs=1e-15)


def simulated_overestimate(a, beta, method, steps=4_000, runs=500):
    """r/var[m] of a path with unit noise and curvature 1."""
    rng = np.random.default_rng(0)
    theta, m, total = np.zeros(runs), np.zeros(runs), 0.0
    for t in range(steps):
        g = theta + rng.standard_normal(runs)
        m = beta * m + (1 - beta) * g
        theta = theta - a * (g if method == "sgd" else m)
        if t >= steps // 4:
            total += np.mean(m**2)
    return (1 - beta) / (1 + beta) / (total / (steps - steps // 4))


@pytest.mark.parametrize("method", ["sgd", "m-sgd"])
@pytest.mark.parametrize(("a", "beta"), [(0.1, 0.9), (0.5, 0.9), (1.5, 0.5), (0.05, 0.0)])
def test_a_stationary_path(method, a, beta):
    found = simulated_overestimate(a, beta, method)
    assert found == pytest.approx(stationary_overestimate(a, beta, method), rel=0.02)


def test_on_the_path_of_sgd_the_variance_is_1_8_times_too_large():
    assert stationary_overestimate(0.1, 0.9) == pytest.approx(1.805, rel=1e-12)
    assert stationary_overestimate(0.1, 0.9, "m-sgd") == pytest.approx(0.99737, rel=1e-5)
    assert stationary_overestimate(1e-9, 0.9) == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: expected_variance_estimate([1.0], 1.0, 0.9), "at least two"),
        (lambda: expected_variance_estimate([1.0, np.nan], 1.0, 0.9), "finite"),
        (lambda: expected_variance_estimate([1.0, 2.0], [1.0, np.inf], 0.9), "finite"),
        (lambda: expected_variance_estimate([1.0, 2.0], -1.0, 0.9), r"-1\.0.*>= 0"),
        (lambda: expected_variance_estimate([1.0, 2.0], 1.0, 0.0), "beta=0.*0/0"),
        (lambda: expected_variance_estimate([1.0, 2.0], 1.0, 1.0), r"beta=1\.0"),
        (lambda: linear_drift_bias(1.0, 1.0), r"beta=1\.0"),
        (lambda: variance_of_average(np.ones(3), 0.9), r"\(3,\).*square"),
        (lambda: variance_of_average(np.zeros((0, 0)), 0.9), "empty"),
        (lambda: variance_of_average([[1.0, 0.5], [0.0, 1.0]], 0.9), "symmetric"),
        (lambda: variance_of_average([[np.nan]], 0.9), "finite"),
        (lambda: epoch_covariance(0, 3), "batches=0"),
        (lambda: epoch_covariance(3, 0), "steps=0"),
        (lambda: stationary_overestimate(2.0, 0.9), r"2\.0 is not in \(0, 2\)"),
        (lambda: stationary_overestimate(-1.0, 0.9, "m-sgd"), r"\(0, 38\)"),
        (lambda: stationary_overestimate(float("nan"), 0.9), "nan is not in"),
        (lambda: stationary_overestimate(0.1, 0.9, "adam"), "'sgd', 'm-sgd'"),
    ],
)
def test_drifts_that_are_none(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()


@pytest.mark.parametrize(("batches", "factor"), [(20, 2.25), (100, 1.21), (938, 1.02)])
def test_how_much_too_large_r_is_with_epochs(batches, factor):
    """Averaged over an epoch; 938 mini-batches are an epoch of the paper's P1."""
    times = range(938, 1876, 234) if batches == 938 else range(400, 400 + batches)
    shares = [variance_of_average(epoch_covariance(batches, t), 0.9) for t in times]
    assert rho(0.9, 10_000) / np.mean(shares) == pytest.approx(factor, abs=0.01)
