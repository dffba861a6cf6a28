"""Clipping and unscaling of gradients that takes their variances along.

A gradient multiplied by c has c^2 times the variance. The functions of ``torch`` change the
gradient alone, after which ``p.grad_var`` is another quantity's; these call them and follow. A
parameter without a current variance is clipped as in torch and left without one.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import utils
from torch.optim import Optimizer

from svag.errors import MissingVariance
from svag.variance.attachment import Parameters, is_current, listed, rescale, restamp


def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clip the norm of all gradients together and scale their variances with them.

        c = min(1, max_norm / (|g| + 1e-6));    grad <- c grad;    grad_var <- c^2 grad_var

    The coefficient counts as a constant, though it depends on the gradient.

    Args:
        parameters: a tensor or an iterable of tensors with gradients.
        max_norm: largest norm, in units of the gradient.
        norm_type: order of the norm, ``inf`` for the largest entry.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach: as in ``torch.nn.utils.clip_grad_norm_``, which this calls.

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
    params = listed(parameters)
    carriers = [p for p in params if is_current(p)]
    norm = utils.clip_grad_norm_(
        params, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite, foreach=foreach
    )
    variances = cast(Any, [SimpleNamespace(grad=cast(Any, p).grad_var) for p in carriers])
    for _ in range(2):  # c, as torch computes it, then c once more
        utils.clip_grads_with_norm_(variances, max_norm, norm, foreach=foreach)
    for param in carriers:
        restamp(param)
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
    for param in carriers:  # gradients that are views of one bucket share a version
        restamp(param)


def unscale_(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
    """Unscale an optimizer's gradients and their variances: the recipe for mixed precision.

        grad <- grad / scale;    grad_var <- grad_var / scale^2

    Call it where ``scaler.unscale_(optimizer)`` would stand, between the backward pass and
    clipping or ``scaler.step(optimizer)``, also where nothing is clipped: ``scaler.step`` unscales
    what nobody has unscaled, and leaves the variances behind. A gradient with an infinite or NaN
    entry makes ``scaler.step`` skip the step, as always. The scale is read, so on an accelerator
    the host waits for it, as it does in ``scaler.step``.

    Args:
        scaler: the scaler of the loss; a disabled one changes nothing.
        optimizer: whose parameters' gradients are unscaled.

    Raises:
        RuntimeError: the gradients have been unscaled since the last ``scaler.update()``.

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
    carriers = [p for p in _parameters(optimizer) if is_current(p)]
    scaler.unscale_(optimizer)
    factor = 1.0 / scaler.get_scale()  # 1 of a disabled one
    for param in carriers:
        rescale(param, factor)
        cast(Any, param).grad_var.unscaled = True


def check_unscaled(optimizer: Optimizer) -> None:
    """Raise if a scaler has unscaled this optimizer's gradients but not their variances.

    ``GradScaler`` leaves no trace on a gradient. It tells an optimizer that has
    ``_step_supports_amp_scaling``, in its ``step``, by a ``found_inf`` without a ``grad_scale``.

    Raises:
        MissingVariance: (a RuntimeError) a variance is still in units of the scaled gradient.
    """
    if getattr(optimizer, "found_inf", None) is None:
        return
    if getattr(optimizer, "grad_scale", None) is not None:
        return
    for param in _parameters(optimizer):
        if is_current(param) and not getattr(cast(Any, param).grad_var, "unscaled", False):
            raise MissingVariance(
                f"the gradient of a parameter of shape {tuple(param.shape)} was unscaled and its "
                "grad_var was not; call svag.unscale_(scaler, optimizer) in place of "
                "scaler.unscale_(optimizer)"
            )


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _shrinkage(grad: Tensor, clip_value: float) -> Tensor:
    """Return by what clipping multiplies each entry; 0/0 is 1."""
    with torch.no_grad():
        factor = grad.clamp(min=-clip_value, max=clip_value).div_(grad)
        return factor.masked_fill_(grad == 0, 1.0)
