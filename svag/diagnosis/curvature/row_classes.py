"""Groups the rows of a matrix into classes of similar length, and allots sampled rows to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PER_CLASS = 2
"""Rows sampled of a class: the least that show a variance, since small classes vary least."""


@dataclass(frozen=True)
class RowClass:
    """Rows from which some are drawn at random.

    Attributes:
        tensor: the tensor they belong to; None if they belong to several.
        members: numbers of the rows.
        count: how many of them are drawn: at least two, or all.
    """

    tensor: str | None
    members: NDArray[np.int64]
    count: int


def row_classes(
    lengths: NDArray[np.float64], sizes: Mapping[str, int], rows: int
) -> list[RowClass]:
    """Return classes of rows of similar length within each tensor.

    Rows are drawn in proportion to the sum of the lengths, from tensors and from their classes, as
    is best where the deviation within a class is proportional to its mean. Each tensor has two at
    least, if that takes no more than half of them. Otherwise tensors whose share is less than two
    rows form classes together.

    Args:
        lengths: of the rows, roughly; > 0.
        sizes: number of rows of each tensor, by its name, in order.
        rows: number of rows to draw in all, at least 2 if there are as many.

    Example:
        >>> [(c.tensor, c.members.tolist(), c.count) for c in
        ...  row_classes(np.array([1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 1.0, 1.0]), {"a": 9}, 4)]
        [('a', [1, 3], 2), ('a', [5, 0, 2, 4, 6, 7, 8], 2)]
    """
    classes = []
    groups = _groups(lengths, sizes, rows)
    weights = [float(lengths[members].sum()) for _, members in groups]
    counts = allocated(weights, [len(members) for _, members in groups], rows)
    for (name, members), count in zip(groups, counts, strict=True):
        parts = _similar(lengths, members, max(1, count // _PER_CLASS))
        shares = [float(lengths[part].sum()) for part in parts]
        taken = allocated(shares, [len(part) for part in parts], count)
        classes += [RowClass(name, part, n) for part, n in zip(parts, taken, strict=True)]
    return classes


def allocated(
    weights: Sequence[float], sizes: Sequence[int], total: int, *, least: int = 2
) -> list[int]:
    """Divide a number of rows in proportion to weights, within bounds.

    Args:
        weights: > 0.
        sizes: most rows of each.
        total: number of rows; all rows if there are not as many.
        least: fewest rows of each that has as many; their sum must not exceed ``total``.

    Example:
        >>> allocated([1.0, 1.0, 8.0], [100, 1, 5], 20)
        [14, 1, 5]
    """
    most, share = np.asarray(sizes), np.asarray(weights, dtype=np.float64)
    fewest = np.minimum(least, most)
    if total >= most.sum():
        return [int(n) for n in most]
    low, high = 0.0, float((most / share).max())
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.clip(middle * share, fewest, most).sum() >= total
        low, high = (low, middle) if enough else (middle, high)
    target = np.clip(high * share, fewest, most)
    counts = np.floor(target + 1e-9).astype(int)
    left = max(0, total - int(counts.sum()))
    for index in np.argsort(counts - target, kind="stable")[:left]:
        counts[index] += 1
    return [int(n) for n in counts]


def _groups(
    lengths: NDArray[np.float64], sizes: Mapping[str, int], rows: int
) -> list[tuple[str | None, NDArray[np.int64]]]:
    """Rows of each tensor, or of the small tensors together."""
    ends = np.cumsum(list(sizes.values()))
    tensors = [
        (name, np.arange(end - size, end))
        for (name, size), end in zip(sizes.items(), ends, strict=True)
    ]
    if 2 * _PER_CLASS * len(tensors) <= rows or rows >= len(lengths):
        return [*tensors]
    weights = [float(lengths[members].sum()) for _, members in tensors]
    shares = allocated(weights, list(sizes.values()), rows - _PER_CLASS, least=0)
    groups: list[tuple[str | None, NDArray[np.int64]]] = []
    small = []
    for (name, members), share in zip(tensors, shares, strict=True):
        if share >= min(_PER_CLASS, len(members)):
            groups.append((name, members))
        else:
            small.append(members)
    return [*groups, (None, np.concatenate(small))] if small else groups


def _similar(
    lengths: NDArray[np.float64], members: NDArray[np.int64], number: int
) -> list[NDArray[np.int64]]:
    """Divide rows, the longest first, into parts with about the same sum of lengths."""
    ordered = members[np.argsort(-lengths[members], kind="stable")]
    sorted_lengths = lengths[ordered]
    middles = (np.cumsum(sorted_lengths) - sorted_lengths / 2) / sorted_lengths.sum()
    part_of = np.minimum((middles * number).astype(int), number - 1)
    cuts = np.flatnonzero(np.diff(part_of)) + 1
    return np.split(ordered, cuts)
