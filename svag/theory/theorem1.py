"""Theorem 1: idealised SVAG converges like 1/t with a constant step size (§3.2).

How soon log-log axes show the slope -1 depends on the eigenbasis. Once the noise dominates, gamma
is grad^2/sigma^2. Axis-aligned, each coordinate then falls like 1/t by itself, and so does their
sum. Rotated, every gamma_i depends on all eigendirections, and direction k falls like
exp(-c lambda_k^2 A), A the integral of |grad|^2 over time. The slope is then shallower than -1
until only the directions of the smallest eigenvalues are left, which takes decades of t if the
noise dominates from the start.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from svag.anatomy import Anatomy
from svag.errors import InvalidOption
from svag.theory.dynamics import Contender
from svag.theory.factors import Array
from svag.theory.quadratic import StochasticQuadratic


@dataclass(frozen=True)
class Theorem1Constants:
    """What Theorem 1 assumes of a problem.

    sum_i sigma_i^2 <= c_v |grad f|^2 + M_v at every theta, f mu-strongly convex and L-smooth.

    Example:
        >>> Theorem1Constants(mu=0.1, L=1.0, c_v=0.0, M_v=4.0).L
        1.0
    """

    mu: float
    L: float
    c_v: float
    M_v: float


def theorem1_constants(problem: StochasticQuadratic) -> Theorem1Constants:
    """Return the constants of a stochastic quadratic problem, each the smallest possible.

    mu and L are the extreme eigenvalues of Q; the variances are the same everywhere, so that
    c_v = 0 and M_v = sum_i sigma_i^2 = nu^2 tr(Q^2).

    Example:
        >>> theorem1_constants(StochasticQuadratic(np.diag([1.0, 2.0]), np.zeros(2), 3.0))
        Theorem1Constants(mu=1.0, L=2.0, c_v=0.0, M_v=45.0)
    """
    eigenvalues = problem.eigenvalues
    return Theorem1Constants(
        mu=float(eigenvalues[0]),
        L=float(eigenvalues[-1]),
        c_v=0.0,
        M_v=float(np.trace(problem.gradient_covariance())),
    )


def theorem1_contenders(problem: StochasticQuadratic) -> dict[str, Contender]:
    """Return the methods to compare: all start with the step size 1/L of Theorem 1.

    ``"idealised SVAG"``, theta - g/(L (1 + sigma^2/grad^2)), keeps it; ``"SGD"`` keeps it, too,
    and ends at a noise floor; ``"SGD, 1/t"`` takes 1/(L + mu t), which Robbins and Monro's
    conditions allow.

    Example:
        >>> problem = StochasticQuadratic(np.diag([1.0, 2.0]), np.zeros(2), 3.0)
        >>> {name: contender.idealised for name, contender in theorem1_contenders(problem).items()}
        {'idealised SVAG': True, 'SGD': False, 'SGD, 1/t': False}
    """
    constants = theorem1_constants(problem)
    mu, smoothness = constants.mu, constants.L
    return {
        "idealised SVAG": Contender(Anatomy(factor="svag"), 1 / smoothness, idealised=True),
        "SGD": Contender(Anatomy(), 1 / smoothness),
        "SGD, 1/t": Contender(Anatomy(), lambda t: 1 / (smoothness + mu * t)),
    }


def theorem1_bound(constants: Theorem1Constants, start: float, steps: int) -> Array:
    """Bound the expected suboptimality e_t of idealised SVAG, t = 0, ..., steps.

    Smoothness with alpha = 1/L gives E[f_{t+1}] <= f_t - 1/(2L) sum_i gamma_i grad_i^2, Cauchy
    and Schwarz sum_i gamma_i grad_i^2 >= |grad|^4 / ((1 + c_v) |grad|^2 + M_v), and strong
    convexity |grad|^2 >= 2 mu e. The right-hand side being convex and increasing in |grad|^2,

        e_{t+1} = e_t - 1/(2L) x^2/((1 + c_v) x + M_v),   x = 2 mu e_t,

    bounds the expectation (Jensen), and falls like L M_v/(2 mu^2 t). This is Eq. (18) with its
    constant; the paper's own proof is in its appendix.

    Args:
        constants: of the problem.
        start: e_0 = f(theta_0) - f*.
        steps: number of steps.

    Raises:
        InvalidOption: not 0 < mu <= L < inf, a constant or the start is negative or not finite,
            or ``steps`` is negative.

    Example:
        >>> bound = theorem1_bound(Theorem1Constants(mu=1.0, L=2.0, c_v=0.0, M_v=1.0), 1.0, 10_000)
        >>> float(bound[0]), round(float(10_000 * bound[-1]), 1)  # L M_v/(2 mu^2) = 1 in the limit
        (1.0, 1.0)
    """
    mu, smoothness = constants.mu, constants.L
    c_v, M_v = constants.c_v, constants.M_v  # noqa: N806
    if not (0 < mu <= smoothness < np.inf and c_v >= 0 <= M_v and 0 <= start < np.inf):
        raise InvalidOption(
            f"{constants} and start={start!r}: it takes 0 < mu <= L and the others >= 0, all finite"
        )
    if steps < 0:
        raise InvalidOption(f"steps={steps!r} must be at least 0")
    e = np.empty(steps + 1)
    e[0] = start
    for t in range(steps):  # x^2/((1 + c_v) x + M_v), and no square leaves the range
        square = 2 * mu * float(e[t])
        noise = M_v / square if square > 0 else np.inf
        e[t + 1] = e[t] * (1 - mu / smoothness / (1 + c_v + noise))
    return e


def fitted_slope(t: ArrayLike, value: ArrayLike, *, decades: float = 1.0) -> float:
    """Fit the exponent k of value ~ t^k over the last decades, by least squares on logarithms.

    Args:
        t: positive times, ascending; a leading 0 is left out.
        value: positive values.
        decades: how far back from the last time.

    Raises:
        InvalidOption: shapes differ, fewer than two times are in range, or a value there is not
            positive and finite.

    Example:
        >>> t = np.arange(1, 101)
        >>> round(fitted_slope(t, 3.0 / t), 12)
        -1.0
    """
    t, value = _curve(t, value)
    tail = t >= t[-1] / 10**decades * (1 - 1e-12)
    x, y = np.log(t[tail]), _log(value[tail])
    if len(x) < 2:
        raise InvalidOption(f"{len(x)} time in the last {decades} decades; record at least 2")
    x = x - x.mean()
    return float(x @ y / (x @ x))


def local_slopes(t: ArrayLike, value: ArrayLike, *, decades: float = 0.5) -> tuple[Array, Array]:
    """Fit the exponent in a window around each time, where a window fits.

    Args:
        t: positive times, ascending; a leading 0 is left out.
        value: positive values.
        decades: width of the window.

    Returns:
        The centres of the windows and the exponents there.

    Raises:
        InvalidOption: as :func:`fitted_slope`.

    Example:
        >>> t = np.arange(1, 101)
        >>> _, slopes = local_slopes(t, 1 / t**2)
        >>> bool(np.allclose(slopes, -2))
        True
    """
    t, value = _curve(t, value)
    half = 10 ** (decades / 2)
    centres = t[(t >= t[0] * half) & (t <= t[-1] / half)]
    slopes = []
    for centre in centres:
        window = t <= centre * half
        slopes.append(fitted_slope(t[window], value[window], decades=decades))
    return centres, np.array(slopes)


def _curve(t: ArrayLike, value: ArrayLike) -> tuple[Array, Array]:
    t, value = np.asarray(t, np.float64), np.asarray(value, np.float64)
    if t.ndim != 1 or t.shape != value.shape:
        raise InvalidOption(f"t has shape {t.shape} and value {value.shape}; they must be (R,)")
    t, value = t[t > 0], value[t > 0]
    if len(t) < 2 or not (np.diff(t) > 0).all():
        raise InvalidOption("t must hold at least two positive times, ascending")
    return t, value


def _log(value: Array) -> Array:
    if not ((value > 0) & np.isfinite(value)).all():
        raise InvalidOption("a slope on log-log axes needs values that are positive and finite")
    return np.log(value)
