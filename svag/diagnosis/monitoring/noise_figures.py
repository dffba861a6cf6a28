"""Figures of the gradient's noise from estimates at a sample of its coordinates.

    eta_sq_i = s_i / m_i^2,    variance = sum_i s_i,    grad_sq = sum_i (m_i^2 - rho s_i)

``grad_sq`` and ``variance`` are unbiased for |grad L|^2 and the trace of the mini-batch gradient's
covariance if gradients are independent and of one distribution, as E[m^2] is the squared mean
gradient plus rho times the variance (Eq. 20).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svag.diagnosis.noise_summary import QUANTILES
from svag.optim.adaptation import Moments
from svag.variance.noise import NoiseScale, relative_variance

AT_REST: Final = 0.01
"""A coordinate whose factor is below this is at rest."""


_MEMORY: Final = 0.9
"""Decay of the averages over readings."""


class Sample(NamedTuple):
    """Estimates at some coordinates of one tensor, on the CPU.

    Attributes:
        name: of the parameter.
        entries: number of its coordinates in this process; a complex entry counts as two.
        moments: mean and variance of the gradient at the sampled coordinates.
        gamma: factor there in the last step; None where there was no step.
        seen: whether there is a variance: one gradient alone shows none.
    """

    name: str
    entries: int
    moments: Moments
    gamma: Tensor | None
    seen: bool = True


class RunningNoiseScale:
    """The simple noise scale, tr(Sigma)/|grad L|^2, both averaged over about the last ten readings.

    A ratio of averages has less bias than an average of ratios.

    Args:
        batch_size: B, the number of examples of the gradient; tr(Sigma) is B ``variance``.
    """

    def __init__(self, batch_size: float) -> None:
        self._batch_size = batch_size
        self._grad_sq = self._variance = self._weight = 0.0

    def add(self, found: Mapping[str, float]) -> float:
        """Return the noise scale in examples, with the figures of one more reading.

        inf where the average of ``grad_sq`` is not positive, NaN where that of ``variance`` is
        negative. Figures that are not finite do not count.
        """
        grad_sq, variance = found["grad_sq"], found["variance"]
        if math.isfinite(grad_sq) and math.isfinite(variance):
            self._grad_sq = _MEMORY * self._grad_sq + (1 - _MEMORY) * grad_sq
            self._variance = _MEMORY * self._variance + (1 - _MEMORY) * variance
            self._weight = _MEMORY * self._weight + (1 - _MEMORY)
        if self._weight == 0 or self._variance < 0:
            return math.nan
        grad_sq, variance = self._grad_sq / self._weight, self._variance / self._weight
        return NoiseScale(grad_sq=grad_sq, trace=self._batch_size * variance).simple


def figures(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the figures of some tensors together; each stands for all its coordinates.

    Args:
        samples: one for each tensor, none of them empty.

    Returns:
        ``entries`` and ``sampled``: numbers of coordinates. ``non_finite``: share of coordinates
        whose estimates are NaN or infinite; all else is about the others. ``at_rest``: share with
        m = v = 0 or gamma < 0.01. ``gamma_mean``: over coordinates without m = v = 0.
        ``eta_sq_p10`` to ``eta_sq_p90``: quantiles over the same. ``grad_sq`` and ``variance``:
        sums over all coordinates. A figure without any coordinate is NaN.
    """
    weight = torch.cat([torch.full_like(s.moments.mean, _weight(s)) for s in samples])
    mean, variance, along, gamma, seen = map(torch.cat, zip(*map(_columns, samples), strict=True))
    finite = mean.isfinite() & variance.isfinite()
    still = (mean == 0) & (variance == 0)
    resting = still | (gamma < AT_REST)
    moving = finite & ~still
    known = finite & seen
    eta_sq = relative_variance(mean, variance.clamp_min(0))
    levels = _quantiles(eta_sq[moving & seen], weight[moving & seen])
    return {
        "entries": float(sum(sample.entries for sample in samples)),
        "sampled": float(len(mean)),
        "non_finite": _mean((~finite).double(), weight),
        "at_rest": _mean(resting[finite].double(), weight[finite]),
        "gamma_mean": _mean(gamma[moving], weight[moving]),
        "grad_sq": _sum(along[known], weight[known]),
        "variance": _sum(variance[known], weight[known]),
        **{f"eta_sq_p{round(100 * q):02d}": x for q, x in zip(QUANTILES, levels, strict=True)},
    }


def _weight(sample: Sample) -> float:
    """Return how many coordinates a sampled one stands for."""
    return sample.entries / len(sample.moments.mean)


def _columns(sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return m, s, m^2 - rho s, gamma, and whether s was seen, at each coordinate."""
    mean, variance, share = sample.moments[:3]
    gamma = torch.full_like(mean, torch.nan) if sample.gamma is None else sample.gamma
    seen = torch.full_like(mean, sample.seen, dtype=torch.bool)
    return mean, variance, mean * mean - share * variance, gamma, seen


def _mean(values: Tensor, weight: Tensor) -> float:
    return _sum(values, weight) / float(weight.sum()) if len(values) else np.nan


def _sum(values: Tensor, weight: Tensor) -> float:
    return float((values * weight).sum()) if len(values) else np.nan


def _quantiles(values: Tensor, weight: Tensor) -> list[float]:
    if not len(values):
        return [np.nan] * len(QUANTILES)
    arrays: list[NDArray[np.float64]] = [values.numpy(), weight.numpy()]
    found = np.quantile(arrays[0], QUANTILES, weights=arrays[1], method="inverted_cdf")
    return [float(level) for level in found]
