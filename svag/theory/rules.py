"""How methods turn gradients into updates: theta <- theta - lr * gamma * d.

A rule returns gamma * d of one step and keeps the moving averages between steps. Rows of
:mod:`svag.anatomy` are written from the paper's equations here, in float64 and apart from
:mod:`svag.optim`; AdaGrad and RMSProp, which are no rows of that table, stand beside them.
Conventions: sign(0) = 0 and 0/0 := 0, so that a coordinate without a gradient does not move.
Averages of squares are kept as their roots, since g^2 leaves the range of float64 from 1e154 on
and below 1e-154, where g and its factor do not.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from svag.anatomy import Anatomy
from svag.errors import InvalidOption
from svag.theory.averages import check_decay, debiasing, rho
from svag.theory.factors import Array, expected_sign


class Rule(Protocol):
    """Turns the gradient of each step into the update gamma * d.

    Example:
        >>> rule: Rule = AnatomyRule(Anatomy(sign=True))
        >>> rule(np.array([0.2, -3.0, 0.0]))
        array([ 1., -1.,  0.])
    """

    def __call__(self, gradient: Array, eta_sq: Array | None = None) -> Array:
        """Return gamma * d.

        Args:
            gradient: g_t, any shape, the same at every step.
            eta_sq: true relative variance of each entry of g_t, for rules that do not estimate it.
        """
        ...


def ratio(numerator: Array | float, denominator: Array, *, undefined: float = 0.0) -> Array:
    """Divide elementwise.

    Args:
        numerator: of a shape that broadcasts with the denominator's.
        denominator: any shape.
        undefined: the result wherever the denominator is 0.
    """
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), undefined)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator != 0))


class AnatomyRule:
    """A row of the table, with relative variances estimated from moving averages or known.

    Estimated, they are (Eqs. 22 to 25) s/m^2 for g and rho s/m^2 for m, with
    s_t = (v_t - m_t^2)/(1 - rho(beta, t)) and s_0 = 0, or Adam's raw (v - m^2)/m^2 (Eq. 9) with
    sqrt(v) + eps in place of sqrt(v) (Eq. 6). Known (``idealised``), they are the
    eta_t^2 = sigma_t^2/grad L_t^2 that the caller hands over (Eq. 17), times rho for m (Eq. 24).

    Args:
        anatomy: direction and factor.
        betas: one decay for all averages; raw rows take two.
        eps: Adam's; only raw rows use it.
        idealised: use known relative variances.

    Raises:
        InvalidOption: the anatomy's variance comes from a mini-batch, which one gradient does not
            hold; it is raw and idealised at once; or a decay is not in [0, 1).

    Example:
        >>> m_svag = AnatomyRule(Anatomy("momentum", factor="svag"), betas=(0.5,))
        >>> m_svag(np.array([1.0, 1.0]))  # one gradient, no variance yet
        array([1., 1.])
        >>> m_svag(np.array([1.0, -1.0]))  # the second entry has changed its sign
        array([ 1.        , -0.03030303])
    """

    def __init__(
        self,
        anatomy: Anatomy,
        betas: Sequence[float] = (0.9,),
        eps: float = 1e-8,
        *,
        idealised: bool = False,
    ) -> None:
        self.anatomy = anatomy
        self.idealised = idealised and anatomy.adapted
        self._averaged = anatomy.direction == "momentum" or (anatomy.adapted and not idealised)
        self.beta, self.beta2 = _decays(anatomy, betas) if self._averaged else (0.0, 0.0)
        self.eps = eps
        self.t = -1
        self._m: Array | float = 0.0
        self._root: Array | float = 0.0
        if anatomy.variance == "within-batch":
            raise InvalidOption(
                "variance='within-batch' needs the gradient of each example; use "
                "variance='moving-average' or idealised=True"
            )
        if self.idealised and anatomy.raw:
            raise InvalidOption(
                "relative_variance='raw' is an estimate, so that idealised=True contradicts it; "
                "use relative_variance='corrected'"
            )

    def __call__(self, gradient: Array, eta_sq: Array | None = None) -> Array:
        """Return gamma * d for the next gradient; ``eta_sq`` is read by idealised rules."""
        self.t += 1
        anatomy = self.anatomy
        mean = self._average(gradient) if self._averaged else gradient
        direction = mean if anatomy.direction == "momentum" else gradient
        if anatomy.sign:
            direction = np.sign(direction)
        if not anatomy.adapted:
            return direction
        return self._factor(self._dispersion(gradient, mean, eta_sq)) * direction

    def _average(self, gradient: Array) -> Array:
        """m_t, debiased (Eq. 4)."""
        self._m = self.beta * self._m + (1 - self.beta) * gradient
        return self._m / debiasing(self.beta, self.t)

    def _root_mean_square(self, gradient: Array) -> Array:
        """sqrt(v_t), debiased (Eq. 5)."""
        self._root = _averaged_root(self._root, gradient, self.beta2)
        return self._root / math.sqrt(debiasing(self.beta2, self.t))

    def _dispersion(self, gradient: Array, mean: Array, eta_sq: Array | None) -> Array:
        """1 + r, r being the relative variance of the direction; inf where its mean is 0."""
        weight = rho(self.beta, self.t) if self.anatomy.direction == "momentum" else 1.0
        if self.idealised:
            if eta_sq is None:
                raise InvalidOption("an idealised rule needs the true relative variance, eta_sq")
            return 1 + weight * eta_sq
        root = self._root_mean_square(gradient)
        if self.anatomy.raw:
            return ratio(root + self.eps, np.abs(mean), undefined=np.inf) ** 2
        if self.t == 0 or self.beta == 0:
            return np.ones_like(mean)
        size = ratio(root, np.abs(mean), undefined=np.inf)  # sqrt(v)/|m|
        s = np.maximum((size - 1) * (size + 1), 0) / (1 - rho(self.beta, self.t))  # s/m^2
        return 1 + weight * s

    def _factor(self, dispersion: Array) -> Array:
        """Return gamma of 1 + r (Eqs. 15, 8, and 10 with 16)."""
        if self.anatomy.factor == "svag":
            return 1 / dispersion
        if self.anatomy.factor == "sqrt":
            return 1 / np.sqrt(dispersion)
        eta = np.sqrt(np.maximum(dispersion - 1, 0))
        return expected_sign(ratio(1.0, eta, undefined=np.inf))


class AdaGrad:
    """g_t / sqrt(sum of all g_s^2 so far), Duchi et al. (2011), without an eps.

    Example:
        >>> rule = AdaGrad()
        >>> [float(rule(np.array([2.0]))[0]) for _ in range(4)][::3]
        [1.0, 0.5]
    """

    def __init__(self) -> None:
        self._root: Array | float = 0.0

    def __call__(self, gradient: Array, eta_sq: Array | None = None) -> Array:
        """Return the update for the next gradient."""
        self._root = np.hypot(self._root, gradient)
        return ratio(gradient, self._root)


class RMSProp:
    """g_t / sqrt(v~_t), v~ the average of g^2, Tieleman & Hinton (2012).

    Without debiasing and without an eps.

    Args:
        beta: decay of v~, in [0, 1).

    Raises:
        InvalidOption: beta is outside its range.

    Example:
        >>> float(RMSProp(beta=0.75)(np.array([3.0]))[0])  # 3/sqrt(0.25 * 9)
        2.0
    """

    def __init__(self, beta: float = 0.99) -> None:
        check_decay(beta)
        self.beta = beta
        self._root: Array | float = 0.0

    def __call__(self, gradient: Array, eta_sq: Array | None = None) -> Array:
        """Return the update for the next gradient."""
        self._root = _averaged_root(self._root, gradient, self.beta)
        return ratio(gradient, self._root)


def _averaged_root(root: Array | float, gradient: Array, beta: float) -> Array:
    """sqrt(beta root^2 + (1 - beta) g^2), without squares that leave the range of float64."""
    return np.asarray(np.hypot(math.sqrt(beta) * root, math.sqrt(1 - beta) * gradient))


def _decays(anatomy: Anatomy, betas: Sequence[float]) -> tuple[float, float]:
    """Return the decays of m and of v."""
    wanted = 2 if anatomy.raw and anatomy.adapted else 1
    if len(betas) != wanted:
        raise InvalidOption(
            f"betas={tuple(betas)!r}: {anatomy} averages with {wanted} decay(s); pass {wanted}"
        )
    for beta in betas:
        check_decay(beta)
    return betas[0], betas[-1]
