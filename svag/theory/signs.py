"""Second moments of the signs of correlated Gaussians, which E[s^T Q s] is made of.

Two independent ways, both exact to rounding: Owen's T function for each pair, and the Hermite
expansion of the sign, which turns the sum over all pairs into a few products with matrices.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import owens_t

from svag.errors import InvalidOption
from svag.theory.factors import Array, expected_sign

_CERTAIN: Final = 8.5  # standard deviations beyond which T(h, a) <= erfc(h/sqrt(2))/4 < 1e-17
_FAR: Final = 40.0  # beyond which nothing changes any more; stands for infinity
_STRONG: Final = 0.7  # correlation above which a pair takes Owen's T, below it the expansion


def expected_sign_product(h: ArrayLike, k: ArrayLike, correlation: ArrayLike) -> Array:
    """E[sign(X) sign(Y)] for X ~ N(h, 1) and Y ~ N(k, 1) with correlation r.

    Equal to 4 Phi2(h, k; r) - 2 Phi(h) - 2 Phi(k) + 1, Phi2 being the bivariate normal
    distribution. For h, k >= 0, to which (X, h, r) -> (-X, -h, -r) leads, that is

        1 - 4 T(h, (k/h - r)/sqrt(1 - r^2)) - 4 T(k, (h/k - r)/sqrt(1 - r^2))

    with Owen's T. Limits: 2/pi arcsin(r) at h = k = 0; 1 - 2 |Phi(h) - Phi(k)| at r = 1;
    erf(h/sqrt(2)) erf(k/sqrt(2)) at r = 0, and erf(k/sqrt(2)) at h = inf.

    Args:
        h: mean of X in its standard deviations, +-inf where it has none.
        k: mean of Y likewise.
        correlation: r in [-1, 1]. All three broadcast.

    Returns:
        The expectation, elementwise, with an absolute error of a few round-offs.

    Raises:
        InvalidOption: a correlation is outside [-1, 1], or h or k is NaN.

    Example:
        >>> expected_sign_product([0.0, np.inf], [0.0, 1.0], 0.5).round(4)
        array([0.3333, 0.6827])

    References:
        Owen (1956), Tables for computing bivariate normal probabilities.
    """
    h, k, r = (np.asarray(x, dtype=np.float64) for x in (h, k, correlation))
    if not np.all(np.abs(r) <= 1) or np.isnan(h).any() or np.isnan(k).any():
        raise InvalidOption(
            "a correlation is outside [-1, 1], or a mean is NaN; means may be infinite"
        )
    flip = np.where((h < 0) != (k < 0), -1.0, 1.0)
    h, k, r = np.minimum(np.abs(h), _FAR), np.minimum(np.abs(k), _FAR), flip * r
    return np.asarray(flip * (1 - 4 * (_owen(h, k, r) + _owen(k, h, r))))


def expected_sign_form(Q: Array, ratio: Array, correlation: Array) -> Array:  # noqa: N803
    """E[s^T Q s] with s = sign(g), for many means of a Gaussian g at once.

    The signs have the expansion sign(h + z) = sum_n a_n(h) He_n(z)/sqrt(n!) in Hermite
    polynomials, so that (Mehler) E[s_i s_j] = sum_n r_ij^n a_n(h_i) a_n(h_j) and

        E[s^T Q s] = tr Q + sum_n a_n^T W_n a_n,   [W_n]_ij = q_ij r_ij^n for i != j, else 0,

    with a_0 = erf(h/sqrt(2)) and a_n = 2 phi(h) He_(n-1)(-h)/sqrt(n!). Since sum_n a_n^2 = 1,
    what terms beyond n = N add to a pair is at most |r|^(N+1): they stop where it is below
    round-off. Pairs with |r| > 0.7 are left to :func:`expected_sign_product`.

    Args:
        Q: symmetric, (d, d).
        ratio: h = E[g]/std[g], (n, d), +-inf where a std is 0 (and the mean is not).
        correlation: r of g, (d, d).

    Returns:
        One number for each of the n means.

    Raises:
        InvalidOption: the shapes do not fit, a correlation is outside [-1, 1], or Q or a ratio
            is NaN.

    Example:
        >>> Q, h = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[np.inf, np.inf], [0.0, 0.0]])
        >>> expected_sign_form(Q, h, np.eye(2))  # certain signs; signs that are pure chance
        array([6., 4.])
    """
    _check_form(Q, ratio, correlation)
    h = np.clip(ratio, -_FAR, _FAR)
    weights = Q - np.diag(np.diagonal(Q))
    size = np.where(weights != 0, np.abs(correlation), 0)
    strong = size > _STRONG
    total = np.trace(Q) + _owen_form(h, np.triu(np.where(strong, 2 * weights, 0)), correlation)
    weights[strong] = size[strong] = 0
    largest = size.max()
    terms = math.ceil(math.log(1e-17) / math.log(largest)) if largest > 0 else 0
    a, before = expected_sign(h), np.zeros_like(h)
    for n in range(terms + 1):
        if n == 1:
            a = 2 / math.sqrt(2 * math.pi) * np.exp(-0.5 * h**2)
        elif n > 1:
            a, before = (-h * a - (n - 2) / math.sqrt(n - 1) * before) / math.sqrt(n), a
        total += np.sum(a * (a @ weights), axis=1)
        weights *= correlation
    return np.asarray(total)


def _check_form(Q: Array, ratio: Array, correlation: Array) -> None:  # noqa: N803
    """Refuse what has no expectation."""
    d = len(Q)
    if Q.shape != (d, d) or correlation.shape != (d, d) or np.ndim(ratio) != 2:
        raise InvalidOption(
            f"Q of shape {Q.shape}, ratio {np.shape(ratio)} and correlation {correlation.shape}: "
            "they must be (d, d), (n, d) and (d, d)"
        )
    if np.shape(ratio)[1] != d or not np.all(np.abs(correlation) <= 1):
        raise InvalidOption(
            f"ratio has shape {np.shape(ratio)}, of which the last must be {d}; correlations must "
            "lie in [-1, 1]"
        )
    if not np.isfinite(Q).all() or np.isnan(ratio).any():
        raise InvalidOption("Q must be finite, and a ratio a number, +-inf allowed")


def _owen(h: Array, k: Array, r: Array) -> Array:
    """T(h, (k/h - r)/sqrt(1 - r^2)) for h, k >= 0; 0 where h = k and r = 1."""
    h, k, r = np.broadcast_arrays(h, k, r)
    out = np.zeros(h.shape)
    open_ = h < _CERTAIN
    h, k, r = h[open_], k[open_], r[open_]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        excess = np.divide(k - h, h, out=np.zeros(h.shape), where=h != k)  # k/h - 1, no rounding
        bound = (excess + (1 - r)) / np.sqrt((1 - r) * (1 + r))
    out[open_] = owens_t(h, np.where(np.isnan(bound), 0.0, bound))
    return out


def _owen_form(h: Array, weights: Array, correlation: Array) -> Array:
    """sum_ij w_ij E[s_i s_j] over the pairs that have weight, pair by pair."""
    row, column = np.nonzero(weights)
    weight, r = weights[row, column], correlation[row, column]
    total = np.zeros(len(h))
    block = max(1, (1 << 18) // max(1, len(row)))  # rows, to bound memory
    for n in range(0, len(h), block):
        part = h[n : n + block]
        total[n : n + block] = expected_sign_product(part[:, row], part[:, column], r) @ weight
    return total
