"""Variance adaptation factors gamma, from the relative variance r of a direction.

Lemma 1 gives the factor that brings a stochastic direction closest, in expectation, to the one
it estimates: 1/(1 + r) if its magnitude is kept (Eq. 15), and P[right sign] - P[wrong sign] if
only its sign is (Eq. 16): erf(1/sqrt(2r)) for a Gaussian, which Adam's (1 + r)^(-1/2) is close to.

They are functions of ``dispersion`` = 1 + r = E[p^2]/E[p]^2, since that is what Adam has: its
v/m^2 can be far below 1, where r + 1 would have lost it. Each computes in the memory of its first
operand, which is not to be used afterwards.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch

from svag.anatomy import Factor
from svag.optim.arithmetic import Arithmetic, Operand


def dispersion(ops: Arithmetic, variance: Operand, mean: Operand, dtype: torch.dtype) -> Operand:
    """1 + r with r = variance/mean^2 (Eq. 9), in [1, inf].

    Where the squares underflow (0/0: float32 gradients below about 1e-19) no variance was seen
    and r = 0; where the variance overflows (above about 1e18) r = inf, since the square is bounded.
    Neither becomes NaN.
    """
    range_ = torch.finfo(dtype)
    square = ops.clamp_max_(ops.mul(mean, mean), range_.max)
    return ops.add_(ops.div_(variance, ops.add_(square, range_.tiny)), 1)


def raw_dispersion(ops: Arithmetic, denominator: Operand, mean: Operand) -> Operand:
    """Adam's 1 + r = v/m^2 (Eqs. 7 and 9), sqrt(v) being ``denominator``; inf where m = 0.

    It can be below 1, because Adam averages m and v over different ranges.
    """
    ratio = ops.div(denominator, mean)
    return ops.mul(ratio, ratio)


def svag(ops: Arithmetic, dispersion: Operand) -> Operand:
    """1/(1 + r), Eq. (15): optimal for a direction that keeps its magnitude."""
    return ops.reciprocal_(dispersion)


def sqrt(ops: Arithmetic, dispersion: Operand) -> Operand:
    """(1 + r)^(-1/2), Eq. (8): Adam's."""
    return ops.rsqrt_(dispersion)


def erf(ops: Arithmetic, dispersion: Operand) -> Operand:
    """Probability of the right sign minus that of the wrong one, if Gaussian (Eqs. 10, 16).

    gamma = erf(1/sqrt(2r)). Below r = 1e-3 it is 1 in every dtype (1 - erf(22) < 1e-212); the
    clamp keeps its derivative finite at r = 0, and is what a negative raw r meets.
    """
    eta_sq = ops.clamp_min_(ops.add_(dispersion, -1), 1e-3)
    return ops.erf(ops.rsqrt_(ops.mul_(eta_sq, 2)))


FACTORS: Final[Mapping[Factor, Callable[[Arithmetic, Operand], Operand]]] = {
    "svag": svag,
    "sqrt": sqrt,
    "erf": erf,
}
