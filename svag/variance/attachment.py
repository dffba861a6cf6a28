"""The life of ``p.grad_var``: to which gradient it belongs, and when it no longer does.

A gradient that has a variance carries a stamp: who it is, at which version of its content, and
whose variance that was. A new gradient has no stamp, and an in-place change moves its version on,
so a variance outlives neither. The stamp is three numbers on the gradient itself: nothing is kept
alive by it, and no copy of a parameter or of a gradient, pickled or deep, is mistaken for the
original.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from svag.errors import InvalidOption, MissingVariance

Stamp: TypeAlias = tuple[int, int, int]
Parameters: TypeAlias = Tensor | Iterable[Tensor]

_ESTIMATE = (
    "wrap the forward and backward pass in svag.within_batch_variance(model), or use "
    "svag.micro_batch_variance"
)


def attach(param: Tensor, variance: Tensor) -> None:
    """Make ``variance`` the variance of the gradient that ``param`` has now.

        param.grad_var_i = var[param.grad_i]

    A complex gradient is a pair of reals: the real and the imaginary part of ``grad_var`` are the
    variances of the real and of the imaginary part of ``grad``.

    Args:
        param: a parameter with a gradient.
        variance: of the gradient's shape and on its device, in units of the gradient squared; kept
            in the gradient's dtype, without a copy where it has that already.

    Raises:
        MissingVariance: (a RuntimeError) ``param`` has no gradient to have a variance.
        InvalidOption: (a ValueError) the variance is of another shape or on another device.

    Example:
        >>> import torch
        >>> from svag.variance.attachment import attach, current
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> weight.pow(2).sum().backward()
        >>> attach(weight, torch.tensor([0.5, 0.25]))
        >>> current(weight)
        tensor([0.5000, 0.2500])
    """
    grad = param.grad
    if grad is None:
        raise MissingVariance(
            f"a parameter of shape {tuple(param.shape)} has no gradient, so there is nothing for "
            "the variance to belong to; attach it after backward()"
        )
    if variance.shape != grad.shape or variance.device != grad.device:
        raise InvalidOption(
            f"a variance of shape {tuple(variance.shape)} on {variance.device} cannot belong to "
            f"a gradient of shape {tuple(grad.shape)} on {grad.device}; give one value an entry"
        )
    cast(Any, param).grad_var = variance.detach().to(grad.dtype)
    restamp(param)


def current(param: Tensor) -> Tensor:
    """Return the variance of the gradient that ``param`` has now, or say why there is none.

    What leaves a gradient's version as it was is not seen here: a change through ``.data``,
    ``GradScaler.unscale_`` (rescale with :func:`svag.unscale_`), torch's clipping of DTensors.

    Args:
        param: a parameter with a gradient.

    Returns:
        ``param.grad_var``, not a copy.

    Raises:
        MissingVariance: (a RuntimeError) there is no variance, or it is older than the gradient.
    """
    grad = param.grad
    variance: Tensor | None = getattr(param, "grad_var", None)
    if grad is None or variance is None:
        raise MissingVariance(_absent(param))
    stamp: Stamp | None = getattr(grad, "_grad_var_stamp", None)
    if stamp is None or stamp != (id(grad), _version(grad), id(variance)):
        raise MissingVariance(_stale(param, stamp))
    return variance


def is_current(param: Tensor) -> bool:
    """Return whether :func:`current` would return a variance."""
    grad, variance = param.grad, getattr(param, "grad_var", None)
    if grad is None or variance is None:
        return False
    stamp = getattr(grad, "_grad_var_stamp", None)
    return bool(stamp == (id(grad), _version(grad), id(variance)))


def had_variance(param: Tensor) -> bool:
    """Return whether the gradient has a variance, or had one before it was changed."""
    return hasattr(param.grad, "_grad_var_stamp")


def clear(params: Parameters) -> None:
    """Drop the variances of ``params``, as ``zero_grad`` drops their gradients."""
    for param in [params] if isinstance(params, Tensor) else params:
        param.__dict__.pop("grad_var", None)


def restamp(param: Tensor) -> None:
    """Declare ``param.grad_var`` the variance of ``param.grad`` as both now are.

    Only for one that :func:`is_current` held for before the gradient was changed.
    """
    grad = cast(Any, param.grad)
    grad._grad_var_stamp = (id(grad), _version(grad), id(cast(Any, param).grad_var))


def rescale(param: Tensor, factor: float | Tensor) -> None:
    """Follow a gradient that was multiplied by ``factor``.

        param.grad_var <- factor^2 param.grad_var

    The two factors are multiplied in one after the other, since their square may underflow where
    the result does not.

    Args:
        param: a parameter whose variance was current before the multiplication.
        factor: what the gradient was multiplied by, one number or one an entry, real.
    """
    variance = cast(Any, param).grad_var
    if isinstance(factor, Tensor):
        factor = factor.to(variance.device)
    with torch.no_grad():
        variance.mul_(factor).mul_(factor)
    restamp(param)


def listed(params: Parameters) -> list[Tensor]:
    """Return one tensor or an iterable of them as a list, each once."""
    if isinstance(params, Tensor):
        return [params]
    return list({id(param): param for param in params}.values())


def _version(grad: Tensor) -> int:
    version: int = grad._version
    if type(grad) is not Tensor:  # FSDP2 accumulates into the shard behind a DTensor's back
        version += getattr(grad, "_local_tensor", grad)._version
    return version


def _absent(param: Tensor) -> str:
    what = "gradient" if param.grad is None else "gradient variance"
    return f"a parameter of shape {tuple(param.shape)} has no {what}; {_ESTIMATE}"


def _stale(param: Tensor, stamp: Stamp | None) -> str:
    shape = tuple(param.shape)
    if stamp is None or stamp[0] != id(param.grad):
        return (
            f"grad_var of a parameter of shape {shape} is older than its gradient, which came "
            f"without a variance; {_ESTIMATE}"
        )
    if stamp[2] != id(getattr(param, "grad_var", None)):
        return (
            f"grad_var of a parameter of shape {shape} was set by hand; give it to "
            "svag.variance.attachment.attach(param, variance)"
        )
    return (
        f"the gradient of a parameter of shape {shape} was changed in place after its variance "
        "was estimated, so grad_var no longer belongs to it; clip with svag.clip_grad_norm_ or "
        "svag.clip_grad_value_, unscale with svag.unscale_(scaler, optimizer) in place of "
        f"scaler.unscale_(optimizer), and after another backward pass estimate anew: {_ESTIMATE}"
    )
