"""The share of the diagonal in the sum of absolute entries (Eq. 14), from a sample of rows.

    p_diag = sum_i |h_ii| / sum_ij |h_ij|

Rows are sampled in classes of rows of similar length within each tensor. The lengths come from
products with a few random vectors v: the mean of (H v)_i^2 is the square of the length of row i.
Rough lengths do not bias the estimates of the two sums, since the rows of a class are drawn at
random.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit

from svag.diagnosis.curvature.linear_operator import LinearOperator
from svag.diagnosis.curvature.row_classes import row_classes
from svag.errors import InvalidOption

_PROBES = 8
"""Most random vectors; beyond that, a product improves the result more as one more row."""

_FLOOR = 0.1
"""Added to the lengths, in units of their mean, since the random vectors may miss a row."""


_LEAST_OTHERS = 1e-3
"""If all rows but one make up less than this share of the denominator, the interval is [0, 1]."""


@dataclass(frozen=True, slots=True)
class PDiag:
    """p_diag of a matrix, or of the block of one tensor on its diagonal.

    Attributes:
        value: the estimate; None if all rows seen are 0, or if the tensor had no rows of its own.
        interval: confidence interval; of zero width if all rows were seen.
        rows: number of rows seen.
        size: number of rows there are.
        tensor: the tensor whose block it is; None for the whole matrix.
    """

    value: float | None
    interval: tuple[float, float] | None
    rows: int
    size: int
    tensor: str | None = None


@dataclass(frozen=True)
class _Sums:
    """Of some rows: |h_ii|, and the sums of |h_ij| over the row's tensor and over all j."""

    diagonal: NDArray[np.float64]
    block: NDArray[np.float64]
    row: NDArray[np.float64]


@dataclass(frozen=True)
class _Stratum:
    """Numerators and denominators of the rows sampled from the ``size`` rows of a class."""

    size: int
    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]


def sampled_p_diag(
    operator: LinearOperator,
    sizes: Mapping[str, int],
    rows: int,
    *,
    level: float = 0.95,
    seed: int = 0,
    max_bytes: int = 2**28,
) -> list[PDiag]:
    """Estimate p_diag of a matrix, and of each tensor's own block.

    The estimate is the ratio of the two estimated sums. Its interval is Student's on the scale of
    the logarithm, with Satterthwaite's degrees of freedom: the variance of the ratio is that of
    |h_ii| - p_diag sum_j |h_ij| in stratified sampling without replacement.

    Rows go to tensors in proportion to the sum of their rows' lengths. Each tensor has two at
    least, if that takes no more than half of the rows; otherwise tensors with a share of less than
    two are sampled together, and have no value of their own.

    Args:
        operator: H, of shape (d, d).
        sizes: number of rows of each tensor, by its name, in order; d in all.
        rows: most products with H. If d or more, all rows are taken and the values are exact;
            otherwise an eighth of them, at most 8, go to the random vectors.
        level: of the intervals.
        seed: draws random vectors and rows.
        max_bytes: memory for the products that are made at a time.

    Returns:
        p_diag of the whole matrix, then those of the tensors' blocks.

    Raises:
        InvalidOption: ``rows`` is below 2, or ``sizes`` do not sum to d.

    Example:
        >>> matrix = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
        >>> operator = LinearOperator(lambda vectors: vectors @ matrix, 3)
        >>> [(p.tensor, round(p.value, 3)) for p in sampled_p_diag(operator, {"a": 2, "b": 1}, 3)]
        [(None, 0.8), ('a', 0.667), ('b', 1.0)]
    """
    if sum(sizes.values()) != operator.size:
        raise InvalidOption(f"sizes sum to {sum(sizes.values())}; d is {operator.size}")
    if rows < 2:
        raise InvalidOption(f"rows={rows!r}; a sample needs at least 2")
    at_once = max(1, max_bytes // (3 * operator.vector_bytes))
    probes = 0 if rows >= operator.size else min(_PROBES, rows // 8)
    lengths = _row_lengths(operator, probes, seed, at_once)
    classes = row_classes(lengths, sizes, rows - probes)
    rng = np.random.default_rng(seed)
    drawn = [c.members[rng.choice(len(c.members), c.count, replace=False)] for c in classes]
    seen = [_sums(operator, sizes, part) for part in _portions(np.concatenate(drawn), at_once)]
    ends = np.cumsum([c.count for c in classes])[:-1]
    diagonal, block, row = (
        np.split(np.concatenate([getattr(sums, name) for sums in seen]), ends)
        for name in ("diagonal", "block", "row")
    )
    strata = {
        column: [
            _Stratum(len(c.members), *pair)
            for c, *pair in zip(classes, diagonal, values, strict=True)
        ]
        for column, values in (("row", row), ("block", block))
    }
    result = [_estimate(strata["row"], level, operator.size, None)]
    for name, size in sizes.items():
        own = [s for c, s in zip(classes, strata["block"], strict=True) if c.tensor == name]
        result.append(_estimate(own, level, size, name))
    return result


def _row_lengths(
    operator: LinearOperator, probes: int, seed: int, at_once: int
) -> NDArray[np.float64]:
    """Rough lengths of the rows; all the same without probes."""
    squares = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
    for first in range(0, probes, at_once):
        vectors = operator.gaussian(min(at_once, probes - first), seed + first)
        squares += operator(vectors).square().sum(dim=0)
    lengths = np.sqrt(squares.double().cpu().numpy())
    mean = float(lengths.mean())
    return np.asarray(lengths + _FLOOR * mean) if mean > 0 else np.ones(operator.size)


def _portions(rows: NDArray[np.int64], at_once: int) -> list[NDArray[np.int64]]:
    return np.split(rows, range(at_once, len(rows), at_once))


def _sums(operator: LinearOperator, sizes: Mapping[str, int], rows: NDArray[np.int64]) -> _Sums:
    """Compute rows of H, as products with unit vectors, and sum them up."""
    numbers = np.arange(len(rows))
    units = torch.zeros(len(rows), operator.size, dtype=operator.dtype, device=operator.device)
    units[numbers, rows] = 1
    mass = operator(units).abs()
    ends = np.cumsum(list(sizes.values()))
    tensor = np.searchsorted(ends, rows, side="right")
    first = ends[tensor] - np.array(list(sizes.values()))[tensor]
    block = [
        mass[k, start:end].sum(dtype=torch.float64)
        for k, (start, end) in enumerate(zip(first, ends[tensor], strict=True))
    ]
    return _Sums(
        mass[numbers, rows].double().cpu().numpy(),
        torch.stack(block).cpu().numpy(),
        mass.sum(dim=1, dtype=torch.float64).cpu().numpy(),
    )


def _estimate(strata: Sequence[_Stratum], level: float, size: int, tensor: str | None) -> PDiag:
    """Estimate the ratio of two sums over all strata."""
    rows = sum(len(stratum.numerator) for stratum in strata)
    above = sum(stratum.size * float(stratum.numerator.mean()) for stratum in strata)
    below = sum(stratum.size * float(stratum.denominator.mean()) for stratum in strata)
    if not below > 0:
        return PDiag(None, None, rows, size, tensor)
    value = above / below
    interval = _interval(strata, value, below, level)
    return PDiag(value, interval, rows, size, tensor)


def _interval(
    strata: Sequence[_Stratum], value: float, below: float, level: float
) -> tuple[float, float]:
    """Confidence interval of a ratio; all of [0, 1] if one row has nearly all the weight.

    Each row's deviation is from the ratio of the other rows, as in the jackknife.
    """
    variance, spread = 0.0, 0.0
    for stratum in strata:
        n, rest = len(stratum.numerator), stratum.size - len(stratum.numerator)
        if not rest:
            continue
        others = 1 - stratum.size / n * stratum.denominator / below
        if (others < _LEAST_OTHERS).any():
            return 0.0, 1.0
        away = (stratum.numerator - value * stratum.denominator) / others
        part = stratum.size * rest / n * float(away.var(ddof=1)) / below**2
        variance, spread = variance + part, spread + part**2 / (n - 1)
    if not variance * value > 0:
        return value, value
    quantile = float(stdtrit(variance**2 / spread, 0.5 + level / 2))
    width = quantile * float(np.sqrt(variance)) / value
    factor = float(np.exp(min(width, 700.0)))
    return value / factor, min(1.0, value * factor)
