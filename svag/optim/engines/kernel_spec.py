"""What a fused engine is told: the loop to compile, and the tables that it reads.

A fused engine updates every tensor of a model in one call. What decides the shape of its loop is
a :class:`Kernel`, fixed when the loop is compiled; everything else is a number that the loop
reads, so that a schedule, a group's own options or a late gradient compile nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from svag.anatomy import Anatomy
from svag.optim import options
from svag.optim.rule import Settings, Switches

REAL: Final = {torch.complex64: torch.float32, torch.complex128: torch.float64}
"""Complex numbers are stored as pairs of these."""


class Kernel(NamedTuple):
    """The loop for one row of the table and the dtypes of its tensors.

    Attributes:
        switches: what the update of an element is made of.
        param: dtype of parameters and gradients.
        state: dtype of the moving averages.
        dither_param: round bfloat16 parameters stochastically.
        dither_state: round bfloat16 averages stochastically.
    """

    switches: Switches
    param: torch.dtype
    state: torch.dtype
    dither_param: bool
    dither_state: bool

    @classmethod
    def of(cls, anatomy: Anatomy, group: Mapping[str, Any], dtype: torch.dtype) -> "Kernel":
        """Return the loop for the parameters of a group that have some dtype, maybe a complex one.

        Args:
            anatomy: of the update.
            group: the parameter group.
            dtype: of the parameters.
        """
        state = group["state_dtype"] or dtype
        dither_param, dither_state = options.dithers(group)
        return cls(
            options.switches_of(anatomy, group),
            param=REAL.get(dtype, dtype),
            state=REAL.get(state, state),
            dither_param=dither_param and dtype == torch.bfloat16,
            dither_state=dither_state and state == torch.bfloat16,
        )

    def with_options(self, *, decays: bool, alters: bool) -> "Kernel":
        """Return the loop with two switches set that depend on a group's options."""
        return self._replace(switches=self.switches._replace(decays=decays, alters=alters))

    @classmethod
    def united(cls, kernels: Sequence["Kernel"]) -> "Kernel":
        """Return one loop for kernels that differ by their groups' options alone.

        It does what any of them does. For a group that did not ask for it, the number is one that
        changes nothing: no weight decay, a factor of 1.
        """
        return kernels[0].with_options(
            decays=any(kernel.switches.decays for kernel in kernels),
            alters=any(kernel.switches.alters for kernel in kernels),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the tensors that the loop reads beside parameter and gradient."""
        of = self.switches
        return (
            *("exp_avg",) * of.averages_gradient,
            *("exp_avg_sq",) * of.averages_square,
            *("max_exp_avg_sq",) * of.amsgrad,
            *("exp_avg_var",) * (of.within_batch and of.momentum),
            *("grad_var",) * of.within_batch,
            *("step",) * (of.averages_gradient or of.averages_square),
        )


_COLUMNS: Final = (
    *("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_var"),
    *("grad_var", "step"),
)
ADDRESSES: Final = np.dtype([(name, np.int64) for name in _COLUMNS])
"""Where the tensors of one parameter lie; 0 where there is none."""

EMPTY: Final = 16
"""Stands for the address of a gradient without elements, whose parameter still takes its step; a
multiple of 16, as the addresses that a GPU reads 16 bytes from at once."""

OPTIONS: Final = np.dtype([(name, np.float64) for name in Settings._fields])
"""A row of :class:`~svag.optim.rule.Settings`."""
