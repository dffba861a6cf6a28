"""How noisy the gradient is, layer by layer, from gradients of mini-batches at fixed parameters.

Sums over all coordinates (the noise scale) are exact. What needs every gradient of a coordinate,
such as the distribution of eta = sigma/|grad L|, is taken from a sample of coordinates of each
tensor, whose gradients are all kept.

Nothing here puts a noisy gradient in the place of its mean: with K gradients of mean g and variance
s, g^2 - s/K is unbiased for (grad L)^2. Where that is not positive, eta is above about sqrt(K): it
is counted as unresolved and taken as infinite. The sign's success is counted on one half of the
gradients against the sign of the other half's mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svag.diagnosis.objective import Objective
from svag.theory.factors import gamma_erf, gamma_sqrt, gamma_svag, success_probability

Array: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

SAMPLED = 4096
"""Coordinates whose gradients are kept, over all tensors."""

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
ETA_EDGES: Array = np.logspace(-2, 2, 33)
"""Edges of the histogram of eta: 8 bins a decade."""

_LEAST_OF_TENSOR = 16
_ALL = "all"


@dataclass(frozen=True)
class EtaHistogram:
    """Distribution of sigma/|grad L| over coordinates.

    Attributes:
        edges: of the bins, ``ETA_EDGES``. The first bin also has what lies below it, the last one
            what lies above.
        shares: share of all coordinates in each bin. With the unresolved and the still ones, which
            are in no bin, they add up to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class LayerNoise:
    """Noise of one parameter's gradient, or of all parameters (name ``all``).

    Attributes:
        name: name of the parameter.
        entries: number of its entries.
        gradients: number of gradients, K.
        batch_size: examples in each; None if not known.
        grad_sq: |grad L|^2, unbiased; it may be negative.
        variance: sum of the variances of a mini-batch gradient's entries.
        noise_scale: tr(Sigma)/|grad L|^2 in examples, inf where |grad L|^2 is not positive; None
            without a batch size. In mini-batches, ``variance / grad_sq``, if the size is unknown.
        eta: quantiles of sigma/|grad L| at 10, 25, 50, 75 and 90 %, among moving coordinates.
        unresolved: share of coordinates where |grad L| is too small for K gradients.
        still: share of coordinates whose gradient was 0 every time.
        success: probability that a gradient has the sign of its mean, counted.
        gaussian_success: the same by Eq. (10), from eta.
        kurtosis: median excess kurtosis of a coordinate's gradient; 0 for a Gaussian.
        factors: mean of 1/(1 + eta^2), (1 + eta^2)^(-1/2) and erf(1/(sqrt(2) eta)).
        histogram: distribution of eta, for all parameters together; None for one parameter.
    """

    name: str
    entries: int
    gradients: int
    batch_size: int | None
    grad_sq: float
    variance: float
    noise_scale: float | None
    eta: tuple[float, ...]
    unresolved: float
    still: float
    success: float
    gaussian_success: float
    kurtosis: float
    factors: tuple[float, float, float]
    histogram: EtaHistogram | None = None


class NoiseSummary:
    """Sees gradients one by one, and summarizes them.

    It keeps one tensor for every parameter, and ``SAMPLED`` numbers of every gradient.

    Args:
        objective: whose parameters' gradients it sees.
        batch_size: examples in a mini-batch, if known.
    """

    def __init__(self, objective: Objective, batch_size: int | None) -> None:
        self._names, self._batch_size = objective.names, batch_size
        params = objective.params
        self._means = [torch.zeros_like(p) for p in params]
        self._apart = torch.zeros(len(params), dtype=torch.float64)
        self._chosen = _sampled([p.numel() for p in params])
        self._places = [c.to(p.device) for c, p in zip(self._chosen, params, strict=True)]
        self._history: list[Tensor] = []

    def observe(self, grads: Sequence[Tensor]) -> None:
        """Take in one gradient."""
        count = len(self._history) + 1
        squares = []
        for mean, grad in zip(self._means, grads, strict=True):  # Welford's recurrence
            apart = grad - mean
            mean.add_(apart, alpha=1 / count)
            squares.append(torch.linalg.vector_norm(apart, dtype=_wide(apart)).square())
        self._apart += torch.stack(squares).cpu().double() * ((count - 1) / count)
        kept = [g.reshape(-1)[i] for g, i in zip(grads, self._places, strict=True)]
        self._history.append(torch.cat(kept).double().cpu())

    def rows(self) -> list[LayerNoise]:
        """Return the noise of each parameter, and of all of them together last.

        Needs four gradients or more; empty with fewer.
        """
        count = len(self._history)
        if count < 4:
            return []
        history = torch.stack(self._history).numpy()
        grad_sq, variance = self._sums(count)
        sizes = [mean.numel() for mean in self._means]
        at = np.concatenate([[0], np.cumsum([len(c) for c in self._chosen])])
        rows = [
            self._row(name, size, grad_sq[n], variance[n], history[:, at[n] : at[n + 1]], None)
            for n, (name, size) in enumerate(zip(self._names, sizes, strict=True))
        ]
        weights = np.concatenate(
            [np.full(len(c), size / len(c)) for c, size in zip(self._chosen, sizes, strict=True)]
        )
        total = (sum(sizes), float(grad_sq.sum()), float(variance.sum()), history, weights)
        return [*rows, self._row(_ALL, *total)]

    def _sums(self, count: int) -> tuple[Array, Array]:
        """Return |grad L|^2, unbiased, and the sum of variances, by parameter."""
        variance = self._apart.numpy() / (count - 1)
        means = [torch.linalg.vector_norm(m, dtype=_wide(m)).square() for m in self._means]
        return torch.stack(means).cpu().double().numpy() - variance / count, variance

    def _row(
        self,
        name: str,
        entries: int,
        grad_sq: float,
        variance: float,
        history: Array,
        weights: Array | None,
    ) -> LayerNoise:
        count, together = len(history), weights is not None
        eta, still, unresolved = _eta(history)
        weights = np.ones(len(eta)) if weights is None else weights
        moving = np.logical_not(still)
        share = weights / weights.sum()
        known = np.where(moving, eta, 0.0)
        factors = (gamma_svag(known), gamma_sqrt(known), gamma_erf(known))
        of_moving = weights * moving / max(float((weights * moving).sum()), 1e-300)
        scale = variance / grad_sq if grad_sq > 0 else math.inf if variance > 0 else 0.0
        return LayerNoise(
            name=name,
            entries=entries,
            gradients=count,
            batch_size=self._batch_size,
            grad_sq=float(grad_sq),
            variance=float(variance),
            noise_scale=None if self._batch_size is None else float(scale * self._batch_size),
            eta=_quantiles(eta[moving], weights[moving]),
            unresolved=float(share @ unresolved),
            still=float(share @ still),
            success=float(of_moving @ _success(history)),
            gaussian_success=float(of_moving @ success_probability(1.0, known)),
            kurtosis=_kurtosis(history[:, moving]),
            factors=tuple(float(of_moving @ f) for f in factors),  # type: ignore[arg-type]
            histogram=_histogram(eta, share, moving & ~unresolved) if together else None,
        )


def _sampled(sizes: Sequence[int]) -> list[Tensor]:
    """Draw coordinates of each tensor: all of a small one, in proportion of large ones."""
    generator = torch.Generator().manual_seed(0)
    total = sum(sizes)
    chosen = []
    for size in sizes:
        count = min(size, max(_LEAST_OF_TENSOR, round(SAMPLED * size / total)))
        chosen.append(torch.randperm(size, generator=generator)[:count].clone())
    return chosen


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to sum in; some devices have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _eta(history: Array) -> tuple[Array, Flags, Flags]:
    """Return sigma/|grad L| of each coordinate, whether it is still, and whether unresolved."""
    count = len(history)
    mean, variance = history.mean(axis=0), history.var(axis=0, ddof=1)
    still: Flags = np.logical_not(history.astype(bool).any(axis=0))
    square = mean**2 - variance / count
    unresolved: Flags = np.logical_and(square <= 0, np.logical_not(still))
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.sqrt(variance / np.where(unresolved | still, np.nan, square))
    return np.where(unresolved, np.inf, np.where(still, 0.0, eta)), still, unresolved


def _histogram(eta: Array, share: Array, counted: Flags) -> EtaHistogram:
    """Return the shares of the bins; each coordinate stands for a share of all."""
    last = np.nextafter(ETA_EDGES[-1], 0)
    inside = np.clip(eta[counted], ETA_EDGES[0], last)
    shares, _ = np.histogram(inside, ETA_EDGES, weights=share[counted])
    return EtaHistogram(tuple(map(float, ETA_EDGES)), tuple(map(float, shares)))


def _success(history: Array) -> Array:
    """Count how often a gradient has the sign of the other half's mean, for both halves."""
    halves = history[0::2], history[1::2]
    counts = []
    for one, other in (halves, halves[::-1]):
        counts.append((np.sign(one) == np.sign(other.mean(axis=0))).mean(axis=0))
    return np.asarray((counts[0] + counts[1]) / 2)


def _kurtosis(history: Array) -> float:
    """Return the median over coordinates of the excess kurtosis."""
    deviation = history - history.mean(axis=0)
    square = (deviation**2).mean(axis=0)
    varying = square > 0
    if not varying.any():
        return 0.0
    fourth = (deviation[:, varying] ** 4).mean(axis=0)
    return float(np.median(fourth / square[varying] ** 2 - 3))


def _quantiles(values: Array, weights: Array) -> tuple[float, ...]:
    """Return weighted quantiles; inf counts as the largest value."""
    if not len(values):
        return tuple(math.nan for _ in QUANTILES)
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    at = [min(int(np.searchsorted(reached, q)), len(values) - 1) for q in QUANTILES]
    return tuple(float(values[order][place]) for place in at)
