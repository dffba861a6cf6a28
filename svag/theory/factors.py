"""Variance adaptation factors as functions of the relative variance, and Lemma 1 (§§1, 3).

Everything is elementwise over arrays, in float64. Conventions: sign(0) = 0, and eta = 0 where mean
and variance are both 0 (nothing was seen to vary), so that the factor is 1 there. Where a square
would leave the range of float64, the result is the limit, not NaN; NaN itself is refused.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import erf, ndtr

from svag.errors import InvalidOption

Array: TypeAlias = NDArray[np.float64]


def gamma_svag(eta: ArrayLike) -> Array:
    """Optimal factor of a stochastic gradient, 1/(1 + eta^2) (Eqs. 15 and 17, Fig. 3).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_svag([0.0, 1.0, np.inf])
        array([1. , 0.5, 0. ])
    """
    return gamma_sqrt(eta) ** 2


def gamma_sqrt(eta: ArrayLike) -> Array:
    """Adam's factor, (1 + eta^2)^(-1/2) (Eq. 8, Fig. 3).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_sqrt([0.0, 0.75, np.inf])
        array([1. , 0.8, 0. ])
    """
    return np.asarray(1 / np.hypot(1, check_eta(eta)))


def gamma_erf(eta: ArrayLike) -> Array:
    """Optimal factor of the sign of a Gaussian, erf(1/(sqrt(2) eta)) (Eqs. 10 and 16, Fig. 3).

    Args:
        eta: relative standard deviation sigma/|grad| >= 0, inf allowed.

    Raises:
        InvalidOption: eta is negative or NaN.

    Example:
        >>> gamma_erf([0.0, 1.0, np.inf]).round(4)
        array([1.    , 0.6827, 0.    ])
    """
    with np.errstate(divide="ignore", over="ignore"):
        return expected_sign(1 / np.abs(check_eta(eta)))


def expected_sign(ratio: ArrayLike) -> Array:
    """E[sign(g)] = 2 P[g > 0] - 1 = erf(ratio/sqrt(2)) for g ~ N(grad, sigma^2).

    Args:
        ratio: grad/sigma, +-inf where there is no noise.

    Example:
        >>> expected_sign([-np.inf, 0.0, 1.0]).round(4)
        array([-1.    ,  0.    ,  0.6827])
    """
    return np.asarray(erf(np.asarray(ratio, dtype=np.float64) / np.sqrt(2)))


def success_probability(gradient: ArrayLike, std: ArrayLike) -> Array:
    """P[sign(g_i) = sign(grad_i)] for g_i ~ N(grad_i, sigma_i^2), the paper's rho_i (Eq. 10).

    rho_i = 1/2 + 1/2 erf(|grad_i|/(sqrt(2) sigma_i))

    It is 1/2 where the gradient is 0 and 1 where there is no noise, with or without a gradient. An
    estimate from one gradient, whose mean is unknown, is another quantity:
    :func:`expected_sign_confidence`.

    Args:
        gradient: grad.
        std: sigma >= 0; the two broadcast.

    Raises:
        InvalidOption: a standard deviation is negative or NaN, a gradient NaN, or both infinite.

    Example:
        >>> success_probability([-1.0, 0.0, 2.0], [1.0, 1.0, 0.0]).round(4)
        array([0.8413, 0.5   , 1.    ])
    """
    eta = _eta(gradient, at_least_zero("std", std))
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(ndtr(1 / eta))


def optimal_factor(mean: ArrayLike, variance: ArrayLike) -> Array:
    """Minimiser of E[(gamma p^ - p)^2] (Lemma 1, Eq. 15), for any distribution of p^.

    gamma = E[p^]^2/E[p^^2] = p^2/(p^2 + sigma^2)

    Args:
        mean: p = E[p^].
        variance: sigma^2 >= 0; the two broadcast.

    Raises:
        InvalidOption: a variance is negative or NaN, a mean NaN, or both infinite.

    Example:
        >>> optimal_factor([2.0, 1.0, 0.0], [1.0, 2.25, 1.0]).round(4)  # as in Fig. 4
        array([0.8   , 0.3077, 0.    ])
    """
    return gamma_svag(_eta(mean, np.sqrt(at_least_zero("variance", variance))))


def optimal_sign_factor(mean: ArrayLike, variance: ArrayLike) -> Array:
    """Minimiser of E[(gamma sign(p^) - sign(p))^2] for a Gaussian p^ (Lemma 1, Eq. 16).

    gamma = 2 rho - 1 = erf(|p|/(sqrt(2) sigma))

    2 rho - 1 is the minimiser for any distribution, but lies in [0, 1] only where the median has
    the sign of the mean: a gradient that is 200 with probability 0.01, else -1, has the mean
    1.01 and 2 rho - 1 = -0.98, and descent along its sign walks uphill. For other symmetric noise
    see :mod:`svag.theory.sign_factors`.

    Args:
        mean: p = E[p^].
        variance: sigma^2 >= 0; the two broadcast.

    Raises:
        InvalidOption: a variance is negative or NaN, a mean NaN, or both infinite.

    Example:
        >>> optimal_sign_factor([-2.0, 1.0, 0.0], 1.0).round(4)
        array([0.9545, 0.6827, 0.    ])
    """
    return gamma_erf(_eta(mean, np.sqrt(at_least_zero("variance", variance))))


def expected_distance(factor: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> Array:
    """E[(gamma p^ - p)^2] = (gamma - 1)^2 p^2 + gamma^2 sigma^2, which Lemma 1 minimises.

    At the optimal gamma of Eq. (15) it is (1 - gamma) p^2.

    Args:
        factor: gamma, any number.
        mean: p = E[p^].
        variance: sigma^2 >= 0; all three broadcast.

    Raises:
        InvalidOption: a variance is negative, or something NaN.

    Example:
        >>> expected_distance([0.8, 1.0], 2.0, 1.0).round(4)
        array([0.8, 1. ])
    """
    gamma, p = _number("factor", factor), _number("mean", mean)
    std = np.sqrt(at_least_zero("variance", variance))
    with np.errstate(over="ignore", invalid="ignore"):
        bias = np.where(gamma == 1, 0.0, (gamma - 1) * p)  # not 0 times infinity
        noise = np.where(gamma == 0, 0.0, gamma * std)
        return np.asarray(bias**2 + noise**2)


def expected_sign_distance(factor: ArrayLike, probability: ArrayLike) -> Array:
    """E[(gamma sign(p^) - sign(p))^2] = (gamma - 1)^2 rho + (gamma + 1)^2 (1 - rho), p != 0.

    At the optimal gamma of Eq. (16) it is 1 - gamma^2.

    Args:
        factor: gamma, any number.
        probability: rho = P[sign(p^) = sign(p)] in [0, 1], as :func:`success_probability`
            gives it; p^ = 0 is taken to have probability 0.

    Raises:
        InvalidOption: a probability is outside [0, 1].

    Example:
        >>> expected_sign_distance([0.5, 1.0], 0.75)
        array([0.75, 1.  ])
    """
    gamma, rho = np.asarray(factor, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if not np.all((rho >= 0) & (rho <= 1)):
        raise InvalidOption(f"probability={probability!r} must lie in [0, 1]")
    return np.asarray((gamma - 1) ** 2 * rho + (gamma + 1) ** 2 * (1 - rho))


@dataclass(frozen=True)
class FactorEstimate:
    """Lemma 1 for a distribution that is known by samples.

    Attributes:
        factor: gamma, the minimiser of the average distance.
        factor_error: its standard error, to first order in the number of samples.
        distance: the average distance at ``factor``.
        distance_error: its standard error, likewise.

    Example:
        >>> found = estimate_optimal_factor(np.array([0.5, 1.5]), 1.0)
        >>> float(found.factor)  # mean of the samples over the mean of their squares
        0.8
    """

    factor: Array
    factor_error: Array
    distance: Array
    distance_error: Array


def estimate_optimal_factor(samples: ArrayLike, mean: ArrayLike) -> FactorEstimate:
    """Minimise the average of (gamma p^_k - p)^2 over samples (Lemma 1, Eq. 15).

    gamma = p avg(p^_k)/avg(p^_k^2), which tends to p^2/E[p^^2]; 1 where all samples are 0.

    Args:
        samples: p^_k, of shape (n, ...), n >= 2.
        mean: p = E[p^], of shape (...).

    Returns:
        Factor and distance of each coordinate, with their standard errors.

    Raises:
        InvalidOption: there are fewer than two samples, they do not fit the mean, or something
            is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = estimate_optimal_factor(rng.laplace(2.0, size=(100_000, 1)), [2.0])
        >>> abs(found.factor - optimal_factor(2.0, 2.0)) < 3 * found.factor_error
        array([ True])
    """
    return _minimiser(*_samples(samples, mean))


def estimate_optimal_sign_factor(samples: ArrayLike, mean: ArrayLike) -> FactorEstimate:
    """Minimise the average of (gamma sign(p^_k) - sign(p))^2 over samples (Lemma 1, Eq. 16).

    gamma = sign(p) avg(sign(p^_k)) tends to 2 rho - 1 (over the samples that are not 0).

    Args:
        samples: p^_k, of shape (n, ...), n >= 2.
        mean: p = E[p^], of shape (...).

    Returns:
        Factor and distance of each coordinate, with their standard errors.

    Raises:
        InvalidOption: there are fewer than two samples, they do not fit the mean, or something
            is not finite.

    Example:
        >>> estimate_optimal_sign_factor([1.0, 3.0, -2.0, 2.0], 1.0).factor
        array(0.5)
    """
    values, target = _samples(samples, mean)
    return _minimiser(np.sign(values), np.sign(target))


class Gap(NamedTuple):
    """The largest difference between two factors, ``size``, and the ``eta`` where it is.

    Example:
        >>> size, eta = largest_gap()
        >>> round(size, 4)
        0.0644
    """

    size: float
    eta: float


def largest_gap() -> Gap:
    """Largest |erf(1/(sqrt(2) eta)) - (1 + eta^2)^(-1/2)|, by which Adam is not optimal (Fig. 3).

    Adam's factor is the larger one from eta = 0.8424 on. Below, it is the smaller one, by at most
    0.0618 (at eta = 0.4543). The difference tends to 0 with eta, the ratio does not: Adam's
    factor ends up sqrt(pi/2) = 1.25 times the best one (:mod:`svag.theory.sign_factors` has the
    ratio for other noise).

    Example:
        >>> gap = largest_gap()
        >>> f"{gap.size:.4f} at eta = {gap.eta:.4f}"
        '0.0644 at eta = 1.9127'
    """

    def gap(log_eta: float) -> float:
        eta = np.exp(log_eta)
        return abs(float(gamma_erf(eta) - gamma_sqrt(eta)))

    grid = np.linspace(-5, 5, 1001)
    start = grid[np.argmax([gap(x) for x in grid])]
    found = minimize_scalar(lambda x: -gap(x), bounds=(start - 0.01, start + 0.01))
    return Gap(gap(found.x), float(np.exp(found.x)))


def check_eta(eta: ArrayLike) -> Array:
    """Return relative standard deviations as an array, and refuse NaN and what is negative.

    Raises:
        InvalidOption: eta is negative or NaN.
    """
    return at_least_zero("eta", eta)


def at_least_zero(name: str, value: ArrayLike) -> Array:
    """Return an array, and refuse NaN and what is negative.

    Raises:
        InvalidOption: a number is negative or NaN.
    """
    array = np.asarray(value, dtype=np.float64)
    if not np.all(array >= 0):
        wrong = array[~(array >= 0)].flat[0]
        raise InvalidOption(f"{name} has the value {wrong}; it must be >= 0 everywhere")
    return array


def _number(name: str, value: ArrayLike) -> Array:
    """Refuse NaN, which comparisons would hide."""
    array = np.asarray(value, dtype=np.float64)
    if np.isnan(array).any():
        raise InvalidOption(f"{name} has the value nan; find out where it comes from")
    return array


def finite(name: str, value: ArrayLike) -> Array:
    """Return an array, and refuse NaN and infinity.

    Raises:
        InvalidOption: a number is NaN or infinite.
    """
    array = _number(name, value)
    if np.isinf(array).any():
        raise InvalidOption(f"{name} has the value {array[np.isinf(array)][0]}; it must be finite")
    return array


def _eta(mean: ArrayLike, std: Array) -> Array:
    """sigma/|p|, 0 where there is no noise and inf where there is nothing but noise."""
    size = np.abs(_number("mean", mean))
    if np.any(np.isinf(size) & np.isinf(std)):
        raise InvalidOption("mean and standard deviation are both infinite; their ratio is unknown")
    with np.errstate(divide="ignore", over="ignore"):
        out = np.zeros(np.broadcast_shapes(size.shape, std.shape))
        return np.asarray(np.divide(std, size, out=out, where=std > 0))


def _samples(samples: ArrayLike, mean: ArrayLike) -> tuple[Array, Array]:
    values, target = np.asarray(samples, dtype=np.float64), np.asarray(mean, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2 or values.shape[1:] != target.shape:
        raise InvalidOption(
            f"samples of shape {values.shape} for a mean of shape {target.shape}; it takes at "
            f"least 2 samples, of shape (n, *{target.shape})"
        )
    if not (np.isfinite(values).all() and np.isfinite(target).all()):
        raise InvalidOption("samples and mean must be finite; drop what is not")
    return values, target


def _minimiser(values: Array, target: Array) -> FactorEstimate:
    """Minimise avg (gamma x_k - p)^2; errors by the delta method."""
    size = np.maximum(np.abs(values).max(axis=0), np.abs(target))
    unit = np.where(size > 0, np.exp2(np.floor(np.log2(np.where(size > 0, size, 1)))), 1)
    values, target = values / unit, target / unit  # so that no square leaves the range
    square = np.mean(values**2, axis=0)
    slope = target * np.mean(values, axis=0)
    factor = np.divide(slope, square, out=np.ones(target.shape), where=square > 0)
    residual = factor * values - target
    influence = residual * values / np.where(square > 0, square, 1)
    count = np.sqrt(len(values))
    distance = np.mean(residual**2, axis=0), (residual**2).std(axis=0, ddof=1) / count
    with np.errstate(over="ignore", under="ignore"):
        return FactorEstimate(
            np.asarray(factor),
            np.asarray(influence.std(axis=0, ddof=1) / count),
            *(np.asarray(unit * (unit * part)) for part in distance),
        )
