"""The life of ``p.grad_var``: to which gradient it belongs, and when it no longer does.

A gradient that has a variance carries a stamp: who it is, at which version of its content, whose
variance that was, and a fingerprint of its bits (:mod:`svag.variance.fingerprint`). A new gradient
has no stamp. One that was changed in place keeps its variance only if its bits are the same: then
nothing has happened to it (clipping to a bound that was not reached, a factor of one). What
multiplies it by a factor that is known, torch's clipping by norm and its ``GradScaler``, multiplies
the variance by the square (:mod:`svag.variance.rescaling`); anything else ends the variance.
The bits are compared whenever the version has moved, and on a CPU always, since ``.data``, a
scaler and an operation on a DTensor change a gradient and leave its version; on an accelerator,
which would have to be waited for, a plain tensor whose version stands is taken as it was.
An all-zero gradient tells no factor by its bits, so an in-place change ends a variance that is not
zero as well. The stamp is on the gradient itself: it keeps nothing alive, and no copy of a
parameter or of a gradient, pickled or deep, is mistaken for the original.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from svag.errors import InvalidOption, MissingVariance
from svag.variance.fingerprint import Fingerprint, fingerprint

Stamp: TypeAlias = tuple[int, int, int, Fingerprint]
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
            in the gradient's dtype, of a gradient in half precision in float32 (squares of float16
            gradients below 2e-4 would be zero), without a copy where it has that already.

    Raises:
        MissingVariance: (a RuntimeError) ``param`` has no gradient to have a variance.
        InvalidOption: (a ValueError) the variance is of another shape or on another device.

    Example:
        >>> import torch
        >>> from svag.variance.grad_var import attach, current
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
    cast(Any, param).grad_var = variance.detach().to(dtype_of_variance(grad))
    restamp(param)


def dtype_of_variance(grad: Tensor) -> torch.dtype:
    """Return what a gradient's variance is kept in: its own dtype, float32 of half precision."""
    return torch.promote_types(grad.dtype, torch.float32)


def current(param: Tensor) -> Tensor:
    """Return the variance of the gradient that ``param`` has now, or say why there is none.

    On an accelerator a change of a plain tensor that leaves its version as it was, such as one
    through ``.data``, is not seen here.

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
    if not is_current(param):
        raise MissingVariance(_stale(param, getattr(grad, "_grad_var_stamp", None)))
    return variance


def is_current(param: Tensor) -> bool:
    """Return whether :func:`current` would return a variance."""
    grad, variance = param.grad, getattr(param, "grad_var", None)
    stamp: Stamp | None = getattr(grad, "_grad_var_stamp", None)
    if grad is None or variance is None or stamp is None:
        return False
    owner, version, of_variance, bits = stamp
    if (owner, of_variance) != (id(grad), id(variance)):
        return False
    stands = version == _version(grad)
    if stands and (bits is None or not _is_read(grad)):
        return True
    if bits is None or _is_capturing(grad) or not bool(fingerprint(grad) == bits):
        return False
    return stands or not _is_zero(grad) or _is_zero(variance)


def are_zero(params: Iterable[Tensor]) -> bool:
    """Return whether no gradient has or had a variance, and all their entries here are zero."""
    return all(
        param.grad is not None and not had_variance(param) and _is_zero(param.grad)
        for param in params
    )


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
    grad, variance = cast(Any, param.grad), cast(Any, param).grad_var
    grad._grad_var_stamp = (id(grad), _version(grad), id(variance), fingerprint(grad))


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


def _is_read(grad: Tensor) -> bool:
    """Whether the bits of a gradient are read even where its version stands."""
    return grad.device.type == "cpu" or type(grad) is not Tensor


def _is_capturing(grad: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which no number can be read."""
    return grad.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _is_zero(tensor: Tensor) -> bool:
    """Whether all entries that this process holds are zero."""
    return not bool(getattr(tensor, "_local_tensor", tensor).any())


def _absent(param: Tensor) -> str:
    what = "gradient" if param.grad is None else "gradient variance"
    if torch._C._current_graph_task_id() != -1:
        return _too_early(param)
    return f"a parameter of shape {tuple(param.shape)} has no {what}; {_ESTIMATE}"


def _too_early(param: Tensor) -> str:
    return (
        f"a parameter of shape {tuple(param.shape)} has no gradient variance yet: the backward "
        "pass is running, and hooks run in the order in which they were registered; register the "
        "hook that takes the step inside svag.within_batch_variance(model), after it was opened, "
        "or take the step after the backward pass (svag.micro_batch_variance and "
        "svag.rank_variance have the variance only then)"
    )


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
            "svag.variance.grad_var.attach(param, variance)"
        )
    return (
        f"the gradient of a parameter of shape {shape} was changed in place after its variance "
        "was estimated, so grad_var no longer belongs to it; clip with svag.clip_grad_norm_ or "
        "svag.clip_grad_value_, unscale with svag.unscale_(scaler, optimizer), multiply by any "
        "other factor before the variance is estimated, and after another backward pass estimate "
        f"anew: {_ESTIMATE}"
    )
