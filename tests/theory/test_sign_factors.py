"""Factors of the sign under other noise, and the estimate of its success: references and limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy import integrate, stats

from svag.errors import InvalidOption
from svag.theory import (
    estimate_optimal_sign_factor,
    expected_sign_confidence,
    gamma_erf,
    gamma_laplace,
    gamma_logistic,
    gamma_sqrt,
    gamma_student,
    gamma_uniform,
    gamma_unimodal_floor,
    success_probability,
)

ETAS = np.array([0.05, 0.3, 0.8, np.sqrt(3) / 2, 1.0, 2.5, 40.0, 1e4])
FACTORS = {
    "gaussian": (gamma_erf, stats.norm()),
    "laplace": (gamma_laplace, stats.laplace(scale=0.5**0.5)),
    "logistic": (gamma_logistic, stats.logistic(scale=3**0.5 / np.pi)),
    "uniform": (gamma_uniform, stats.uniform(-(3**0.5), 2 * 3**0.5)),
    "t3": (lambda eta: gamma_student(eta, 3), stats.t(3, scale=3**-0.5)),
    "t2.01": (lambda eta: gamma_student(eta, 2.01), stats.t(2.01, scale=(0.01 / 2.01) ** 0.5)),
    "t50": (lambda eta: gamma_student(eta, 50), stats.t(50, scale=(48 / 50) ** 0.5)),
}
TAILS = {"gaussian": 1.2533, "laplace": 0.7071, "logistic": 1.1027, "uniform": 1.7321}


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_two_rho_minus_one_of_their_distribution(name):
    factor, noise = FACTORS[name]
    assert noise.var() == pytest.approx(1, rel=1e-9)
    expected = 1 - 2 * noise.cdf(-1 / ETAS)
    found = factor(ETAS)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_the_minimisers_on_samples(name):
    factor, noise = FACTORS[name]
    draws = noise.rvs(200_000, random_state=np.random.default_rng(3))
    for eta in (0.7, 2.0):
        found = estimate_optimal_sign_factor(-1 + eta * draws, -1.0)
        distance = abs(found.factor - factor(eta)) / found.factor_error
        assert_within("2 rho - 1 on samples, standard errors", float(distance), 4, name)


@pytest.mark.parametrize("name", FACTORS)
def test_factors_at_their_limits(name):
    factor = FACTORS[name][0]
    values = factor([0.0, -0.0, 5e-324, 1e-200, 1e200, np.inf])
    assert np.array_equal(values[:4], np.ones(4))
    assert 0 < values[4] < 1e-198
    assert values[5] == 0
    assert factor(1e200) * 1e200 == pytest.approx(factor(1e9) * 1e9, rel=1e-6)
    assert np.shape(factor(1.0)) == ()


@pytest.mark.parametrize("name", TAILS)
def test_adams_factor_is_not_the_best_in_the_tail(name):
    ratio = gamma_sqrt(1e7) / FACTORS[name][0](1e7)
    assert ratio == pytest.approx(TAILS[name], rel=1e-4)


def test_student_meets_the_gaussian():
    for df in (1e6, 1e9, 1e10, np.inf):
        assert gamma_student(ETAS, df) == pytest.approx(gamma_erf(ETAS), rel=1e-5)


@given(st.floats(0, 1e3), st.sampled_from(sorted(FACTORS)))
def test_no_symmetric_noise_with_one_mode_is_below_the_floor(eta, name):
    assert FACTORS[name][0](eta) >= gamma_unimodal_floor(eta) - 1e-12


@given(st.floats(0.01, 0.99), st.floats(0.01, 10), st.floats(0.05, 20))
def test_mixtures_with_one_mode_are_not_below_the_floor(weight, width, eta):
    """A uniform of width 1 and a narrower or wider one, both about 0."""
    std = np.sqrt((weight + (1 - weight) * width**2) / 3)
    p = std / eta
    beyond = [weight * max(0, 1 - p), (1 - weight) * max(0, 1 - p / width)]
    assert 1 - sum(beyond) >= gamma_unimodal_floor(eta) - 1e-12


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.85, 0.9, 3.0])
def test_the_floor_is_reached(eta):
    """By uniform noise, mixed with a point mass at 0 for small eta; p = 1."""
    if eta > np.sqrt(3) / 2:
        assert gamma_uniform(eta) == gamma_unimodal_floor(eta)
        return
    half = 1.5  # where the tail of a uniform of that half-width beyond 1 is the largest
    weight = 3 * eta**2 / half**2
    assert weight <= 1
    wrong = weight * (half - 1) / (2 * half)
    assert 1 - 2 * wrong == pytest.approx(float(gamma_unimodal_floor(eta)), rel=1e-12)


def test_skewed_noise_has_no_floor_and_sign_descent_walks_uphill():
    """g = 200 with probability 0.01, else -1: the mean is 1.01, 2 rho - 1 = -0.98."""
    samples = np.append(np.full(100, 200.0), np.full(9_900, -1.0))
    found = estimate_optimal_sign_factor(samples, samples.mean())
    assert samples.mean() == pytest.approx(1.01)
    assert found.factor == pytest.approx(-0.98)
    theta = 0.0  # of the loss 1.01 theta
    for g in np.random.default_rng(0).permutation(samples):
        theta -= 0.01 * np.sign(g)
    assert 1.01 * theta > 0.9 * 0.98 * 0.01 * len(samples)


def test_a_gradient_that_varies_can_be_0():
    """The paper's footnote 3 has it almost surely not 0; then 2 rho - 1 is no longer E[sign]."""
    samples = np.append(np.zeros(900), np.full(100, 3.0))
    assert samples.var() > 0
    assert np.mean(samples == 0) == 0.9
    assert estimate_optimal_sign_factor(samples, 0.3).factor == 1


@pytest.mark.parametrize(("ratio", "mean"), [(0.0, 0.75), (1.0, 0.8177), (2.0, 0.9275)])
def test_confidence_with_a_known_variance(ratio, mean):
    def weighted(x):
        return stats.norm.cdf(abs(x)) * stats.norm.pdf(x, ratio)

    parts = (integrate.quad(weighted, *ends, epsabs=1e-13)[0] for ends in ((-40, 0), (0, 40)))
    found = expected_sign_confidence(ratio)
    assert found == pytest.approx(sum(parts), rel=1e-12)
    assert f"{found:.4f}" == f"{mean:.4f}"


@pytest.mark.parametrize("examples", [2, 3, 8, 100])
def test_confidence_with_an_estimated_variance(examples):
    rng = np.random.default_rng(0)
    for ratio in (0.0, 0.5, 1.0, -3.0):
        g = ratio + rng.standard_normal(400_000)
        s = rng.chisquare(examples - 1, len(g)) / (examples - 1)
        seen = success_probability(g, np.sqrt(s))
        error = abs(seen.mean() - expected_sign_confidence(ratio, examples))
        assert_within("confidence in standard errors", error / seen.std() * len(g) ** 0.5, 4)


def test_confidence_at_its_limits():
    assert expected_sign_confidence(0.0, 2) == pytest.approx(0.8138, abs=5e-5)
    assert expected_sign_confidence([np.inf, -np.inf, 1e300]) == pytest.approx(1)
    assert expected_sign_confidence([np.inf, 1e300], 5) == pytest.approx(1)
    many = expected_sign_confidence([0.0, 1.0, 2.0], 100_000)
    assert many == pytest.approx(expected_sign_confidence([0.0, 1.0, 2.0]), abs=1e-5)


def test_confidence_is_biased_upwards_below_and_downwards_above():
    ratio = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    bias = expected_sign_confidence(ratio) - success_probability(ratio, 1.0)
    assert np.array_equal(np.sign(bias), [1, 1, -1, -1, -1])


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        *((lambda f=f: f(-1.0), r"eta.*-1\.0.*>= 0") for f, _ in FACTORS.values()),
        *((lambda f=f: f([1.0, np.nan]), "eta.*nan") for f, _ in FACTORS.values()),
        (lambda: gamma_unimodal_floor(np.nan), "eta.*nan"),
        (lambda: gamma_student(1.0, 2.0), r"df=2\.0.*df > 2"),
        (lambda: gamma_student(1.0, np.nan), "df=nan"),
        (lambda: expected_sign_confidence(np.nan), "nan"),
        (lambda: expected_sign_confidence(1.0, 1), "examples=1.*at least 2"),
    ],
)
def test_factors_that_are_none(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()
