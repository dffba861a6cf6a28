"""Differences between the four cells of the paper's Figure 1, with confidence intervals.

The cells are a 2x2 factorial design: sign or not, variance-adapted or not. With y the mean of a
figure at a method's step size, in the order M-SGD, M-SVAG, M-SSD, Adam, an effect is w . y.

Two kinds of intervals are made here:

* **single**, for the methods at the chosen step sizes: Welch's, w . y +- t se with
  se^2 = sum_k w_k^2 s_k^2/n_k and Satterthwaite's degrees of freedom;
* **simultaneous**, for the methods at their best step sizes, of which the choice is uncertain:
  w . y +- c se with se^2 = sum_k w_k^2 (s^2/n_k + u_k), where s^2 is pooled over the methods, and
  over their final runs and the selection runs at the same step size. If the methods' own variances
  give a larger se, that one is used. c is the 95 % quantile of max_w |t_w|, where the t_w are
  correlated as the effects are, so that all intervals of a family cover at once with probability
  95 %.

u_k is the variance that the choice of the step size adds. Means of the selection runs are simulated
with their standard errors; in each draw the figure at the best step size minus that at the chosen
one is the regret, and u_k is the variance of the regret. A step size with some diverged selection
runs takes part in a draw with the probability that none of its runs would diverge in a repetition.
``svag bench verdict`` simulates the coverage of these intervals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array: TypeAlias = NDArray[np.float64]

SIGN, ADAPTATION, INTERACTION = "sign", "adaptation", "interaction"
SIGN_OR_ADAPTATION, BOTH_OR_NEITHER = "sign or adaptation", "both or neither"
WITHOUT_SIGN, WITH_SIGN = "adaptation without sign", "adaptation with sign"

WEIGHTS: Mapping[str, Array] = {
    SIGN: np.array([-0.5, -0.5, 0.5, 0.5]),
    ADAPTATION: np.array([-0.5, 0.5, -0.5, 0.5]),
    INTERACTION: np.array([0.5, -0.5, -0.5, 0.5]),
    SIGN_OR_ADAPTATION: np.array([0.0, -1.0, 1.0, 0.0]),
    BOTH_OR_NEITHER: np.array([-1.0, 0.0, 0.0, 1.0]),
    WITHOUT_SIGN: np.array([-1.0, 1.0, 0.0, 0.0]),
    WITH_SIGN: np.array([0.0, 0.0, -1.0, 1.0]),
}
"""Weights of the effects by name, for M-SGD, M-SVAG, M-SSD, Adam or others in their cells."""

CLAIMED = (SIGN, ADAPTATION, INTERACTION, SIGN_OR_ADAPTATION, BOTH_OR_NEITHER)
"""The family of effects that a verdict makes claims about, with simultaneous intervals."""

_DRAWS = 20_000
_CHOICES = 1_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Candidate:
    """The selection runs of a step size that did not diverge.

    Attributes:
        merits: the merit by which step sizes are chosen, for each run.
        values: the analysed figure, for each run.
        survival: probability that no run would diverge in a repetition; 1 if none did.
    """

    merits: Array
    values: Array
    survival: float = 1.0


@dataclass(frozen=True)
class Sample:
    """A method's final runs, and the selection runs that chose its step size.

    Attributes:
        values: the figure of each final run.
        candidates: step sizes with selection runs; empty if there was no selection.
        chosen: index of the chosen candidate.
        start: the figure before the first step; NaN if not known.
    """

    values: Array
    candidates: Sequence[Candidate] = ()
    chosen: int = 0
    start: float = math.nan

    @property
    def at_choice(self) -> list[Array]:
        """Groups of runs at the chosen step size; the variance is taken about each group's mean."""
        groups = [self.values]
        if self.candidates:
            groups.append(self.candidates[self.chosen].values)
        return groups


@dataclass(frozen=True)
class Effect:
    """An effect with its standard error, degrees of freedom and interval (None for one seed)."""

    estimate: float
    interval: tuple[float, float] | None
    error: float = math.nan
    freedom: float = math.nan

    @property
    def direction(self) -> int:
        """1 or -1, the effect's sign, if the interval excludes 0, else 0."""
        if self.interval is None:
            return 0
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    @property
    def turned(self) -> "Effect":
        """The effect times -1."""
        interval = self.interval and (-self.interval[1], -self.interval[0])
        return Effect(-self.estimate, interval, self.error, self.freedom)

    def scaled(self, factor: float) -> "Effect":
        """Return the effect in other units, multiplied by ``factor`` (above 0)."""
        interval = self.interval and (factor * self.interval[0], factor * self.interval[1])
        return Effect(factor * self.estimate, interval, factor * self.error, self.freedom)

    def within(self, margin: float, level: float = 0.05) -> bool:
        """Whether two one-sided tests at ``level`` both find the effect's size below ``margin``."""
        if self.interval is None:
            return False
        return abs(self.estimate) + self._quantile(level) * self.error < margin

    def power_within(self, margin: float, level: float = 0.05) -> float:
        """Probability that :meth:`within` is True if there is no effect at all."""
        room = margin - self._quantile(level) * self.error
        if not room > 0:
            return 0.0
        return float(2 * ndtr(room / self.error) - 1) if self.error > 0 else 1.0

    def _quantile(self, level: float) -> float:
        return float(stdtrit(self.freedom, 1 - level))


def single(samples: Sequence[Sample], weights: Array, level: float = 0.05) -> Effect:
    """Estimate an effect at the chosen step sizes, with Welch's interval.

    Args:
        samples: k samples, one for each weight.
        weights: (k,), weights of the samples' means.
        level: one minus the coverage.
    """
    used = [(w, s.values) for w, s in zip(weights, samples, strict=True) if w != 0]
    estimate = float(sum(w * values.mean() for w, values in used))
    scale = max(float(np.abs(values).max()) for _, values in used)
    if any(len(values) < 2 for _, values in used):
        return _effect(estimate, None, scale, math.nan, math.nan)
    parts = np.array([w * w * values.var(ddof=1) / len(values) for w, values in used])
    error = math.sqrt(parts.sum())
    counts = np.array([len(values) - 1 for _, values in used])
    freedom = float(parts.sum() ** 2 / (parts**2 / counts).sum()) if error > 0 else counts.sum()
    reach = float(stdtrit(freedom, 1 - level / 2)) * error
    return _effect(estimate, reach, scale, error, freedom)


def difference(one: Sample, other: Sample) -> Effect:
    """Estimate the difference ``one - other`` of two methods at their chosen step sizes."""
    return single([one, other], np.array([1.0, -1.0]))


def simultaneous(
    samples: Sequence[Sample], weights: Mapping[str, Array], level: float = 0.05
) -> dict[str, Effect]:
    """Estimate a family of effects of methods at their best step sizes.

    Args:
        samples: k samples, one for each cell.
        weights: (k,) weights of the cells' means, by name of the effect.
        level: one minus the probability that all intervals cover.

    Returns:
        Effects by name; without intervals if a method has fewer than two final runs.
    """
    table = np.array(list(weights.values()))
    means = np.array([sample.values.mean() if len(sample.values) else np.nan for sample in samples])
    estimates, scale = table @ means, float(np.nanmax(np.abs(means), initial=0.0))
    if any(len(sample.values) < 2 for sample in samples):
        bare = zip(weights, estimates, strict=True)
        return {name: _effect(e, None, scale, math.nan, math.nan) for name, e in bare}
    own, counts = _variances(samples)
    freedom = int(counts.sum())
    pooled = float(own @ counts / freedom)
    choice = np.array([choice_variance(sample) for sample in samples])
    sizes = np.array([len(sample.values) for sample in samples])
    variances = pooled / sizes + choice
    errors = np.sqrt(np.maximum(table**2 @ variances, table**2 @ (own / sizes + choice)))
    reach = critical(table, variances, freedom, level) * errors
    return {
        name: _effect(e, r, scale, float(error), freedom)
        for name, e, r, error in zip(weights, estimates, reach, errors, strict=True)
    }


def seed_deviation(samples: Sequence[Sample]) -> float:
    """Standard deviation between seeds, pooled over methods; NaN if all have single runs."""
    own, counts = _variances(samples)
    return math.sqrt(own @ counts / counts.sum()) if counts.sum() else math.nan


def choice_variance(sample: Sample) -> float:
    """Variance that the choice of the step size adds to a method's mean, u_k above."""
    candidates = sample.candidates
    freedom = sum(len(c.merits) - 1 for c in candidates)
    if len(candidates) < 2 or not freedom:
        return 0.0
    merits = np.array([c.merits.mean() for c in candidates])
    values = np.array([c.values.mean() for c in candidates])
    covariance = _products(candidates) / freedom
    root = np.sqrt(np.array([len(c.merits) for c in candidates]))
    first, second, chances = _normals(len(candidates))
    merit_deviation, value_deviation = np.sqrt(np.diag(covariance))
    together = merit_deviation * value_deviation
    correlation = float(np.clip(covariance[0, 1] / together, -1, 1)) if together > 0 else 0.0
    rest = math.sqrt(max(0.0, 1 - correlation**2))
    survives = ndtr(chances) < np.array([c.survival for c in candidates])
    drawn = np.where(survives, merits + merit_deviation * first / root, -np.inf)
    figure = values + value_deviation * (correlation * first + rest * second) / root
    best = drawn.argmax(axis=1)
    regret = figure[np.arange(len(figure)), best] - figure[:, sample.chosen]
    return float(regret.var())


def critical(table: Array, variances: Array, freedom: int, level: float) -> float:
    """Return the 1 - level quantile of the largest |t| among a family of effects, c above.

    Args:
        table: (effects, k), the weights of each effect.
        variances: (k,), variances of the cells' means.
        freedom: degrees of freedom of the pooled variance.
        level: one minus the probability that all intervals cover.
    """
    errors = np.sqrt(table**2 @ variances)
    if not (errors > 0).all():
        return float(stdtrit(freedom, 1 - level / (2 * len(table))))
    normals = _draws(table.shape[1])
    ratios = np.abs((normals * np.sqrt(variances)) @ table.T) / errors
    return float(np.quantile(ratios.max(axis=1) / _chi(freedom), 1 - level))


def _effect(
    estimate: float, reach: float | None, scale: float, error: float, freedom: float
) -> Effect:
    """Build an effect; numbers that differ from 0 only by the rounding of sums become 0."""
    values = (estimate,) if reach is None else (estimate, estimate - reach, estimate + reach)
    at, *around = (0.0 if abs(v) <= _ROUNDING * scale else float(v) for v in values)
    return Effect(at, (around[0], around[1]) if around else None, error, freedom)


def _variances(samples: Sequence[Sample]) -> tuple[Array, Array]:
    """Return each method's variance between runs and its degrees of freedom."""
    sums = [sum(float(((g - g.mean()) ** 2).sum()) for g in s.at_choice if len(g)) for s in samples]
    counts = np.array([sum(max(len(g) - 1, 0) for g in s.at_choice) for s in samples], float)
    return np.array(sums) / np.maximum(counts, 1), counts


def _products(candidates: Sequence[Candidate]) -> Array:
    pairs = [np.stack([c.merits - c.merits.mean(), c.values - c.values.mean()]) for c in candidates]
    total: Array = sum((pair @ pair.T for pair in pairs), np.zeros((2, 2)))
    return total


@cache
def _draws(columns: int) -> Array:
    return np.random.default_rng(0).standard_normal((_DRAWS, columns))


@cache
def _chi(freedom: int) -> Array:
    return np.sqrt(np.random.default_rng(1).chisquare(freedom, _DRAWS) / freedom)


@cache
def _normals(columns: int) -> Array:
    return np.random.default_rng(2).standard_normal((3, _CHOICES, columns))
