"""What a fused engine is told: the loop to compile, and a step's numbers by name.

A fused engine updates every tensor of a model in one call. What decides the shape of its loop is
a :class:`Kernel`, fixed when the loop is compiled; everything else is a number that the loop
reads, so that a schedule, a group's own options or a late gradient compile nothing.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from svag.anatomy import METHODS, Anatomy, Factor
from svag.optim.rule import Rule

_ADAM = METHODS["adam"].anatomy

REAL: Final = {torch.complex64: torch.float32, torch.complex128: torch.float64}
"""Complex numbers are stored as pairs of these."""


class Kernel(NamedTuple):
    """The switches of a loop.

    Attributes:
        momentum: the direction is m, else g.
        sign: only its sign is kept.
        factor: gamma.
        raw: gamma is of Adam's relative variance.
        adam: the row whose sign and factor make m/(sqrt(v) + eps).
        within_batch: the variance is of the mini-batch.
        amsgrad: v~ is the largest so far.
        decays: weight decay is added to the gradient.
        alters: gradients are multiplied by a number first (ascent, a scaled loss), and parameters
            too (decoupled weight decay). One switch for both, and on where there is any decay:
            a product costs little, and each switch doubles what is compiled.
        param: dtype of parameters and gradients.
        state: dtype of the moving averages.
        dither_param: round parameters stochastically (bfloat16).
        dither_state: round the averages stochastically (bfloat16).
    """

    momentum: bool
    sign: bool
    factor: Factor
    raw: bool
    adam: bool
    within_batch: bool
    amsgrad: bool
    decays: bool
    alters: bool
    param: torch.dtype
    state: torch.dtype
    dither_param: bool
    dither_state: bool

    def without_options(self) -> "Kernel":
        """Return what has to be alike of parameters that are updated in one call."""
        return self._replace(decays=False, alters=False)

    @classmethod
    def united(cls, kernels: Sequence["Kernel"]) -> "Kernel":
        """Return the loop for kernels that differ by their groups' options.

        It does what any of them does; the numbers of a group leave undone what is not its own.
        """
        return kernels[0]._replace(
            decays=any(kernel.decays for kernel in kernels),
            alters=any(kernel.alters for kernel in kernels),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the tensors that the loop reads beside parameter and gradient."""
        return (
            *("exp_avg",) * self.averages_gradient,
            *("exp_avg_sq",) * self.averages_square,
            *("max_exp_avg_sq",) * self.amsgrad,
            *("exp_avg_var",) * (self.within_batch and self.momentum),
            *("grad_var",) * self.within_batch,
            *("step",) * (self.averages_gradient or self.averages_square),
        )

    @property
    def averages_gradient(self) -> bool:
        """Whether exp_avg is kept."""
        return self.momentum or self.averages_square

    @property
    def averages_square(self) -> bool:
        """Whether exp_avg_sq is kept."""
        return self.factor != "none" and not self.within_batch


def kernel_for(
    anatomy: Anatomy,
    *,
    amsgrad: bool,
    decays: bool,
    alters: bool,
    param: torch.dtype,
    state: torch.dtype,
    dither_param: bool,
    dither_state: bool,
) -> Kernel:
    """Return the loop's switches for an anatomy and the tensors' dtypes."""
    return Kernel(
        momentum=anatomy.direction == "momentum",
        sign=anatomy.sign,
        factor=anatomy.factor,
        raw=anatomy.raw,
        adam=anatomy == _ADAM,
        within_batch=anatomy.within_batch,
        amsgrad=amsgrad,
        decays=decays,
        alters=alters,
        param=REAL.get(param, param),
        state=REAL.get(state, state),
        dither_param=dither_param and param == torch.bfloat16,
        dither_state=dither_state and state == torch.bfloat16,
    )


ADDRESSES: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "param",
            "grad",
            "exp_avg",
            "exp_avg_sq",
            "max_exp_avg_sq",
            "exp_avg_var",
            "grad_var",
            "step",
        )
    ]
)
"""Where the tensors of one parameter lie; 0 where there is none."""

OPTIONS: Final = np.dtype(
    [
        (name, np.float64)
        for name in (
            "lr",
            "beta",
            "beta2",
            "eps",
            "weight_decay",
            "decoupled_weight_decay",
            "gradient",
            "seed",
        )
    ]
)
"""The numbers of a parameter group; ``gradient`` is what the loss's gradient is multiplied by."""


def options(rule: Rule, *, grad_scale: float) -> tuple[float, ...]:
    """Return a group's row of :data:`OPTIONS`; ``grad_scale`` is what the loss was scaled by."""
    decay = float(rule.weight_decay)
    return (
        float(rule.lr),
        float(rule.beta),
        float(rule.beta2),
        rule.eps,
        0.0 if rule.decoupled else decay,
        decay if rule.decoupled else 0.0,
        (-1.0 if rule.maximize else 1.0) / grad_scale,
        float(rule.seed),
    )
