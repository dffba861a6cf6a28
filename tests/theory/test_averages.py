"""Moving averages: rho against mpmath, weights, and a variance that does not cancel."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within

from svag.errors import InvalidOption
from svag.theory import averaging_weights, debiasing, mean_and_variance, rho

BETAS = (0.0, 1e-300, 0.5, 0.9, 0.999, 1 - 1e-9, 1 - 2.0**-53)


def exact_rho(beta, t):
    with mpmath.workdps(60):
        b, power = mpmath.mpf(beta), mpmath.mpf(beta) ** (t + 1)
        return float((1 - b) * (1 + power) / ((1 + b) * (1 - power)))


@pytest.mark.parametrize("beta", BETAS)
def test_rho_to_rounding_near_every_end(beta):
    for t in (0, 1, 2, 10, 1_000, 10**9):
        error = abs(rho(beta, t) / exact_rho(beta, t) - 1)
        assert_within("theory: rho against 60 digits", error, 1e-14, (beta, t))


def test_rho_is_1_at_the_first_step_so_that_only_then_equation_22_is_0_over_0():
    """The paper's §4.4 has rho(beta, 0) = 0, which would make it 0/1."""
    for beta in BETAS:
        assert rho(beta, 0) == pytest.approx(1, rel=1e-15)
    _, variance = mean_and_variance([[3.0, -1.0]], 0.9)
    assert not variance.any()


@given(st.floats(0, 0.9999), st.integers(0, 300))
def test_weights_add_up_and_their_squares_are_rho(beta, t):
    weights = averaging_weights(beta, t)
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    assert weights @ weights == pytest.approx(rho(beta, t), rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_mean_and_variance_are_equations_4_and_5(beta):
    g = np.random.default_rng(0).normal(0.5, 1.0, (60, 7))
    means, variances = mean_and_variance(g, beta)
    m = v = 0.0
    for t, gradient in enumerate(g):
        m, v = beta * m + (1 - beta) * gradient, beta * v + (1 - beta) * gradient**2
        weight = 1 - beta ** (t + 1)
        assert means[t] == pytest.approx(m / weight, rel=1e-12)
        assert variances[t] == pytest.approx(v / weight - (m / weight) ** 2, abs=1e-12)


def test_the_variance_is_beta_times_the_average_square_distance_to_the_mean_before():
    """v - m^2 = beta EMA[(m_(t-1) - g_t)^2]: before debiasing exactly, after it in the long run."""
    beta = 0.9
    g = np.random.default_rng(0).normal(0.5, 1.0, 500)
    m = v = average = 0.0
    for gradient in g:
        average = beta * average + (1 - beta) * (m - gradient) ** 2
        m, v = beta * m + (1 - beta) * gradient, beta * v + (1 - beta) * gradient**2
        assert v - m**2 == pytest.approx(beta * average, rel=1e-12)
    assert mean_and_variance(g, beta)[1][-1] == pytest.approx(beta * average, rel=1e-12)


def subtracted(g, beta):
    """v - m^2 and m as the equations are written, in g's own precision."""
    kind = g.dtype.type
    m = v = np.zeros_like(g[0])
    for gradient in g:
        m = kind(beta) * m + (kind(1) - kind(beta)) * gradient
        v = kind(beta) * v + (kind(1) - kind(beta)) * gradient * gradient
    weight = kind(debiasing(beta, len(g) - 1))
    return m / weight, v / weight - (m / weight) ** 2


def test_the_variance_does_not_cancel_in_float32():
    """At mean/sd = 1,000 subtraction loses a tenth of it, at 10,000 all of it."""
    rng = np.random.default_rng(0)
    for ratio, least in ((1_000, 0.05), (10_000, 1.0)):
        g = (ratio + rng.standard_normal((400, 500))).astype(np.float32)
        exact = mean_and_variance(g.astype(np.float64), 0.9)[1][-1]
        found = mean_and_variance(g, 0.9)[1][-1]
        assert found.dtype == np.float32
        assert np.median(np.abs(found / exact - 1)) < ratio * 5e-8
        assert np.median(np.abs(subtracted(g, 0.9)[1] / exact - 1)) > least


@pytest.mark.parametrize("ratio", [1, 10, 100, 1_000, 10_000])
def test_no_factor_gains_from_it(ratio):
    """Why the engines subtract: gamma of M-SVAG is off by round-off at any mean/sd."""
    g = (ratio + np.random.default_rng(0).standard_normal((400, 2_000))).astype(np.float32)
    share = rho(0.9, 399) / (1 - rho(0.9, 399))
    m, variance = (x[-1] for x in mean_and_variance(g.astype(np.float64), 0.9))
    exact = m**2 / (m**2 + share * variance)
    m, variance = subtracted(g, 0.9)
    m, variance = m.astype(float), np.maximum(variance.astype(float), 0)
    error = np.abs(m**2 / (m**2 + share * variance) / exact - 1).max()
    assert_within("theory: gamma by subtraction in float32", float(error), 1e-6, ratio)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: rho(1.0, 3), r"beta=1\.0.*\[0, 1\)"),
        (lambda: rho(-0.1, 3), r"beta=-0\.1.*\[0, 1\)"),
        (lambda: rho(float("nan"), 3), r"beta=nan.*\[0, 1\)"),
        (lambda: rho(0.9, -1), "t=-1.*first is t = 0"),
        (lambda: debiasing(0.9, float("nan")), "t=nan.*first is t = 0"),
        (lambda: averaging_weights(2.0, 3), r"beta=2\.0"),
        (lambda: mean_and_variance([], 0.9), r"\(0,\) hold none"),
        (lambda: mean_and_variance(3.0, 0.9), r"\(\) hold none"),
        (lambda: mean_and_variance([1.0], 1.5), r"beta=1\.5"),
    ],
)
def test_averages_that_are_none(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()
