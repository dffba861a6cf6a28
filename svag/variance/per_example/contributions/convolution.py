"""Per-example gradients of convolutions: windows of the input, times gradients of the output."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from svag.variance.per_example.contributions.base import Contributions


class Windows(Contributions):
    """c_k = sum over positions of coarse_k (x) window of fine_k, for each group of channels.

    In a convolution the coarse side is the gradient of the output and the fine side the padded
    input; a transposed convolution has them the other way round.

    Args:
        coarse: ``(B, r, C, *positions)``, with r rows of the layer's batch for each example.
        fine: ``(B, r, D, *size)``.
        shape: shape of the weight, ``(C, D / groups, *kernel)``.
        stride: stride of the windows, one number for each spatial dimension.
        dilation: dilation of the windows, likewise.
        padding: (before, after), numbers of zeros around the fine side, likewise.
        groups: number of groups.
    """

    def __init__(
        self,
        coarse: Tensor,
        fine: Tensor,
        shape: torch.Size,
        stride: Sequence[int],
        dilation: Sequence[int],
        padding: Sequence[tuple[int, int]],
        groups: int,
    ) -> None:
        self.coarse, self.like, self.shape, self.groups = coarse, coarse, shape, groups
        self.stride, self.dilation = stride, dilation
        self.fine = _padded_channels_last(fine, padding)
        self._room = fine.new_empty(0)
        self.examples = coarse.shape[0]
        positions = coarse.shape[1] * math.prod(coarse.shape[3:])
        kernel, size = math.prod(shape[2:]), coarse.element_size()
        self.example_bytes = size * (positions * kernel * fine.shape[2] + shape.numel())

    def rows(self, low: int, high: int) -> Tensor:
        """Copy the windows of some examples, and multiply them with the coarse side (bmm)."""
        left = self.coarse[low:high].movedim(2, 1).flatten(2)
        if self.groups == 1:
            windows = self._copied(self._windows(low, high))
            return torch.bmm(left, windows.flatten(1, 1 + self._dims).flatten(2))
        left = left.unflatten(1, (self.groups, -1))
        windows = self._windows(low, high).unflatten(-1, (self.groups, -1)).movedim(-2, 1)
        right = windows.flatten(2, 2 + self._dims).flatten(3)
        return torch.matmul(left, right).flatten(1, 2)

    @property
    def _dims(self) -> int:
        return len(self.stride)

    def _windows(self, low: int, high: int) -> Tensor:
        """Return a view ``(b, r, *positions, *kernel, D)``."""
        fine = self.fine[low:high]
        example, row, *spatial, channel = fine.stride()
        outer = [a * b for a, b in zip(spatial, self.stride, strict=True)]
        inner = [a * b for a, b in zip(spatial, self.dilation, strict=True)]
        sizes = (*fine.shape[:2], *self.coarse.shape[3:], *self.shape[2:], fine.shape[-1])
        return fine.as_strided(sizes, (example, row, *outer, *inner, channel))

    def _copied(self, windows: Tensor) -> Tensor:
        """Return a contiguous copy, in a buffer that the next call reuses."""
        if self._room.numel() < windows.numel():
            self._room = windows.new_empty(windows.numel())
        return self._room[: windows.numel()].view(windows.shape).copy_(windows)

    def arranged(self, rows: Tensor) -> Tensor:
        """Turn ``(b, C, kernel * D / groups)`` into ``(b, *shape)``."""
        split = rows.unflatten(2, (*self.shape[2:], self.shape[1]))
        return cast(Tensor, split.movedim(-1, 2))


def _padded_channels_last(fine: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """Return ``(B, r, *padded, D)``, contiguous, so that windows are copied in long runs."""
    last = fine.movedim(2, -1)
    if not any(map(any, padding)):
        return last.contiguous()
    spatial = zip(last.shape[2:-1], padding, strict=True)
    sizes = [before + size + after for size, (before, after) in spatial]
    result = fine.new_zeros(*last.shape[:2], *sizes, last.shape[-1])
    inside = result
    for dim, (before, _) in enumerate(padding, start=2):
        inside = inside.narrow(dim, before, last.shape[dim])
    inside.copy_(last)
    return result
