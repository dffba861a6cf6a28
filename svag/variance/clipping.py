"""Clipping of gradients together with their variances.

A gradient multiplied by c has c^2 times the variance. These functions call torch's, which are
patched to rescale variances, too (:mod:`svag.variance.rescaling`). Clipping by value has a factor
for each entry, which only :func:`clip_grad_value_` here applies to variances. A parameter without a
current variance is clipped as in torch.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import utils

from svag.variance.grad_var import Parameters, is_current, listed, rescale, restamp, widened
from svag.variance.rescaling import follow_torch


def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of all gradients together and scale their variances with them.

        c = min(1, max_norm / (|g| + 1e-6));    grad <- c grad;    grad_var <- c^2 grad_var

    The coefficient is treated as a constant, though it depends on the gradient. torch's own
    ``clip_grad_norm_`` rescales variances in the same way once svag has estimated or read one.

    Args:
        parameters: a tensor or an iterable of tensors with gradients.
        max_norm: largest norm, in units of the gradient.
        norm_type: order of the norm, ``inf`` for the largest entry.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach: as in ``torch.nn.utils.clip_grad_norm_``.

    Returns:
        The norm of all gradients together, before clipping.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite``.

    Example:
        >>> import torch, svag
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> with svag.micro_batch_variance([weight]) as micro_batches:
        ...     for target in (1.0, -1.0):
        ...         (0.25 * (weight - target).pow(2).sum()).backward()
        ...         micro_batches.micro_step()
        >>> weight.grad, weight.grad_var
        (tensor([3., 4.]), tensor([1., 1.]))
        >>> svag.clip_grad_norm_([weight], max_norm=2.5)
        tensor(5.)
        >>> weight.grad, weight.grad_var
        (tensor([1.5000, 2.0000]), tensor([0.2500, 0.2500]))
    """
    follow_torch()
    params = listed(parameters)
    grads = [param.grad for param in params if param.grad is not None]
    norm = utils.get_total_norm(grads, norm_type, error_if_nonfinite, foreach)
    utils.clip_grads_with_norm_(params, max_norm, norm, foreach)
    return norm


def clip_grad_value_(
    parameters: Parameters, clip_value: float, foreach: bool | None = None
) -> None:
    """Clip every entry of every gradient and scale its variance with it.

        c_i = min(1, clip_value / |g_i|);    grad_i <- c_i grad_i;    grad_var_i <- c_i^2 grad_var_i

    Args:
        parameters: a tensor or an iterable of tensors with gradients.
        clip_value: largest magnitude of an entry, in units of the gradient.
        foreach: as in ``torch.nn.utils.clip_grad_value_``, which this calls.

    Example:
        >>> import torch, svag
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> with svag.micro_batch_variance([weight]) as micro_batches:
        ...     for target in (1.0, -1.0):
        ...         (0.25 * (weight - target).pow(2).sum()).backward()
        ...         micro_batches.micro_step()
        >>> svag.clip_grad_value_([weight], clip_value=2.0)
        >>> weight.grad, weight.grad_var
        (tensor([2., 2.]), tensor([0.4444, 0.2500]))
    """
    params = listed(parameters)
    carriers = [p for p in params if is_current(p)]
    for param in carriers:
        factor = _shrinkage(cast(Tensor, param.grad), float(clip_value))
        utils.clip_grad_value_(param, clip_value, foreach=foreach)
        rescale(param, factor)
    carried = {id(p) for p in carriers}
    rest = [p for p in params if p.grad is not None and id(p) not in carried]
    if rest:
        utils.clip_grad_value_(rest, clip_value, foreach=foreach)
    for param in carriers:  # DDP's gradients are views of one bucket and share its version counter
        restamp(param)


def _shrinkage(grad: Tensor, clip_value: float) -> Tensor:
    """Return the factor of clipping for each entry, in the variance's dtype; 0/0 is 1."""
    with torch.no_grad():
        wide = widened(grad)
        factor = grad.clamp(min=-clip_value, max=clip_value).to(wide.dtype).div_(wide)
        return factor.masked_fill_(grad == 0, 1.0)
