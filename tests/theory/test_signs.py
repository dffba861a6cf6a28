"""Products of signs of correlated Gaussians against quadrature, at limits and in symmetries."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from scipy import integrate, stats
from scipy.special import erf

from svag.errors import InvalidOption
from svag.theory import expected_sign_form, expected_sign_product


def by_quadrature(h, k, r):
    """E[sign(X) sign(Y)] by conditioning on X."""
    width = np.sqrt(2 * (1 - r) * (1 + r))

    def integrand(x):
        return np.sign(h + x) * erf((k + r * x) / width) * stats.norm.pdf(x)

    steps = {-h, -k / r} if r else {-h}
    ends = [-10.0, *sorted(x for x in steps if -10 < x < 10), 10.0]
    return sum(
        integrate.quad(integrand, a, b, epsabs=1e-12, limit=200)[0] for a, b in pairwise(ends)
    )


MEANS = (0.0, 1e-12, 0.3, -0.3, -1.7, 6.0, -9.0, 30.0)


@pytest.mark.parametrize("r", [-0.99, -0.5, 0.0, 1e-9, 0.3, 0.9, 0.999])
def test_sign_products_against_quadrature(r):
    for h in MEANS:
        for k in MEANS:
            error = abs(by_quadrature(h, k, r) - expected_sign_product(h, k, r))
            assert_within("E[s_i s_j] against quadrature", error, 1e-10, (h, k))


@pytest.mark.parametrize("r", [-0.95, -0.2, 0.5, 0.99])
def test_sign_products_against_orthant_probabilities(r):
    h, k = np.array([0.4, -1.1, 2.5]), np.array([-0.2, -0.9, 0.3])
    orthant = stats.multivariate_normal(cov=[[1, r], [r, 1]]).cdf(np.stack([h, k], axis=-1))
    product = 4 * orthant - 2 * stats.norm.cdf(h) - 2 * stats.norm.cdf(k) + 1
    assert expected_sign_product(h, k, r) == pytest.approx(product, abs=1e-7)


def test_sign_products_at_their_limits():
    h, k = (np.array(x) for x in zip(*[(a, b) for a in MEANS for b in MEANS], strict=True))
    mean_h, mean_k = erf(h / np.sqrt(2)), erf(k / np.sqrt(2))
    for r in (-1.0, 1.0):
        limit = r * (1 - np.abs(mean_h - r * mean_k))
        assert expected_sign_product(h, k, r) == pytest.approx(limit, abs=1e-15)
    assert expected_sign_product(h, k, 0.0) == pytest.approx(mean_h * mean_k, abs=1e-15)
    for r in (-1, -0.7, 0.0, 0.7, 1):
        assert expected_sign_product(np.inf, k, r) == pytest.approx(mean_k, abs=1e-15)
        assert expected_sign_product(-np.inf, k, r) == pytest.approx(-mean_k, abs=1e-15)
        assert expected_sign_product(np.inf, -np.inf, r) == -1
    near_one = 1 - np.geomspace(1e-15, 1, 100)
    arcsine = 2 / np.pi * np.arcsin(near_one)
    assert expected_sign_product(0.0, 0.0, near_one) == pytest.approx(arcsine, abs=1e-15)


def test_sign_products_of_nearly_equal_gaussians_keep_their_accuracy():
    r = 1 - 2.0**-40
    slant = np.sqrt((1 - r) / (1 + r))
    for h in (0.0, 0.5, -2.0):
        missing = 4 / np.pi * slant * np.exp(-0.5 * h**2)  # to first order in slant = 7e-7
        assert 1 - expected_sign_product(h, h, r) == pytest.approx(missing, rel=1e-8)


@given(
    h=st.floats(-50, 50) | st.sampled_from([np.inf, -np.inf]),
    k=st.floats(-50, 50),
    r=st.floats(-1, 1),
)
def test_sign_products_have_their_symmetries(h, k, r):
    product = expected_sign_product(h, k, r)
    assert -1 - 1e-15 <= product <= 1 + 1e-15
    assert product == expected_sign_product(k, h, r)
    assert product == pytest.approx(expected_sign_product(-h, -k, r), abs=1e-15)
    assert product == pytest.approx(-expected_sign_product(-h, k, -r), abs=1e-15)


def test_sign_form_of_a_single_strong_pair():
    q = np.array([[1.0, 0.5], [0.5, 1.0]])
    ratio = np.array([[0.3, -0.2], [5.0, 5.0], [np.inf, -np.inf]])
    for r in (-1.0, -0.71, -0.69, 0.0, 0.69, 0.71, 1 - 1e-12):
        pair = expected_sign_product(ratio[:, 0], ratio[:, 1], r)
        form = expected_sign_form(q, ratio, np.array([[1.0, r], [r, 1.0]]))
        assert form == pytest.approx(2 + pair, abs=1e-14)


@pytest.mark.parametrize(
    "arguments", [(0.0, 0.0, 1.5), (0.0, 0.0, np.nan), (np.nan, 0.0, 0.5), (0.0, np.nan, 0.5)]
)
def test_sign_products_that_are_none(arguments):
    with pytest.raises(InvalidOption, match=r"outside \[-1, 1\], or a mean is NaN"):
        expected_sign_product(*arguments)
