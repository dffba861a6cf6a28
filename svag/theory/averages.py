"""Exponential moving averages as weighted averages: their weights, rho, mean and variance (§4.1).

m_t = sum_s c_s g_s with c_s = (1 - beta) beta^(t-s) / (1 - beta^(t+1)), whose sum is 1.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.factors import Array


def debiasing(beta: float, t: int) -> float:
    """1 - beta^(t+1), the debiasing of Eqs. (4) and (5), without cancellation.

    Args:
        beta: decay, in [0, 1).
        t: steps taken before this one, >= 0.

    Raises:
        InvalidOption: beta or t is outside its range.

    Example:
        >>> debiasing(0.5, 2)
        0.875
    """
    check_decay(beta)
    if not 0 <= t < math.inf:
        raise InvalidOption(f"t={t!r} is no step; the first is t = 0")
    return -math.expm1((t + 1) * math.log(beta)) if beta else 1.0


def rho(beta: float, t: int) -> float:
    """Variance of the average m_t in units of the variance of one gradient (Eq. 21).

    rho(beta, t) = (1 - beta)(1 + beta^(t+1)) / ((1 + beta)(1 - beta^(t+1))) = sum_s c_s^2; 1 at
    t = 0, where the paper's §4.4 says 0 in error.

    This holds for gradients that are uncorrelated and have one variance, as Eq. (20) assumes. For
    others see :mod:`svag.theory.drift`.

    Args:
        beta: decay, in [0, 1).
        t: steps taken before this one, >= 0.

    Raises:
        InvalidOption: beta or t is outside its range.

    Example:
        >>> rho(0.9, 0), round(rho(0.9, 1000), 6)
        (1.0, 0.052632)
    """
    weight = debiasing(beta, t)
    return (1 - beta) * (2 - weight) / ((1 + beta) * weight)


def averaging_weights(beta: float, t: int) -> Array:
    """Weights c_0, ..., c_t of the gradients in m_t; their sum is 1.

    Args:
        beta: decay, in [0, 1).
        t: steps taken before this one, >= 0.

    Raises:
        InvalidOption: beta or t is outside its range.

    Example:
        >>> averaging_weights(0.5, 1).round(4)
        array([0.3333, 0.6667])
    """
    weight = debiasing(beta, t)
    with np.errstate(under="ignore"):
        return np.asarray((1 - beta) * float(beta) ** np.arange(t, -1, -1) / weight)


def mean_and_variance(gradients: ArrayLike, beta: float) -> tuple[Array, Array]:
    """m_t and v_t - m_t^2 of Eqs. (4) and (5) with one beta for both, without cancellation.

        v_t - m_t^2 = (1 - c)(v_(t-1) - m_(t-1)^2 + c (g_t - m_(t-1))^2)

    with c = c_t, the weight of the newest gradient; m_t = m_(t-1) + c (g_t - m_(t-1)). Once
    c = 1 - beta, this is beta times the moving average of (g_t - m_(t-1))^2: Adam with equal
    betas compares each gradient with the mean of those before it. (From the first step on it is
    beta times that average for the m and v of Eqs. (4) and (5) before they are debiased.)

    Subtracting m^2 from v instead loses all digits of the variance, in float32, where the mean is
    3,000 standard deviations away from 0. M-SVAG's factor m^2/(m^2 + rho s) does not suffer from
    that, since s is then small beside m^2: at mean/sd = 1, 10, ..., 10,000 its relative error by
    subtraction is at most 5e-7 (the largest at 1, from the rounding of m). So the optimizers,
    which have to keep ``exp_avg_sq`` as Adam does, gain nothing from this form.

    Args:
        gradients: g_0, ..., g_t along the first axis; float32 is computed in float32.
        beta: decay of both averages, in [0, 1).

    Returns:
        Both after every step, each of the shape of ``gradients``.

    Raises:
        InvalidOption: beta is outside its range, or there is no gradient.

    Example:
        >>> m, variance = mean_and_variance([1.0, 3.0], 0.5)
        >>> m.round(4), variance.round(4)
        (array([1.    , 2.3333]), array([0.    , 0.8889]))

    References:
        West (1979), Updating mean and variance estimates: an improved method.
    """
    g = np.asarray(gradients)
    g = g if g.dtype == np.float32 else g.astype(np.float64)
    if g.ndim == 0 or not len(g):
        raise InvalidOption(f"gradients of shape {g.shape} hold none; pass (t + 1, ...), t >= 0")
    means, variances = np.empty_like(g), np.empty_like(g)
    m = variance = np.zeros_like(g[0])
    for t, gradient in enumerate(g):
        c = g.dtype.type((1 - beta) / debiasing(beta, t))
        off = gradient - m
        m = m + c * off
        variance = (1 - c) * (variance + c * off * off)
        means[t], variances[t] = m, variance
    return means, variances


def check_decay(beta: float) -> None:
    """Refuse a decay outside [0, 1).

    Raises:
        InvalidOption: beta is not in [0, 1).
    """
    if not 0 <= beta < 1:
        raise InvalidOption(f"beta={beta!r} is not in [0, 1); 1 would never move")
