"""A random orthogonal map of every tensor, to see how much a method depends on the axes.

R permutes the entries of a tensor, flips signs at random, and applies Hadamard matrices to blocks
of 2^k entries: R = H S P, with H orthogonal and symmetric. It costs n log n, and mixes up to
``_BLOCK`` entries with equal weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 4096


class Rotation:
    """One orthogonal map for each of some tensors.

    Args:
        tensors: tensors of the shapes that are to be rotated.
        seed: of permutations and signs.

    Example:
        >>> rotation = Rotation([torch.zeros(3, 5)], seed=0)
        >>> (rotated,) = rotation.apply([torch.ones(3, 5)])
        >>> round(float(rotated.square().sum()), 4)
        15.0
        >>> bool(torch.allclose(rotation.inverse([rotated])[0], torch.ones(3, 5), atol=1e-6))
        True
    """

    def __init__(self, tensors: Sequence[Tensor], seed: int) -> None:
        self._maps = []
        for number, tensor in enumerate(tensors):
            generator = torch.Generator().manual_seed(hash((seed, number)) % 2**63)
            count = tensor.numel()
            order = torch.randperm(count, generator=generator)
            sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
            self._maps.append(
                (order.to(tensor.device), sign.to(tensor.device, tensor.dtype), blocks(count))
            )

    def apply(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return R x of each tensor, in its own shape."""
        rotated = []
        for tensor, (order, sign, sizes) in zip(tensors, self._maps, strict=True):
            mixed = sign * tensor.reshape(-1)[order]
            rotated.append(_in_blocks(mixed, sizes).view(tensor.shape))
        return rotated

    def inverse(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return R^T x of each tensor, in its own shape."""
        restored = []
        for tensor, (order, sign, sizes) in zip(tensors, self._maps, strict=True):
            mixed = sign * _in_blocks(tensor.reshape(-1), sizes)
            flat = torch.empty_like(mixed)
            flat[order] = mixed
            restored.append(flat.view(tensor.shape))
        return restored


def blocks(count: int) -> list[int]:
    """Cut a number of entries into powers of 2, none above 4096.

    Example:
        >>> blocks(20), blocks(1)
        ([16, 4], [1])
    """
    sizes = [_BLOCK] * (count // _BLOCK)
    rest = count % _BLOCK
    return sizes + [1 << bit for bit in range(rest.bit_length() - 1, -1, -1) if rest >> bit & 1]


def hadamard(vectors: Tensor) -> Tensor:
    """Multiply each row, of length 2^k, by the orthogonal Hadamard matrix of that order.

    Example:
        >>> hadamard(torch.tensor([[1.0, 0.0]])).square()
        tensor([[0.5000, 0.5000]])
    """
    rows, size = vectors.shape
    step = 1
    while step < size:
        pairs = vectors.view(rows, size // (2 * step), 2, step)
        one, other = pairs[:, :, 0], pairs[:, :, 1]
        vectors = torch.stack((one + other, one - other), dim=2).view(rows, size)
        step *= 2
    return vectors / math.sqrt(size)


def _in_blocks(flat: Tensor, sizes: list[int]) -> Tensor:
    whole = sizes.count(_BLOCK)
    parts = [hadamard(flat[: whole * _BLOCK].view(whole, _BLOCK)).reshape(-1)] if whole else []
    at = whole * _BLOCK
    for size in sizes[whole:]:
        parts.append(hadamard(flat[at : at + size].view(1, size)).reshape(-1))
        at += size
    return torch.cat(parts) if parts else flat.clone()
