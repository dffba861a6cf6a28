"""Optimal factors of the sign, 2 rho - 1 (Eq. 16), for noise that is not Gaussian.

All are functions of eta = sigma/|grad| as :func:`~svag.theory.factors.gamma_erf` is, for a gradient
of mean grad and standard deviation sigma whose noise is symmetric about 0. As the noise grows,
Adam's factor (1 + eta^2)^(-1/2) tends to 1/eta and the best one to a constant over eta, so that
their ratio tends to a constant, too:

    noise                          best factor times eta     Adam's factor over the best
    Gaussian                       sqrt(2/pi) = 0.798        1.25
    Laplace                        sqrt(2) = 1.414           0.71
    Student's t, df = 5            0.980                     1.02
    logistic                       pi/(2 sqrt(3)) = 0.907    1.10
    uniform                        1/sqrt(3) = 0.577         1.73
    symmetric, one mode: at least  1/sqrt(3) = 0.577         1.73 at most

Noise that is not symmetric has no such floor: 2 rho - 1 can come near -1.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import beta, betainc

from svag.errors import InvalidOption
from svag.theory.factors import Array, check_eta, gamma_erf


def gamma_laplace(eta: ArrayLike) -> Array:
    """Optimal factor of the sign under Laplace noise, 1 - exp(-sqrt(2)/eta).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_laplace([0.0, 1.0, np.inf]).round(4)
        array([1.    , 0.7569, 0.    ])
    """
    return np.asarray(-np.expm1(-np.sqrt(2) * _inverse(eta)))


def gamma_logistic(eta: ArrayLike) -> Array:
    """Optimal factor of the sign under logistic noise, tanh(pi/(2 sqrt(3) eta)).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_logistic([0.0, 1.0, np.inf]).round(4)
        array([1.    , 0.7196, 0.    ])
    """
    return np.asarray(np.tanh(np.pi / (2 * np.sqrt(3)) * _inverse(eta)))


def gamma_uniform(eta: ArrayLike) -> Array:
    """Optimal factor of the sign under uniform noise, min(1, 1/(sqrt(3) eta)).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_uniform([0.0, 1.0, np.inf]).round(4)
        array([1.    , 0.5774, 0.    ])
    """
    return np.asarray(np.minimum(1, _inverse(eta) / np.sqrt(3)))


def gamma_student(eta: ArrayLike, df: float) -> Array:
    """Optimal factor of the sign under Student's t noise, 2 F(x) - 1 at its standard deviation.

        2 F(x) - 1 = I_(x^2/(df + x^2))(1/2, df/2),   x = sqrt(df/(df - 2))/eta

    with F its distribution function and I the regularised incomplete beta function.

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.
        df: degrees of freedom, above 2: below, there is no standard deviation. inf is Gaussian.

    Raises:
        InvalidOption: eta is negative or NaN, or df is not above 2.

    Example:
        >>> gamma_student([0.0, 1.0, np.inf], 5).round(4)
        array([1.    , 0.7468, 0.    ])
    """
    if not df > 2:
        raise InvalidOption(f"df={df!r}: Student's t has a standard deviation for df > 2 only")
    if df > 1e9:  # Gaussian to 1e-9, and the beta function loses digits
        return gamma_erf(eta)
    x = _inverse(eta) / np.sqrt(df - 2)  # in units of sqrt(df)
    square = np.minimum(x, 1e100) ** 2
    small = 2 * x / beta(0.5, df / 2)  # to first order, where x^2 would underflow
    return np.asarray(np.where(x < 1e-9, small, betainc(0.5, df / 2, square / (1 + square))))


def gamma_unimodal_floor(eta: ArrayLike) -> Array:
    """Least optimal factor of the sign under any symmetric noise with one mode.

        1 - 4 eta^2/9 up to eta = sqrt(3)/2, 1/(sqrt(3) eta) beyond

    Gauss' inequality bounds the probability that such noise is larger than |grad| in size; half
    of it turns the sign. Two kinds of noise have this factor: uniform noise from eta = sqrt(3)/2
    on, and below that a mixture of uniform noise with a point mass at 0.

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_unimodal_floor([0.0, 0.5, 1.0, np.inf]).round(4)
        array([1.    , 0.8889, 0.5774, 0.    ])

    References:
        Gauss (1823), Theoria combinationis observationum; Pukelsheim (1994), The three sigma rule.
    """
    checked = check_eta(eta)
    near = np.minimum(checked, 1)
    return np.where(checked <= np.sqrt(3) / 2, 1 - 4 * near**2 / 9, gamma_uniform(checked))


def _inverse(eta: ArrayLike) -> Array:
    """1/eta, at most 1e300: every factor is 1 there already."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(np.minimum(1 / np.abs(check_eta(eta)), 1e300))
