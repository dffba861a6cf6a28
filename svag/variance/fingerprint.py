"""A number that says whether a tensor still has the bits that it had.

It is the sum of the tensor's memory read as 64-bit integers, modulo 2^64: one pass at the speed of
memory (0.3 ms for 3.3 million float32 numbers on one core), where a copy would be as large as the
tensor. What a training script does to a gradient in place changes it: a factor, a bound, noise,
another gradient added, entries set to zero, NaN removed. It need not see entries that exchange
their places or, which leaves variances as they are, their signs.
"""

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

Fingerprint: TypeAlias = int | Tensor | None
"""A number, on an accelerator a tensor there; None of what has no memory to read."""

_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Return the fingerprint of a tensor, or of the shard of a DTensor that this process holds.

    On an accelerator nothing is waited for.

    Args:
        tensor: of any dtype, shape and layout in memory.

    Returns:
        None for a sparse tensor, a tensor of a class of its own and one without memory.
    """
    shard: Tensor = getattr(tensor, "_local_tensor", tensor)
    if type(shard) not in (Tensor, Parameter) or shard.layout != torch.strided or shard.is_meta:
        return None
    total = _sum(_flat(shard.detach()))
    return int(total.item()) if total.is_cpu else total


def _flat(tensor: Tensor) -> Tensor:
    """Return the elements in one dimension, in the order in which they lie."""
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        return tensor if tensor.dim() == 1 else tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _sum(flat: Tensor) -> Tensor:
    """Sum memory as 64-bit integers, and what does not fill one as smaller ones."""
    size, count = flat.itemsize, flat.numel()
    if size >= 8 or (count * size % 8 == 0 and flat.storage_offset() * size % 8 == 0):
        return flat.view(torch.int64).sum()
    each = 8 // size
    first = min(-flat.storage_offset() % each, count)
    last = count - (count - first) % each
    small = _WORD[size]
    if first == last:  # with fewer elements than a word has
        return flat.view(small).sum()
    total = flat[first:last].view(torch.int64).sum()
    return total + flat[:first].view(small).sum() + flat[last:].view(small).sum()
