"""torch's own clipping and unscaling, made to take gradient variances along.

Trainers call ``torch.nn.utils.clip_grad_norm_`` and ``GradScaler.unscale_`` themselves. Both
multiply gradients by one factor c, after which the variance is c^2 times what it was; but c cannot
be told from the gradients alone (any change of a gradient of one entry is a factor). So
:func:`follow_torch` puts a function that does both in the place of two of torch's: the one by which
all of torch's clipping by norm multiplies, whoever imported ``clip_grad_norm_`` and whenever, and
the scaler's ``unscale_``. Gradients get what torch gives them, bit for bit, and code without
variances goes the way it went. Where a later torch has no such function, or a scaler has an
``unscale_`` of its own, the gradient changes alone, and :mod:`svag.variance.grad_var` ends its
variance: an error, and never a variance of another gradient.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import utils
from torch.nn.utils import clip_grad
from torch.optim import Optimizer

from svag.variance.grad_var import is_current, rescale, restamp


@functools.cache
def follow_torch() -> None:
    """Let variances follow torch's clipping by norm and its scalers, from now on."""
    _follow_clipping()
    _follow_unscaling(torch.amp.GradScaler)


def _follow_clipping() -> None:
    """Replace the function that multiplies gradients where torch clips their norm."""
    original = utils.clip_grads_with_norm_

    @functools.wraps(original)
    def clip_grads_with_norm_(
        parameters: Tensor | Iterable[Tensor],
        max_norm: float,
        total_norm: Tensor,
        foreach: bool | None = None,
    ) -> None:
        params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        carriers = [] if torch.compiler.is_compiling() else [p for p in params if is_current(p)]
        original(params, max_norm, total_norm, foreach)
        variances = cast(Any, [SimpleNamespace(grad=cast(Any, p).grad_var) for p in carriers])
        for _ in range(2):  # c, as torch computes it, then c once more
            original(variances, max_norm, total_norm, foreach)
        for param in carriers:
            restamp(param)

    if hasattr(clip_grad, "_clip_grads_with_norm_"):  # what clip_grad_norm_ itself calls
        clip_grad._clip_grads_with_norm_ = clip_grads_with_norm_
    utils.clip_grads_with_norm_ = clip_grads_with_norm_


def _follow_unscaling(scaler_type: type[torch.amp.GradScaler]) -> None:
    """Replace the method of a scaler that divides gradients by the scale."""
    original: Callable[[torch.amp.GradScaler, Optimizer], None] = scaler_type.unscale_

    @functools.wraps(original)
    def unscale_(self: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        groups = (group["params"] for group in optimizer.param_groups)
        carriers = [p for p in itertools.chain.from_iterable(groups) if is_current(p)]
        original(self, optimizer)
        if carriers:
            factor = 1.0 / self.get_scale()  # 1 of a disabled one
            for param in carriers:
                rescale(param, factor)

    scaler_type.unscale_ = unscale_  # type: ignore[method-assign]
