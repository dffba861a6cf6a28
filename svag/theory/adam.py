"""Adam's update taken apart into a sign and a factor, and put together again (§1.1)."""

import numpy as np
from numpy.typing import ArrayLike

from svag.errors import InvalidOption
from svag.theory.factors import Array, at_least_zero, finite


def adam_relative_variance(m: ArrayLike, v: ArrayLike) -> Array:
    """Adam's estimate of the relative variance from its two moments, (v - m^2)/m^2 (Eq. 9).

    Negative, down to -1, where Adam's two betas leave v below m^2; inf where m = 0.

    Args:
        m: first moment, debiased.
        v: second moment, debiased, >= 0; the two broadcast.

    Raises:
        InvalidOption: v is negative or NaN, or m is not finite.

    Example:
        >>> adam_relative_variance([2.0, 1.0, 0.0], [5.0, 0.5, 1.0])
        array([ 0.25, -0.5 ,   inf])
    """
    m, v = np.broadcast_arrays(finite("m", m), at_least_zero("v", v))
    mantissa, exponent = np.frexp(m)
    square = mantissa**2
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(v, -2 * exponent)  # v and m^2 in a power of 2 that m^2 fits into
    out = np.full(m.shape, np.inf)
    return np.asarray(np.divide(scaled - square, square, out=out, where=square > 0))


def adam_split(m: ArrayLike, v: ArrayLike, eps: float = 0.0) -> tuple[Array, Array]:
    """Split Adam's update direction into sign and factor (Eqs. 7 to 9).

        m/(sqrt(v) + eps) = sign(m) * gamma,   gamma = |m|/(sqrt(v) + eps)

    At eps = 0 gamma is (1 + eta^2)^(-1/2) with eta^2 = (v - m^2)/m^2
    (:func:`adam_relative_variance`); this form avoids the cancellation in v - m^2. It can exceed 1.

    Args:
        m: first moment, debiased.
        v: second moment, debiased, >= 0; the two broadcast.
        eps: Adam's epsilon, >= 0.

    Returns:
        ``(sign, factor)``, both 0 where m = 0.

    Raises:
        InvalidOption: v or eps is negative or NaN, both are 0 where m is not, or m is not finite.

    Example:
        >>> adam_split([-3.0, 0.0], [25.0, 1.0])
        (array([-1.,  0.]), array([0.6, 0. ]))
    """
    m, v = finite("m", m), at_least_zero("v", v)
    denominator = np.sqrt(v) + at_least_zero("eps", eps)
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
