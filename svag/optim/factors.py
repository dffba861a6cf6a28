"""Variance adaptation factors gamma as functions of the relative variance r = ``eta_sq``.

Lemma 1 gives the factor that brings a stochastic direction closest, in expectation, to the one
it estimates: 1/(1 + r) if its magnitude is kept (Eq. 15), and P[right sign] - P[wrong sign] if
only its sign is (Eq. 16): erf(1/sqrt(2r)) for a Gaussian, which Adam's (1 + r)^(-1/2) is close to.

Each function computes in the memory of its first operand, which is not to be used afterwards.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch

from svag.anatomy import Factor
from svag.optim.arithmetic import Arithmetic, Operand


def relative_variance(
    ops: Arithmetic, variance: Operand, mean: Operand, dtype: torch.dtype
) -> Operand:
    """Variance over squared mean, r (Eq. 9), in [0, inf].

    Where the squares underflow (0/0: float32 gradients below about 1e-19) no variance was seen
    and r = 0; where they overflow (above about 1e18) r = inf. Neither becomes NaN.
    """
    square = ops.add_(ops.mul(mean, mean), torch.finfo(dtype).tiny)
    return ops.nan_to_num_(ops.div_(variance, square), nan=torch.inf, posinf=torch.inf)


def raw_relative_variance(ops: Arithmetic, denominator: Operand, mean: Operand) -> Operand:
    """Adam's relative variance, (v - m^2)/m^2 with sqrt(v) + eps for sqrt(v) (Eqs. 6 to 9).

    It can be negative, as low as -1, because Adam averages m and v over different ranges; inf
    where m = 0.
    """
    ratio = ops.div(denominator, mean)
    ratio = ops.add_(ops.mul(ratio, ratio), -1)
    return ops.nan_to_num_(ratio, nan=torch.inf, posinf=torch.inf)


def svag(ops: Arithmetic, eta_sq: Operand) -> Operand:
    """1/(1 + r), Eq. (15): optimal for a direction that keeps its magnitude."""
    return ops.reciprocal_(ops.add_(eta_sq, 1))


def sqrt(ops: Arithmetic, eta_sq: Operand) -> Operand:
    """(1 + r)^(-1/2), Eq. (8): Adam's."""
    return ops.rsqrt_(ops.add_(eta_sq, 1))


def erf(ops: Arithmetic, eta_sq: Operand) -> Operand:
    """Success minus failure, erf(1/sqrt(2r)) (Eqs. 10, 16): optimal for a Gaussian's sign.

    Below r = 1e-3 it is 1 in every dtype (1 - erf(22) < 1e-212); the clamp keeps its derivative
    finite at r = 0, and is what a negative raw r meets.
    """
    return ops.erf_(ops.rsqrt_(ops.mul_(ops.clamp_min_(eta_sq, 1e-3), 2)))


FACTORS: Final[Mapping[Factor, Callable[[Arithmetic, Operand], Operand]]] = {
    "svag": svag,
    "sqrt": sqrt,
    "erf": erf,
}
