"""Variance adaptation factors as functions of the relative variance, and Lemma 1 (§§1, 3).

Everything is elementwise over arrays, in float64. Conventions: sign(0) = 0, and eta = 0 where mean
and variance are both 0 (nothing was seen to vary), so that the factor is 1 there.
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
    return np.asarray(1 / np.hypot(1, _at_least_zero("eta", eta)))


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
        return expected_sign(1 / np.abs(_at_least_zero("eta", eta)))


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

    It is 1/2 where the gradient is 0 and 1 where there is no noise, with or without a gradient.

    Args:
        gradient: grad.
        std: sigma >= 0; the two broadcast.

    Raises:
        InvalidOption: a standard deviation is negative or NaN.

    Example:
        >>> success_probability([-1.0, 0.0, 2.0], [1.0, 1.0, 0.0]).round(4)
        array([0.8413, 0.5   , 1.    ])
    """
    eta = _eta(gradient, _at_least_zero("std", std))
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(ndtr(1 / eta))


def optimal_factor(mean: ArrayLike, variance: ArrayLike) -> Array:
    """Minimiser of E[(gamma p^ - p)^2] (Lemma 1, Eq. 15), for any distribution of p^.

    gamma = E[p^]^2/E[p^^2] = p^2/(p^2 + sigma^2)

    Args:
        mean: p = E[p^].
        variance: sigma^2 >= 0; the two broadcast.

    Raises:
        InvalidOption: a variance is negative or NaN.

    Example:
        >>> optimal_factor([2.0, 1.0, 0.0], [1.0, 2.25, 1.0]).round(4)  # as in Fig. 4
        array([0.8   , 0.3077, 0.    ])
    """
    return gamma_svag(_eta(mean, np.sqrt(_at_least_zero("variance", variance))))


def optimal_sign_factor(mean: ArrayLike, variance: ArrayLike) -> Array:
    """Minimiser of E[(gamma sign(p^) - sign(p))^2] for a Gaussian p^ (Lemma 1, Eq. 16).

    gamma = 2 rho - 1 = erf(|p|/(sqrt(2) sigma))

    Args:
        mean: p = E[p^].
        variance: sigma^2 >= 0; the two broadcast.

    Raises:
        InvalidOption: a variance is negative or NaN.

    Example:
        >>> optimal_sign_factor([-2.0, 1.0, 0.0], 1.0).round(4)
        array([0.9545, 0.6827, 0.    ])
    """
    return gamma_erf(_eta(mean, np.sqrt(_at_least_zero("variance", variance))))


def expected_distance(factor: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> Array:
    """E[(gamma p^ - p)^2] = (gamma - 1)^2 p^2 + gamma^2 sigma^2, which Lemma 1 minimises.

    At the optimal gamma of Eq. (15) it is (1 - gamma) p^2.

    Args:
        factor: gamma, any number.
        mean: p = E[p^].
        variance: sigma^2 >= 0; all three broadcast.

    Raises:
        InvalidOption: a variance is negative or NaN.

    Example:
        >>> expected_distance([0.8, 1.0], 2.0, 1.0).round(4)
        array([0.8, 1. ])
    """
    gamma, p = np.asarray(factor, dtype=np.float64), np.asarray(mean, dtype=np.float64)
    return np.asarray((gamma - 1) ** 2 * p**2 + gamma**2 * _at_least_zero("variance", variance))


def expected_sign_distance(factor: ArrayLike, probability: ArrayLike) -> Array:
    """E[(gamma sign(p^) - sign(p))^2] = (gamma - 1)^2 rho + (gamma + 1)^2 (1 - rho), p != 0.

    At the optimal gamma of Eq. (16) it is 1 - gamma^2.

    Args:
        factor: gamma, any number.
        probability: rho = P[sign(p^) = sign(p)] in [0, 1], as :func:`success_probability`
            gives it; the other sign has the rest.

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


def relative_variance(m: ArrayLike, v: ArrayLike) -> Array:
    """Adam's estimate of the relative variance, (v - m^2)/m^2 (Eq. 9).

    Negative, down to -1, where Adam's two betas leave v below m^2; inf where m = 0.

    Example:
        >>> relative_variance([2.0, 1.0, 0.0], [5.0, 0.5, 1.0])
        array([ 0.25, -0.5 ,   inf])
    """
    m, v = np.asarray(m, dtype=np.float64), _at_least_zero("v", v)
    square = m**2
    out = np.full(np.broadcast_shapes(m.shape, v.shape), np.inf)
    return np.asarray(np.divide(v - square, square, out=out, where=square > 0))


def adam_split(m: ArrayLike, v: ArrayLike, eps: float = 0.0) -> tuple[Array, Array]:
    """Split Adam's update direction into sign and factor (Eqs. 7 to 9).

        m/(sqrt(v) + eps) = sign(m) * gamma,   gamma = |m|/(sqrt(v) + eps)

    At eps = 0 gamma is (1 + eta^2)^(-1/2) with eta^2 = (v - m^2)/m^2
    (:func:`relative_variance`); it is written so because v - m^2 cancels. It can exceed 1.

    Args:
        m: first moment, debiased.
        v: second moment, debiased, >= 0; the two broadcast.
        eps: Adam's epsilon, >= 0.

    Returns:
        ``(sign, factor)``, both 0 where m = 0.

    Raises:
        InvalidOption: v or eps is negative or NaN, or both are 0 where m is not.

    Example:
        >>> adam_split([-3.0, 0.0], [25.0, 1.0])
        (array([-1.,  0.]), array([0.6, 0. ]))
    """
    m, v = np.asarray(m, dtype=np.float64), _at_least_zero("v", v)
    denominator = np.sqrt(v) + _at_least_zero("eps", eps)
    if np.any((denominator == 0) & (m != 0)):
        raise InvalidOption(
            f"v = 0 where m != 0 with eps={eps!r} divides by 0; v, the average of squares, is "
            "above 0 where m is not 0, or else pass eps > 0"
        )
    factor = np.zeros(np.broadcast_shapes(m.shape, denominator.shape))
    np.divide(np.abs(m), denominator, out=factor, where=denominator > 0)
    return np.sign(m), factor


def adam_join(sign: ArrayLike, factor: ArrayLike) -> Array:
    """Put an update direction together again from sign and factor (Eq. 7).

    Example:
        >>> adam_join(*adam_split([-3.0, 0.0], [25.0, 1.0]))
        array([-0.6,  0. ])
    """
    return np.asarray(np.asarray(sign, dtype=np.float64) * np.asarray(factor, dtype=np.float64))


class Gap(NamedTuple):
    """The largest difference between two factors, ``size``, and the ``eta`` where it is."""

    size: float
    eta: float


def largest_gap() -> Gap:
    """Largest |erf(1/(sqrt(2) eta)) - (1 + eta^2)^(-1/2)|, by which Adam is not optimal (Fig. 3).

    Adam's factor is the larger one from eta = 0.8424 on. Below, it is the smaller one, by at most
    0.0618 (at eta = 0.4543).

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


def _at_least_zero(name: str, value: ArrayLike) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if not np.all(array >= 0):
        wrong = array[~(array >= 0)].flat[0]
        raise InvalidOption(f"{name} has the value {wrong}; it must be >= 0 everywhere")
    return array


def _eta(mean: ArrayLike, std: Array) -> Array:
    """sigma/|p|, 0 where there is no noise and inf where there is nothing but noise."""
    size = np.abs(np.asarray(mean, dtype=np.float64))
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
    square = np.mean(values**2, axis=0)
    slope = target * np.mean(values, axis=0)
    factor = np.divide(slope, square, out=np.ones(target.shape), where=square > 0)
    residual = factor * values - target
    influence = residual * values / np.where(square > 0, square, 1)
    count = np.sqrt(len(values))
    return FactorEstimate(
        np.asarray(factor),
        np.asarray(influence.std(axis=0, ddof=1) / count),
        np.asarray(np.mean(residual**2, axis=0)),
        np.asarray((residual**2).std(axis=0, ddof=1) / count),
    )
