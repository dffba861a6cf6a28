"""Ties ``p.grad_var`` to its gradient, and detects when the gradient has changed since.

A gradient with a variance carries a stamp: ids of the gradient and of its variance, the gradient's
version counter, and a fingerprint of its bits (:mod:`svag.variance.fingerprint`). A new gradient
has no stamp. After a change in place the variance is valid only if the bits are the same, as after
clipping to a bound that was not reached. Multiplications with a known factor, torch's clipping by
norm and its ``GradScaler``, multiply the variance by the square of the factor
(:mod:`svag.variance.rescaling`); any other change makes the variance invalid.

The bits are compared whenever the version counter has changed. On a CPU they are always compared,
since ``.data``, a scaler and operations on a DTensor change a gradient without its counter. On an
accelerator the host would have to wait, so a plain tensor with the same counter counts as
unchanged. Multiplying an all-zero gradient does not change its bits, so for it any change in place
makes a variance other than zero invalid. The stamp is an attribute of the gradient: it keeps no
other object alive, and copies of a parameter or a gradient are not mistaken for the original.
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
    "svag.micro_batch_variance; in transformers' Trainer svag.integrations.hf.VarianceMixin does "
    "it, in Lightning svag.integrations.lightning.VarianceCallback"
)


def attach(param: Tensor, variance: Tensor) -> None:
    """Set ``variance`` as the variance of the current gradient of ``param``.

        param.grad_var_i = var[param.grad_i]

    A complex gradient is a pair of reals: the real and the imaginary part of ``grad_var`` are the
    variances of the real and of the imaginary part of ``grad``.

    Args:
        param: a parameter with a gradient.
        variance: of the gradient's shape and on its device, in units of the gradient squared. It is
            kept in the gradient's dtype, or in float32 for half precision (squares of float16
            gradients below 2e-4 would be zero); it is copied only if its dtype is another.

    Raises:
        MissingVariance: (a RuntimeError) ``param`` has no gradient.
        InvalidOption: (a ValueError) the variance has another shape or is on another device.

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
            f"a parameter of shape {tuple(param.shape)} has no gradient that the variance could "
            "belong to; attach it after backward()"
        )
    if variance.shape != grad.shape or variance.device != grad.device:
        raise InvalidOption(
            f"a variance of shape {tuple(variance.shape)} on {variance.device} cannot belong to "
            f"a gradient of shape {tuple(grad.shape)} on {grad.device}; give one value an entry"
        )
    cast(Any, param).grad_var = variance.detach().to(dtype_of_variance(grad))
    restamp(param)


def dtype_of_variance(grad: Tensor) -> torch.dtype:
    """Return the dtype of a gradient's variance: the gradient's, or float32 for half precision."""
    return torch.promote_types(grad.dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a float32 copy of one in half precision."""
    return tensor.to(dtype_of_variance(tensor))


def current(param: Tensor) -> Tensor:
    """Return the variance of the current gradient of ``param``.

    On an accelerator, a change of a plain tensor without its version counter, such as one through
    ``.data``, is not detected.

    Args:
        param: a parameter with a gradient.

    Returns:
        ``param.grad_var``, not a copy.

    Raises:
        MissingVariance: (a RuntimeError) there is no variance, or the gradient has changed since.
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
    """Return whether no gradient has or had a variance, and all their local entries are zero."""
    return all(
        param.grad is not None and not had_variance(param) and _is_zero(param.grad)
        for param in params
    )


def had_variance(param: Tensor) -> bool:
    """Return whether the gradient has a variance, or had one before it was changed."""
    return hasattr(param.grad, "_grad_var_stamp")


def clear(params: Parameters) -> None:
    """Remove the variances of ``params``, as ``zero_grad`` removes their gradients."""
    for param in [params] if isinstance(params, Tensor) else params:
        param.__dict__.pop("grad_var", None)


def restamp(param: Tensor) -> None:
    """Declare ``param.grad_var`` valid for the present content of ``param.grad``.

    Call it only if :func:`is_current` was True before the gradient was changed.
    """
    grad, variance = cast(Any, param.grad), cast(Any, param).grad_var
    grad._grad_var_stamp = (id(grad), _version(grad), id(variance), fingerprint(grad))


def rescale(param: Tensor, factor: float | Tensor) -> None:
    """Rescale the variance of a gradient that was multiplied by ``factor``.

        param.grad_var <- factor^2 param.grad_var

    It multiplies twice by ``factor``, since ``factor^2`` may underflow although the result does
    not.

    Args:
        param: a parameter whose variance was current before the multiplication.
        factor: the real factor on the gradient, one number or one for each entry.
    """
    variance = cast(Any, param).grad_var
    if isinstance(factor, Tensor):
        factor = factor.to(variance.device)
    with torch.no_grad():
        variance.mul_(factor).mul_(factor)
    restamp(param)


def listed(params: Parameters) -> list[Tensor]:
    """Return one tensor or an iterable of tensors as a list without duplicates.

    Raises:
        InvalidOption: (a ValueError) it is neither, such as a model.
    """
    if isinstance(params, Tensor):
        return [params]
    if not isinstance(params, Iterable):
        raise InvalidOption(
            f"{type(params).__name__} is no tensor and no iterable of tensors; give "
            "model.parameters()"
        )
    return list({id(param): param for param in params}.values())


def _version(grad: Tensor) -> int:
    version: int = grad._version
    if type(grad) is not Tensor:  # FSDP2 accumulates into the local shard of a DTensor
        version += getattr(grad, "_local_tensor", grad)._version
    return version


def _is_read(grad: Tensor) -> bool:
    """Whether the bits of a gradient are compared even if its version counter is the same."""
    return grad.device.type == "cpu" or type(grad) is not Tensor


def _is_capturing(grad: Tensor) -> bool:
    """Whether a CUDA graph is being captured, during which the host cannot read numbers."""
    return grad.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _is_zero(tensor: Tensor) -> bool:
    """Whether all entries on this process are zero."""
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
