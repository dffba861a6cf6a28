"""Stochastic rounding to bfloat16: up or down, so that the expectation is the number itself.

An average that moves by less than half a unit in its last place would stand still if it were
rounded to nearest. The noise is a hash of the seed, the parameter's place, the step and the
element, so that it needs no state. The fused engines draw the same.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from svag.optim.rule import Scalar

_MASK: Final = 0xFFFFFFFF
_NEXT: Final = 0x9E3779B9


def _mix(x: Any) -> Any:
    """Mix 32 bits (Wellons' lowbias32) of an int or of a tensor of int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def key(seed: int, place: int, step: Scalar) -> Any:
    """Return where the noise of one parameter and step starts."""
    number = step.to(torch.int64) if isinstance(step, Tensor) else int(step)
    return _mix((_mix((_mix(seed) + place) & _MASK) + number) & _MASK)


class Noise(NamedTuple):
    """Sixteen random bits an element for each of the tensors that are rounded."""

    param: Tensor
    mean: Tensor
    second: Tensor
    largest: Tensor


def noise(key: Any, like: Tensor) -> Noise:
    """Draw the noise of one parameter and step, of the shape of ``like``."""
    element = torch.arange(like.numel(), device=like.device).view(like.shape)
    word = _mix((element * _NEXT + key) & _MASK)
    other = _mix(word)
    return Noise(param=other >> 16, mean=word & 0xFFFF, second=word >> 16, largest=other & 0xFFFF)


def round_(stored: Tensor, value: Tensor, noise: Tensor) -> None:
    """Write float32 numbers into a bfloat16 tensor, with noise in the bits that are cut off."""
    bits = value.contiguous().view(torch.int32) + noise.to(torch.int32)
    dithered = (bits & -0x10000).view(torch.float32)
    stored.copy_(torch.where(value.isfinite(), dithered, value))
