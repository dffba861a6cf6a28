"""Patches torch's clipping by norm and its ``GradScaler`` to rescale gradient variances, too.

Trainers call ``torch.nn.utils.clip_grad_norm_`` and ``GradScaler.unscale_`` themselves. Both
multiply gradients by a factor c, and variances have to be multiplied by c^2; but c cannot be
derived from the gradients alone (for a gradient with one entry any change is a factor). So
:func:`follow_torch` replaces two functions of torch: the one that multiplies gradients in all of
torch's clipping by norm, no matter how ``clip_grad_norm_`` was imported, and the scaler's
``unscale_``. Gradients are the same as torch's, bit for bit, and nothing changes without variances.
If a later torch has no such function, or a scaler has its own ``unscale_``, only the gradient
changes, and :mod:`svag.variance.grad_var` raises when its variance is read.
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
    """Patch torch's clipping by norm and its scalers to rescale variances, if not done yet."""
    _follow_clipping()
    _follow_unscaling(torch.amp.GradScaler)


def _follow_clipping() -> None:
    """Replace torch's function that multiplies gradients in clipping by norm."""
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
        for _ in range(2):  # multiply variances twice by torch's c, for c^2
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
            factor = 1.0 / self.get_scale()  # 1 if the scaler is disabled
            for param in carriers:
                rescale(param, factor)

    scaler_type.unscale_ = unscale_  # type: ignore[method-assign]
