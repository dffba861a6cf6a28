"""Moving averages of gradients: their debiasing, and the gradient variance they hold.

Steps count from 1 here, as ``state["step"]`` does; the paper's t is ``step - 1``. ``step`` is a
float, or a 0-dimensional tensor where it must stay on the device or in the graph.
"""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from svag.errors import InvalidOption
from svag.optim.arithmetic import Arithmetic, Operand, Scalar


def step_of(number: Any, device: torch.device | str = "cpu") -> Tensor:
    """Return a number of steps as ``state["step"]`` holds it; a tensor is kept as it is.

    In float32, in float64 where that is torch's default dtype, as in ``torch.optim``.

    Raises:
        InvalidOption: (a ValueError) it is not a number >= 0.
    """
    if isinstance(number, Tensor):
        return number
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not is_number or not 0 <= float(number) < math.inf:
        raise InvalidOption(
            f"state['step']={number!r} is not a number of steps: set a number >= 0, which becomes "
            "a tensor at the next step, or delete the parameter's state to start it afresh"
        )
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(
        float(number), dtype=torch.float64 if wide else torch.float32, device=device
    )


def debiasing(beta: Scalar, step: Scalar) -> Scalar:
    """Total weight of the gradients in a moving average, 1 - beta^step (Eqs. 4 and 5).

    By expm1, since the difference loses a thousand times the round-off at beta = 0.999.
    """
    if isinstance(beta, Tensor):
        return -torch.expm1(step * torch.log(beta))
    if beta == 0:
        return 1.0
    exponent = step * math.log(beta)
    return -torch.expm1(exponent) if isinstance(exponent, Tensor) else -math.expm1(exponent)


def rho(beta: Scalar, step: Scalar) -> Scalar:
    """Variance of the debiased average m over that of one gradient (Eq. 21).

    rho(beta, t) = (1 - beta)(1 + beta^(t+1)) / ((1 + beta)(1 - beta^(t+1))), with t + 1 = step.
    It is 1 at the first step (the paper's §4.4 says 0 in error) and tends to
    (1 - beta)/(1 + beta); 1/rho is the effective number of gradients averaged.
    """
    weight = debiasing(beta, step)
    return (1 - beta) * (2 - weight) / ((1 + beta) * weight)


def has_variance(beta: float, step: Scalar) -> bool | Tensor:
    """Whether the average holds more than one gradient: not at t = 0, and never at beta = 0."""
    return False if beta == 0 else step > 1


def gradient_variance(
    ops: Arithmetic,
    grad: Operand,
    exp_avg: Operand,
    exp_avg_sq: Operand,
    beta: float,
    step: Scalar,
    dtype: torch.dtype,
) -> Operand:
    """Estimate the variance of a gradient from moving averages, s (Eq. 22).

    s_t = (v_t - m_t^2) / (1 - rho(beta, t)), clamped at 0, m and v being the debiased averages
    *after* ``grad`` is taken in. The arguments hold the averages *before* that, because

        s_t = (1 + beta)/2 * ( v_(t-1) - m_(t-1)^2 + (1 - beta)/(1 - beta^(t+1)) (g_t - m_(t-1))^2 )

    is the same number (substitute the recurrences of m and v) without the factor
    1/(1 - rho), which grows like 1/beta and would multiply the round-off of v - m^2.

    Args:
        ops: arithmetic for a tensor or for lists.
        grad: g_t.
        exp_avg: first moment after step - 1 gradients, not debiased.
        exp_avg_sq: second moment likewise, averaged with the same beta.
        beta: in (0, 1).
        step: number of this step, at least 2 (:func:`has_variance`).
        dtype: of the averages.

    Returns:
        s, nowhere negative; inf where a square leaves the range of the dtype.
    """
    before = debiasing(beta, step - 1)
    mean = ops.div(exp_avg, before)
    deviation = ops.sub(grad, mean)
    variance = ops.div(exp_avg_sq, before)
    square = ops.clamp_max_(ops.mul(mean, mean), torch.finfo(dtype).max)  # no inf - inf
    ops.sub_(variance, square)
    weight = (1 - beta) / debiasing(beta, step)
    if isinstance(weight, Tensor):
        ops.addcmul_(variance, ops.mul(deviation, weight), deviation)
    else:
        ops.addcmul_(variance, deviation, deviation, value=weight)
    return ops.mul_(ops.clamp_min_(variance, 0), (1 + beta) / 2)


def average_(ops: Arithmetic, exp_avg: Operand, grad: Operand, beta: Scalar) -> None:
    """Take a gradient into the first moment: beta m~ + (1 - beta) g (Eq. 4)."""
    ops.lerp_(exp_avg, grad, 1 - beta)


def average_square_(ops: Arithmetic, exp_avg_sq: Operand, grad: Operand, beta: Scalar) -> None:
    """Take a gradient into the second moment: beta v~ + (1 - beta) g^2 (Eq. 5)."""
    ops.mul_(exp_avg_sq, beta)
    if isinstance(beta, Tensor):
        ops.addcmul_(exp_avg_sq, ops.mul(grad, 1 - beta), grad)
    else:
        ops.addcmul_(exp_avg_sq, grad, grad, value=1 - beta)


def average_variance_(
    ops: Arithmetic, exp_avg_var: Operand, grad_var: Operand, beta: Scalar
) -> None:
    """Take a gradient's variance into that of the first moment.

    r~_t = beta^2 r~_(t-1) + (1 - beta)^2 s_t is the variance of m~_t, the gradients being
    independent; divided by the square of the debiasing it is that of m_t.
    """
    ops.mul_(exp_avg_var, beta * beta)
    if isinstance(beta, Tensor):
        ops.add_(exp_avg_var, ops.mul(grad_var, (1 - beta) ** 2))
    else:
        ops.add_(exp_avg_var, grad_var, alpha=(1 - beta) ** 2)


def as_scalar(value: float | Tensor, *, traced: bool) -> Scalar:
    """Return a number as a float, or as a double on its device where it must stay traced."""
    if not isinstance(value, Tensor):
        return float(value)
    if not traced:
        return value.item()
    scalar = value.reshape(())
    return scalar if scalar.device.type == "mps" else scalar.to(torch.float64)
