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
from svag.optim.rule import Scalar


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


def as_scalar(value: float | Tensor, *, traced: bool) -> Scalar:
    """Return a number as a float, or as a double on its device where it must stay traced."""
    if not isinstance(value, Tensor):
        return float(value)
    if not traced:
        return value.item()
    scalar = value.reshape(())
    return scalar if scalar.device.type == "mps" else scalar.to(torch.float64)
