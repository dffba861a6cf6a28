"""The two estimates of the variance for gradients that drift or depend on one another.

Eqs. (19) to (25) assume that mean and variance stay the same and that gradients are independent
(Assumption 1). Without that:

- s_t = (v_t - m_t^2)/(1 - rho), from moving averages, counts the movement of the mean as noise;
- r_t = sum_s c_s^2 s_s, from inside the mini-batches, sees neither how the mean moves nor how
  gradients at different steps depend on one another, both of which are in the variance of m_t.

Everything is about one coordinate; arrays hold one number for each step.
"""

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.averages import averaging_weights, check_decay
from svag.theory.factors import Array

Method = Literal["sgd", "m-sgd"]
_METHODS: Final = get_args(Method)


def expected_variance_estimate(
    means: ArrayLike, variances: ArrayLike, beta: float, *, corrected: bool = True
) -> float:
    """E[s_t] of Eq. (22) along a path of means, for independent gradients.

        E[v_t - m_t^2] = sum_s c_s (mu_s - mu)^2 + sum_s (c_s - c_s^2) sigma_s^2,
        mu = sum_s c_s mu_s

    divided by 1 - rho = 1 - sum_s c_s^2. With one variance sigma^2 that is sigma^2 + (weighted
    variance of the path)/(1 - rho): drift counts as noise.

    Args:
        means: mu_0, ..., mu_t, the true gradient at each step, (t + 1,), t >= 1.
        variances: sigma_s^2 >= 0 of each gradient, or one for all.
        beta: decay of both averages, in (0, 1).
        corrected: False omits the division by 1 - rho, as Adam does.

    Raises:
        InvalidOption: there are fewer than two steps, beta is outside its range (at 0 the
            estimate is 0/0), a variance is negative, or something is not finite.

    Example:
        >>> round(expected_variance_estimate(np.full(9, 3.0), 2.0, 0.9), 12)
        2.0
        >>> steady = expected_variance_estimate(0.3 * np.arange(400), 1.0, 0.9)
        >>> round(steady, 6), round(1.0 + linear_drift_bias(0.3, 0.9), 6)
        (9.55, 9.55)
    """
    mu, sigma_sq = np.broadcast_arrays(np.asarray(means, np.float64), variances)
    if mu.ndim != 1 or len(mu) < 2 or not (np.isfinite(mu).all() and np.isfinite(sigma_sq).all()):
        raise InvalidOption(
            f"means of shape {mu.shape} must be a vector of at least two finite numbers, and "
            "variances finite"
        )
    if (sigma_sq < 0).any():
        raise InvalidOption(f"variances has the value {sigma_sq.min()}; it must be >= 0")
    if beta == 0:
        raise InvalidOption("beta=0 averages nothing: Eq. (22) is 0/0; pass a beta in (0, 1)")
    c = averaging_weights(beta, len(mu) - 1)
    drift = c @ (mu - c @ mu) ** 2
    expected = drift + (c * (1 - c)) @ sigma_sq
    return float(expected / (c @ (1 - c)) if corrected else expected)


def linear_drift_bias(slope: float, beta: float) -> float:
    """Bias of s_t in the long run, where the mean gradient changes by b each step.

        b^2 (1 + beta)/(2 (1 - beta)^2)

    It is 95 b^2 at beta = 0.9: a drift of a tenth of a standard deviation a step doubles s_t.

    Args:
        slope: b, the change of the mean gradient a step.
        beta: decay of both averages, in [0, 1). At 0 it is the limit of small beta, b^2/2.

    Raises:
        InvalidOption: beta is outside its range.

    Example:
        >>> round(linear_drift_bias(0.1, 0.9), 12)
        0.95
    """
    check_decay(beta)
    return slope * slope * (1 + beta) / (2 * (1 - beta) ** 2)


def variance_of_average(covariance: ArrayLike, beta: float) -> float:
    """Variance of m_t, sum_rs c_r c_s cov[g_r, g_s], for gradients that are not independent.

    Eq. (20) keeps the diagonal only, and one variance: rho sigma^2.

    Args:
        covariance: of g_0, ..., g_t, of shape (t + 1, t + 1), symmetric.
        beta: decay, in [0, 1).

    Raises:
        InvalidOption: the matrix is not square, symmetric and finite, or beta is outside its
            range.

    Example:
        >>> from svag.theory.averages import rho
        >>> round(variance_of_average(np.eye(50), 0.9) / rho(0.9, 49), 12)
        1.0
        >>> round(variance_of_average(np.ones((50, 50)), 0.9), 12)  # one gradient over and over
        1.0
    """
    matrix = np.asarray(covariance, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise InvalidOption(
            f"covariance of shape {matrix.shape} must be square, (t + 1, t + 1), and finite"
        )
    if not len(matrix) or np.abs(matrix - matrix.T).max() > 1e-10 * np.abs(matrix).max():
        raise InvalidOption("covariance is empty or not symmetric; use (C + C.T) / 2")
    c = averaging_weights(beta, len(matrix) - 1)
    return float(c @ matrix @ c)


def epoch_covariance(batches: int, steps: int) -> Array:
    """Covariance of mini-batch gradients drawn epoch by epoch without replacement, at one theta.

        cov[g_r, g_s]/sigma^2 = (1 if r = s, else 0) - (1/N if r and s are in one epoch, else 0)

    The -1/N comes from the N mini-batches of an epoch, whose mean is the full gradient exactly.
    sigma^2 = S^2/B for mini-batches of size B and the variance S^2 over the M data, with the
    divisor M - 1; inside a mini-batch s estimates it without bias. Every epoch is shuffled anew.

    Args:
        batches: N, mini-batches of one size that make an epoch.
        steps: t + 1, how many gradients, the first of which begins an epoch.

    Raises:
        InvalidOption: either is below 1.

    Example:
        >>> epoch_covariance(2, 3)
        array([[ 0.5, -0.5,  0. ],
               [-0.5,  0.5,  0. ],
               [ 0. ,  0. ,  0.5]])
    """
    if batches < 1 or steps < 1:
        raise InvalidOption(f"batches={batches!r}, steps={steps!r}: both must be at least 1")
    epoch = np.arange(steps) // batches
    together = epoch[:, None] == epoch
    return np.asarray(np.eye(steps) - together / batches)


def stationary_overestimate(curvature_step: float, beta: float, method: Method = "sgd") -> float:
    """Ratio of r_t to the variance of m_t along a stationary path.

    On a quadratic of one dimension with curvature lam and independent noise sigma^2, a constant
    step size alpha leads to a stationary path, a = alpha lam. Each step takes back a share a of the
    noise of the steps before, so that successive gradients are negatively correlated, which a
    mini-batch does not see: r_t tends to sigma^2 (1 - beta)/(1 + beta), but

        SGD:    var[m] = 2 (1 - beta)^2 sigma^2 / ((1 - phi beta)(1 + phi)(1 + beta)),
                phi = 1 - a;      r/var[m] = (1 - phi beta)(1 + phi)/(2 (1 - beta))
        M-SGD:  var[m] = 2 (1 - beta) sigma^2 / (2 (1 + beta) - (1 - beta) a);
                r/var[m] = 1 - a (1 - beta)/(2 (1 + beta))

    At a = 0.1, beta = 0.9 that is 1.805 along the path of SGD, which does not use m, and 0.997
    along that of M-SGD, which moves by m.

    Args:
        curvature_step: a = alpha lam, in (0, 2) for SGD, in (0, 2 (1 + beta)/(1 - beta)) for
            M-SGD: beyond it there is no stationary path.
        beta: decay of m, in [0, 1).
        method: whose path.

    Raises:
        InvalidOption: a, beta or the method is outside its set.

    Example:
        >>> round(stationary_overestimate(0.1, 0.9), 6)
        1.805
        >>> round(stationary_overestimate(0.1, 0.9, "m-sgd"), 6)
        0.997368
    """
    check_decay(beta)
    if method not in _METHODS:
        raise InvalidOption(f"method={method!r}; choose one of {', '.join(map(repr, _METHODS))}")
    most = 2.0 if method == "sgd" else 2 * (1 + beta) / (1 - beta)
    a = curvature_step
    if not 0 < a < most:
        raise InvalidOption(f"curvature_step={a!r} is not in (0, {most:.6g}): no stationary path")
    if method == "sgd":
        return (1 - beta + a * beta) * (2 - a) / (2 * (1 - beta))
    return 1 - a * (1 - beta) / (2 * (1 + beta))
