"""Mean of the success probability when a gradient is put in place of its mean."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate
from scipy.special import gammaincinv, gammaln, ndtr, xlogy

from svag.errors import InvalidOption
from svag.theory.factors import Array
from svag.theory.signs import expected_sign_product


def expected_sign_confidence(ratio: ArrayLike, examples: int | None = None) -> Array:
    """E[Phi(|g|/sqrt(s))], the mean of Eq. (10) with a gradient g in place of its mean.

    g ~ N(grad, sigma^2), and s is its variance sigma^2 itself, or an estimate from B Gaussian
    examples, s ~ sigma^2 chi^2_(B-1)/(B-1). Known, with q = Phi(|grad|/(sqrt(2) sigma)),

        E = 1 - q (1 - q)

    and estimated it is the mean of 1 - P[Z sqrt(s) > |g|] over s. It overestimates the success
    probability Phi(|grad|/sigma) of small gradients (3/4 for 1/2 where there is none, 0.814 with
    two examples) and underestimates that of large ones (0.818 for 0.841 at |grad| = sigma, 0.928
    for 0.977 at 2 sigma). No function of g has the success probability as its mean: means of
    functions of g are analytic in grad, and the success probability is not, at grad = 0.

    Args:
        ratio: grad/sigma, either sign, inf allowed.
        examples: B >= 2, or None where the variance is known.

    Raises:
        InvalidOption: a ratio is NaN, or ``examples`` is below 2.

    Example:
        >>> expected_sign_confidence([0.0, 1.0, 2.0]).round(4)
        array([0.75  , 0.8177, 0.9275])
        >>> expected_sign_confidence([0.0], examples=2).round(4)
        array([0.8138])
    """
    a = np.abs(np.asarray(ratio, dtype=np.float64))
    if np.isnan(a).any():
        raise InvalidOption("ratio has the value nan; find out where it comes from")
    if examples is None:
        return _at_spread(a, 1.0)
    if not examples >= 2:
        raise InvalidOption(f"examples={examples!r} have no variance; it takes at least 2")
    half = (examples - 1) / 2
    constant = np.log(2) + half * np.log(half) - gammaln(half)
    ends = np.sqrt(gammaincinv(half, [1e-16, 0.5, 1 - 1e-15]) / half)  # of sqrt(s)/sigma

    def mean(x: float) -> float:
        def weighted(w: float) -> float:
            density = np.exp(constant - half * w**2 + xlogy(2 * half - 1, w))  # chi
            return float(_at_spread(np.asarray(x), w) * density)

        parts = (integrate.quad(weighted, *part, epsabs=1e-11) for part in (ends[:2], ends[1:]))
        return float(sum(part[0] for part in parts))

    return np.array([mean(x) for x in a.ravel()]).reshape(a.shape)


def _at_spread(a: Array, w: float) -> Array:
    """E[Phi(|X|/w)], X ~ N(a, 1): 1 - P[w Z - X > 0, w Z + X > 0] for a standard normal Z."""
    if w == 1:  # the two are independent
        tail = ndtr(a / np.sqrt(2))
        return np.asarray(1 - tail * ndtr(-a / np.sqrt(2)))
    size = np.hypot(1, w)
    product = expected_sign_product(-a / size, a / size, (w - 1) * (w + 1) / size**2)
    return np.asarray(1 - (1 + product) / 4)
