"""The whole family in plain float64 NumPy: the slow oracle of every optimizer test.

One flat array per parameter, one function per quantity, written from the definitions (equation
numbers are those of the paper, "supplement" is its errata and table) and from nothing else: this
file imports no part of svag. An anatomy is any object with the fields ``direction``, ``sign``,
``factor`` and ``relative_variance``.

Time t counts the gradients this parameter has seen, from 0.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """One step of one parameter: what was computed, and where it ended."""

    gradient: Array  # g_t, after maximize and coupled weight decay
    m: Array
    v: Array
    direction: Array
    gamma: Array
    update: Array  # lr * gamma * d
    theta: Array  # theta_{t+1}


# ------------------------------------------------------------------------------------- moments


def debiasing(beta: float, t: int) -> float:
    """1 - beta^(t+1), the denominator of Eqs. (4) and (5); in 28 digits, for it cancels."""
    return float(1 - Decimal(beta) ** (t + 1))


def moving_average(average: Array, value: Array, beta: float) -> Array:
    """The recurrence of Eqs. (4) and (5), before the debiasing."""
    return beta * average + (1.0 - beta) * value


def averaging_weights(beta: float, t: int) -> Array:
    """c_s, s = 0..t, with which the debiased average is sum_s c_s g_s (supplement, section 2)."""
    s = np.arange(t + 1)
    return (1.0 - beta) * beta ** (t - s).astype(np.float64) / debiasing(beta, t)


def rho(beta: float, t: int) -> float:
    """Eq. (21): the variance of m_t in units of the variance of one gradient."""
    b = Decimal(beta)
    return float((1 - b) * (1 + b ** (t + 1)) / ((1 + b) * (1 - b ** (t + 1))))


# ----------------------------------------------------------------------------------- variance


def spread(m: Array, v: Array) -> Array:
    """v - m^2: never negative with one beta in exact arithmetic, hence clamped at 0."""
    return np.maximum(v - m**2, 0.0)


def gradient_variance(m: Array, v: Array, beta: float, t: int) -> Array:
    """Eq. (22), s; where rho = 1 (t = 0 or beta = 0) it is 0/0 and s := 0 (section 4.4)."""
    if t == 0 or beta == 0.0:
        return np.zeros_like(m)
    return spread(m, v) / (1.0 - rho(beta, t))


def direction_variance(anatomy: Any, m: Array, v: Array, beta: float, t: int) -> Array:
    """The variance of what is moved along: s for g (Eq. 23), rho s for m (Eq. 25)."""
    s = gradient_variance(m, v, beta, t)
    return rho(beta, t) * s if anatomy.direction == "momentum" else s


def ratio_to_squared_mean(variance: Array, m: Array) -> Array:
    """variance / m^2; without a mean nothing is known of the direction: infinite."""
    moved = m != 0.0
    return np.divide(variance, m**2, out=np.full_like(m, np.inf), where=moved)


def corrected_relative_variance(anatomy: Any, m: Array, v: Array, beta: float, t: int) -> Array:
    """The relative variance of the direction (supplement, section 3)."""
    if t == 0 or beta == 0.0:
        return np.zeros_like(m)
    return ratio_to_squared_mean(direction_variance(anatomy, m, v, beta, t), m)


def raw_relative_variance(m: Array, v: Array, eps: float) -> Array:
    """Eq. (9) with the offset of Eq. (6): ((sqrt(v) + eps)^2 - m^2) / m^2, not clamped."""
    return ratio_to_squared_mean((np.sqrt(v) + eps) ** 2 - m**2, m)


def within_batch_variance(anatomy: Any, variances: list[Array], beta: float) -> Array:
    """The variance of the direction from those of the gradients (supplement, section 4).

    s_t for g; for m the variance of sum_s c_s g_s under independent sampling, sum_s c_s^2 s_s.
    """
    if anatomy.direction == "gradient":
        return variances[-1]
    weights = averaging_weights(beta, len(variances) - 1)
    return np.tensordot(weights**2, np.array(variances), axes=1)


# -------------------------------------------------------------------------------------- factor


def factor(kind: str, eta_sq: Array) -> Array:
    """gamma as a function of the relative variance: Eqs. (17), (8) and (10) with (16)."""
    if kind == "none":
        return np.ones_like(eta_sq)
    if kind == "svag":
        return 1.0 / (1.0 + eta_sq)
    if kind == "sqrt":
        return 1.0 / np.sqrt(1.0 + eta_sq)
    if kind == "erf":
        return np.array([_erf_factor(max(float(x), 0.0)) for x in eta_sq])
    raise ValueError(f"unknown factor {kind!r}")


def _erf_factor(eta_sq: float) -> float:
    return 1.0 if eta_sq == 0.0 else math.erf(1.0 / math.sqrt(2.0 * eta_sq))


# ----------------------------------------------------------------------------------------- run


def run(
    anatomy: Any,
    gradients: Iterable[ArrayLike | None],
    theta: ArrayLike,
    *,
    lr: float,
    beta: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    variances: Iterable[ArrayLike | None] | None = None,
) -> Iterator[Step | None]:
    """theta <- theta - lr gamma d, once per gradient; a missing gradient (None) yields None.

    ``beta`` is read by corrected rows, ``betas``, ``eps`` and ``amsgrad`` by raw ones.
    ``variances`` are those of the gradients, s_t, where they come from inside the mini-batches;
    None takes the variance from moving averages.
    """
    raw = anatomy.relative_variance == "raw"
    beta1, beta2 = betas if raw else (beta, beta)
    theta = np.array(theta, dtype=np.float64)
    m_tilde, v_tilde, v_largest = (np.zeros_like(theta) for _ in range(3))
    t = -1
    seen: list[Array] = []
    samples = itertools.repeat(None) if variances is None else variances
    for gradient, sample in zip(gradients, samples, strict=False):
        if gradient is None:
            yield None
            continue
        t += 1
        if sample is not None:
            seen.append(np.array(sample, dtype=np.float64))
        g = np.array(gradient, dtype=np.float64)
        if maximize:
            g = -g
        if decoupled_weight_decay:
            theta = theta * (1.0 - lr * weight_decay)
        else:
            g = g + weight_decay * theta

        m_tilde = moving_average(m_tilde, g, beta1)
        v_tilde = moving_average(v_tilde, g**2, beta2)
        v_largest = np.maximum(v_largest, v_tilde)
        m = m_tilde / debiasing(beta1, t)
        v = (v_largest if amsgrad else v_tilde) / debiasing(beta2, t)

        if raw:
            eta_sq = raw_relative_variance(m, v, eps)
        elif variances is not None:
            mean = m if anatomy.direction == "momentum" else g
            eta_sq = ratio_to_squared_mean(within_batch_variance(anatomy, seen, beta), mean)
        else:
            eta_sq = corrected_relative_variance(anatomy, m, v, beta, t)
        gamma = factor(anatomy.factor, eta_sq)
        d = m if anatomy.direction == "momentum" else g
        if anatomy.sign:
            d = np.sign(d)
        update = lr * gamma * d
        theta = theta - update
        yield Step(g, m, v, d, gamma, update, theta)


def error(theta: ArrayLike, reference: ArrayLike) -> float:
    """The largest |theta - ref| / max(|ref_i|, max|ref| / 100) over the coordinates i."""
    theta, reference = np.asarray(theta, np.float64), np.asarray(reference, np.float64)
    if reference.size == 0:
        return 0.0
    scale = np.maximum(np.abs(reference), 1e-2 * np.abs(reference).max())
    difference = np.abs(theta - reference)
    return float(np.divide(difference, scale, out=difference.copy(), where=scale > 0).max())
