"""Unscaling of a mixed-precision step's gradients together with their variances."""

import torch
from torch.optim import Optimizer

from svag.variance.rescaling import follow_torch


def unscale_(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
    """Unscale an optimizer's gradients and their variances: the recipe for mixed precision.

        grad <- grad / scale;    grad_var <- grad_var / scale^2

    It calls ``scaler.unscale_(optimizer)``, which unscales variances, too, once svag has estimated
    or read one; so does ``scaler.step(optimizer)``. If a gradient has an infinite or NaN entry,
    ``scaler.step`` skips the step, as always. If there is a variance, the scale is read, for which
    the host waits on an accelerator, as it does in ``scaler.step``.

    Args:
        scaler: the scaler of the loss; a disabled one changes nothing.
        optimizer: the optimizer whose parameters' gradients are unscaled.

    Raises:
        RuntimeError: the gradients were already unscaled since the last ``scaler.update()``.

    Example:
        >>> import torch, svag
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        >>> with svag.micro_batch_variance([weight]) as micro_batches:
        ...     for target in (1.0, -1.0):
        ...         scaler.scale(0.25 * (weight - target).pow(2).sum()).backward()
        ...         micro_batches.micro_step()
        >>> svag.unscale_(scaler, optimizer)
        >>> weight.grad, weight.grad_var
        (tensor([3., 4.]), tensor([1., 1.]))
        >>> scaler.step(optimizer)
        >>> scaler.update()
    """
    follow_torch()
    scaler.unscale_(optimizer)
