"""Factors, Lemma 1 against numerical minimisation, and Adam taken apart and put together."""

import ast
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy import integrate, optimize, stats

import svag.theory
from svag.errors import InvalidOption
from svag.theory import (
    adam_join,
    adam_relative_variance,
    adam_split,
    estimate_optimal_factor,
    estimate_optimal_sign_factor,
    expected_distance,
    expected_sign,
    expected_sign_distance,
    gamma_erf,
    gamma_sqrt,
    gamma_svag,
    largest_gap,
    optimal_factor,
    optimal_sign_factor,
    success_probability,
)

GAMMAS = (gamma_svag, gamma_sqrt, gamma_erf)
NOISE = {"gaussian": stats.norm(), "laplace": stats.laplace(), "student-t": stats.t(5)}
MEANS = (2.0, -0.3)
SCALES = (0.5, 3.0)

positive = st.floats(1e-12, 1e12)


def expectation(function, distribution):
    """E[function(p^)] by quadrature, split where a sign changes and at the mean."""
    ends = [-np.inf, *sorted({0.0, float(distribution.mean())}), np.inf]
    parts = [
        integrate.quad(lambda x: function(x) * distribution.pdf(x), a, b, epsabs=1e-13)[0]
        for a, b in pairwise(ends)
    ]
    return sum(parts)


def minimiser(distance):
    return optimize.minimize_scalar(distance, bracket=(0, 1), tol=1e-10).x


def shifted(name, mean, scale):
    """The distribution mean + scale * noise."""
    noise = NOISE[name]
    return noise.dist(*noise.args, loc=mean, scale=scale)


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("scale", SCALES)
def test_lemma_1_for_the_direction(name, mean, scale):
    p_hat = shifted(name, mean, scale)

    def distance(gamma):
        return expectation(lambda x: (gamma * x - mean) ** 2, p_hat)

    gamma = optimal_factor(mean, p_hat.var())
    assert_within("Lemma 1, Eq. 15: numerical minimiser", abs(minimiser(distance) - gamma), 1e-6)
    assert distance(gamma) == pytest.approx(
        float(expected_distance(gamma, mean, p_hat.var())), rel=1e-9
    )
    assert expected_distance(gamma, mean, p_hat.var()) == pytest.approx((1 - gamma) * mean**2)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("scale", SCALES)
def test_lemma_1_for_the_sign(mean, scale):
    p_hat = shifted("gaussian", mean, scale)

    def distance(gamma):
        return expectation(lambda x: (gamma * np.sign(x) - np.sign(mean)) ** 2, p_hat)

    gamma = optimal_sign_factor(mean, p_hat.var())
    assert_within("Lemma 1, Eq. 16: numerical minimiser", abs(minimiser(distance) - gamma), 1e-6)
    rho = success_probability(mean, scale)
    assert gamma == pytest.approx(2 * rho - 1, rel=1e-13)
    assert distance(gamma) == pytest.approx(float(expected_sign_distance(gamma, rho)), rel=1e-9)
    assert expected_sign_distance(gamma, rho) == pytest.approx(1 - gamma**2)


@pytest.mark.parametrize("name", NOISE)
def test_lemma_1_from_samples(name):
    mean = np.array(MEANS)
    rng = np.random.default_rng(5)
    p_hat = [shifted(name, p, 1.5) for p in MEANS]
    samples = np.stack([d.rvs(200_000, random_state=rng) for d in p_hat], axis=1)
    variance = np.array([d.var() for d in p_hat])
    found = estimate_optimal_factor(samples, mean)
    wanted = optimal_factor(mean, variance)
    assert np.all(np.abs(found.factor - wanted) < 4 * found.factor_error)
    distance = expected_distance(wanted, mean, variance)
    assert np.all(np.abs(found.distance - distance) < 4 * found.distance_error)

    rho = np.array([d.sf(0) if p > 0 else d.cdf(0) for d, p in zip(p_hat, MEANS, strict=True)])
    found = estimate_optimal_sign_factor(samples, mean)
    assert np.all(np.abs(found.factor - (2 * rho - 1)) < 4 * found.factor_error)
    distance = expected_sign_distance(2 * rho - 1, rho)
    assert np.all(np.abs(found.distance - distance) < 4 * found.distance_error)


@pytest.mark.parametrize("estimate", [estimate_optimal_factor, estimate_optimal_sign_factor])
def test_standard_errors_are_the_spread_over_replications(estimate):
    rng = np.random.default_rng(1)
    found = estimate(rng.normal(1.0, 1.0, size=(1_000, 2_000)), np.ones(2_000))
    assert found.factor.std() == pytest.approx(found.factor_error.mean(), rel=0.05)
    assert found.distance.std() == pytest.approx(found.distance_error.mean(), rel=0.05)


def test_samples_that_are_constant_or_zero():
    found = estimate_optimal_factor([[3.0, 0.0], [3.0, 0.0]], [3.0, 0.0])
    assert np.array_equal(found.factor, [1.0, 1.0])
    assert np.array_equal(found.factor_error, [0.0, 0.0])
    assert np.array_equal(found.distance, [0.0, 0.0])
    sign = estimate_optimal_sign_factor([[3.0, 1.0], [3.0, -1.0]], [3.0, 0.0])
    assert np.array_equal(sign.factor, [1.0, 0.0])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_factors_at_the_limits(gamma):
    with np.errstate(under="ignore"):
        values = gamma([0.0, -0.0, 5e-324, 1e-200, 1e200, 1.7e308, np.inf])
    assert np.array_equal(values[:4], np.ones(4))
    assert np.all(values[4:] < 1e-199)
    assert values[-1] == 0
    assert np.shape(gamma(1.0)) == ()


@given(st.lists(st.floats(0, np.inf), min_size=2, max_size=2))
def test_factors_fall_from_one_to_zero(etas):
    low, high = sorted(etas)
    for gamma in GAMMAS:
        assert 0 <= gamma(high) <= gamma(low) <= 1
    assert gamma_svag(low) == pytest.approx(gamma_sqrt(low) ** 2)


def test_factors_against_the_formulas():
    eta = np.geomspace(1e-3, 1e3, 200)
    assert gamma_svag(eta) == pytest.approx(1 / (1 + eta**2), rel=1e-14)
    assert gamma_sqrt(eta) == pytest.approx((1 + eta**2) ** -0.5, rel=1e-14)
    assert gamma_erf(eta) == pytest.approx(1 - 2 * stats.norm.sf(1 / eta), rel=1e-9)


def test_success_probability_against_the_distribution_and_at_its_limits():
    gradient, std = np.array([-2.0, -0.1, 0.3, 5.0]), np.array([0.5, 3.0, 2.0, 1.0])
    right = np.where(
        gradient > 0, stats.norm.sf(0, gradient, std), stats.norm.cdf(0, gradient, std)
    )
    assert success_probability(gradient, std) == pytest.approx(right, rel=1e-14)
    limits = success_probability([1.0, 0.0, 0.0, 1.0, np.inf], [0.0, 1.0, 0.0, np.inf, 1.0])
    assert np.array_equal(limits, [1.0, 0.5, 1.0, 0.5, 1.0])


def test_optimal_factors_at_their_limits():
    mean, variance = [1.0, 0.0, 0.0, 1e-200, 1e200, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0, np.inf]
    for factor in (optimal_factor, optimal_sign_factor):
        values = factor(mean, variance)
        assert np.array_equal(values[[0, 1, 2, 4, 5]], [1, 0, 1, 1, 0])
        assert 0 <= values[3] < 1e-199


def test_expected_sign_is_odd_and_bounded():
    ratio = np.array([-np.inf, -3.0, 0.0, 1e-300, 0.2, 50.0, np.inf])
    assert expected_sign(ratio) == pytest.approx(2 * stats.norm.cdf(ratio) - 1, abs=1e-15)
    assert np.array_equal(expected_sign(-ratio), -expected_sign(ratio))


def test_the_largest_gap_to_four_digits():
    gap = largest_gap()
    assert f"{gap.size:.4f} {gap.eta:.4f}" == "0.0644 1.9127"
    eta = np.geomspace(1e-4, 1e4, 400_001)
    difference = gamma_erf(eta) - gamma_sqrt(eta)
    assert gap.size == pytest.approx(np.abs(difference).max(), rel=1e-8)
    assert f"{difference.max():.4f}" == "0.0618"


@given(
    m=st.just(0.0) | positive | positive.map(lambda x: -x),
    excess=st.just(0.0) | positive,
    eps=st.sampled_from([0.0, 1e-8]),
)
def test_adam_is_its_sign_times_its_factor(m, excess, eps):
    v = m**2 + excess
    sign, factor = adam_split(m, v, eps)
    assert sign == np.sign(m)
    assert 0 <= factor <= 1 + 1e-15
    if m == 0:
        assert adam_join(sign, factor) == 0
    else:
        assert adam_join(sign, factor) == m / (np.sqrt(v) + eps)
    if m != 0 and eps == 0:
        assert factor == pytest.approx((1 + adam_relative_variance(m, v)) ** -0.5, rel=1e-12)


def test_adams_factor_can_exceed_one():
    sign, factor = adam_split([-2.0], [2.0])
    eta_sq = adam_relative_variance([-2.0], [2.0])
    assert eta_sq == -0.5
    assert factor == pytest.approx((1 + eta_sq) ** -0.5)
    assert adam_join(sign, factor) == pytest.approx(-np.sqrt(2))


def test_adams_zeros():
    for eps in (0.0, 1e-8):
        sign, factor = adam_split([0.0, 0.0], [0.0, 4.0], eps)
        assert np.array_equal(sign, [0, 0])
        assert np.array_equal(factor, [0, 0])
    assert adam_split(1e-9, 0.0, 1e-8)[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: gamma_svag(-0.5), "eta.*-0.5.*>= 0"),
        (lambda: gamma_sqrt([1.0, np.nan]), "eta.*nan.*>= 0"),
        (lambda: gamma_erf([1.0, -2.0]), "eta.*-2.0.*>= 0"),
        (lambda: success_probability(1.0, -1.0), "std.*-1.0.*>= 0"),
        (lambda: optimal_factor(1.0, -1.0), "variance.*-1.0.*>= 0"),
        (lambda: optimal_sign_factor(1.0, -1.0), "variance.*-1.0.*>= 0"),
        (lambda: expected_distance(1.0, 1.0, -1.0), "variance.*-1.0.*>= 0"),
        (lambda: expected_sign_distance(1.0, 1.5), r"1\.5.*\[0, 1\]"),
        (lambda: estimate_optimal_factor([[1.0]], [1.0]), r"\(1, 1\).*at least 2"),
        (lambda: estimate_optimal_factor(np.ones((9, 2)), np.ones(3)), r"\(9, 2\).*\(3,\)"),
        (lambda: estimate_optimal_sign_factor([1.0, np.nan], 1.0), "finite"),
        (lambda: adam_split(1.0, -1.0), "v has.*-1.0.*>= 0"),
        (lambda: adam_split(1.0, 1.0, -1e-8), "eps.*-1e-08.*>= 0"),
        (lambda: adam_split(1.0, 0.0), "v = 0.*eps=0.0.*eps > 0"),
    ],
)
def test_bad_input_is_refused_with_its_remedy(call, quoted):
    with pytest.raises(InvalidOption, match=quoted):
        call()


def test_public_names_are_there():
    for name in svag.theory.__all__:
        assert getattr(svag.theory, name) is not None
    assert list(svag.theory.__all__) == sorted(svag.theory.__all__)


def test_theory_needs_neither_torch_nor_the_rest_of_svag():
    code = (
        "import sys; sys.modules['torch'] = None; import svag.theory;"
        "print({m.split('.')[1] for m in sys.modules if m.startswith('svag.')})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(out.stdout) <= {"anatomy", "errors", "theory"}
