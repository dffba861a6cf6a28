"""What one step along each method's direction is worth: expected decrease and best step size.

    I = max over alpha of E[L(theta) - L(theta + alpha z)]                       (Eq. 12, any loss)

The expectation is over draws of z and over held batches, never along the mean direction. A maximum
over noisy numbers is optimistic, so each draw is reported at the step size that is best for the
others (leave one out). Between the step sizes measured, decrease/alpha is interpolated by a cubic
spline in log alpha; for a quadratic loss, decrease/alpha is linear in alpha.

At the best step size the decrease does not change to first order with alpha, so the standard error
of I is that of a mean over draws. That of log alpha is the jackknife's. Intervals are Student's.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import stdtrit

from svag.analysis.contrasts import ADAPTATION, INTERACTION, SIGN, WEIGHTS
from svag.diagnosis.line_search import Decreases
from svag.errors import DissectionError

Array: TypeAlias = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

LEVEL = 0.05
EFFECTS = (SIGN, ADAPTATION, INTERACTION)
"""The family of effects: a statement about any of them is wrong in at most 5 % of the cases."""

_POINTS = 241
_KEPT = 6  # one in this many points of the fitted curve is recorded
_LEAST_DRAWS = 3
_LEAST_STEP_SIZES = 3


@dataclass(frozen=True)
class Improvement:
    """Worth of one step along a method's direction.

    Attributes:
        method: key of the method.
        track: name of the track.
        draws: number of draws.
        value: I, in units of the loss; not positive where the direction helps at no step size.
        interval: of I, at 95 %.
        lr: alpha_*, the step size that earns it.
        lr_interval: of alpha_*, at 95 %.
        edge: ``"lowest"`` or ``"highest"`` if alpha_* is at an end of the step sizes measured.
        lrs: the step sizes measured.
        curve: mean decrease at each of them; -inf where a loss was not finite.
        errors: its standard errors.
        fit: the curve between the step sizes, at points equally far apart in log alpha, from the
            lowest step size to the highest at which every loss was finite.
    """

    method: str
    track: str
    draws: int
    value: float
    interval: Interval
    lr: float
    lr_interval: Interval
    edge: str
    lrs: tuple[float, ...]
    curve: tuple[float, ...]
    errors: tuple[float, ...]
    fit: tuple[float, ...] = ()


@dataclass(frozen=True)
class Factorial:
    """An effect of the 2x2 design on the logarithm of the improvement.

    Attributes:
        name: ``"sign"``, ``"adaptation"`` or ``"interaction"``.
        ratio: the factor on the worth of one step, exp of the effect.
        interval: at 95 % for all effects of the family at once; None if it cannot be given.
    """

    name: str
    ratio: float
    interval: Interval | None

    @property
    def direction(self) -> int:
        """1 if the factor is above 1 for certain, -1 if below, else 0."""
        if self.interval is None:
            return 0
        return int(self.interval[0] > 1) - int(self.interval[1] < 1)


@dataclass(frozen=True)
class Worth:
    """Worth of one step along one method's direction, as a multiple of another's.

    Attributes:
        method: key of the one method.
        against: key of the other.
        ratio: the one improvement over the other.
        interval: at 95 %, for this ratio alone; None if it cannot be given.
    """

    method: str
    against: str
    ratio: float
    interval: Interval | None


def improvement(decreases: Decreases) -> Improvement:
    """Estimate I and alpha_* of one method from its decreases.

    Raises:
        DissectionError: there are too few draws or step sizes.
    """
    fit = _Fit(decreases)
    return fit.improvement


def effects(cells: Sequence[Decreases]) -> dict[str, Factorial]:
    """Estimate the effects of sign and variance adaptation, and their interaction.

    The methods share gradients and held batches draw by draw, so differences are taken by draw.

    Args:
        cells: M-SGD, M-SVAG, M-SSD, Adam, or others in their cells, in this order.

    Returns:
        Effects by name; without an interval if some method's I is not clearly positive, or is one
        at the edge of the step sizes, since it may be larger beyond.
    """
    fits = [_Fit(cell) for cell in cells]
    count = min(len(fit.at_best) for fit in fits)
    values = np.array([fit.improvement.value for fit in fits])
    certain = all(fit.certain for fit in fits)
    found = {}
    for name in EFFECTS:
        weights = WEIGHTS[name]
        if not (values > 0).all():
            found[name] = Factorial(name, math.nan, None)
            continue
        estimate = float(weights @ np.log(values))
        influence = sum(
            w * fit.at_best[:count] / value
            for w, fit, value in zip(weights, fits, values, strict=True)
        )
        error = float(np.std(influence, ddof=1)) / math.sqrt(count)
        reach = float(stdtrit(count - 1, 1 - LEVEL / (2 * len(EFFECTS)))) * error
        interval = (math.exp(estimate - reach), math.exp(estimate + reach)) if certain else None
        found[name] = Factorial(name, math.exp(estimate), interval)
    return found


def worth(one: Decreases, reference: Decreases) -> tuple[float, Interval | None]:
    """Return the ratio of two methods' improvements, with its 95 % interval.

    Returns:
        NaN and None if either is not positive; no interval if either is not clearly positive, or
        is one at the edge of the step sizes.
    """
    fit, other = _Fit(one), _Fit(reference)
    if not (fit.improvement.value > 0 and other.improvement.value > 0):
        return math.nan, None
    ratio = fit.improvement.value / other.improvement.value
    if not (fit.certain and other.certain):
        return ratio, None
    count = min(len(fit.at_best), len(other.at_best))
    influence = (
        fit.at_best[:count] / fit.improvement.value
        - other.at_best[:count] / other.improvement.value
    )
    error = float(np.std(influence, ddof=1)) / math.sqrt(count)
    reach = float(stdtrit(count - 1, 1 - LEVEL / 2)) * error
    return ratio, (ratio * math.exp(-reach), ratio * math.exp(reach))


def worths(found: Sequence[Decreases], cells: Sequence[str]) -> list[Worth]:
    """Compare every method with the first, and Adam with its two neighbours in the 2x2 table.

    Methods that have no improvement, for want of draws or of finite losses, are left out.

    Args:
        found: decreases of one track; all are compared with the first cell, or else the first.
        cells: keys of M-SGD, M-SVAG, M-SSD, Adam, or others in their cells; may be empty.
    """
    tables = {one.key: one for one in found}
    keys = [*tables]
    first = cells[0] if cells else keys[0] if keys else ""
    pairs = [(key, first) for key in keys if key != first]
    pairs += [(cells[3], cells[2]), (cells[3], cells[1])] if cells else []
    compared = []
    for method, against in pairs:
        with contextlib.suppress(DissectionError, KeyError):
            compared.append(Worth(method, against, *worth(tables[method], tables[against])))
    return compared


class _Fit:
    """The decreases of a method as functions of the step size."""

    def __init__(self, decreases: Decreases) -> None:
        table = decreases.table
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(table).all(axis=0))
        usable = int(np.argmin(finite)) if not finite.all() else len(finite)
        draws = len(table)
        if draws < _LEAST_DRAWS or usable < _LEAST_STEP_SIZES:
            raise DissectionError(
                f"{decreases.key}: {draws} draws at {usable} step sizes with finite losses are too "
                f"few; it takes {_LEAST_DRAWS} and {_LEAST_STEP_SIZES}. Give a larger budget, or "
                "look for what makes the loss overflow"
            )
        lrs = np.array(decreases.lrs)
        self._log = np.log(lrs[:usable])
        # One column for each draw left out, and a last one with none left out.
        total = table[:, :usable].sum(axis=0)
        means = np.column_stack([(total - row[:usable]) / (draws - 1) for row in table])
        means = np.column_stack([means, total / draws])
        at = np.linspace(self._log[0], self._log[-1], _POINTS)
        curves = _spline(self._log, means, at)
        best = curves.argmax(axis=0)
        logs = _peaks(at, curves, best)
        left_out, whole = best[:-1], int(best[-1])
        each = _spline(self._log, table[:, :usable].T, at)
        self.at_best = each[whole]
        reported = each[left_out, np.arange(draws)]
        edge = "lowest" if whole == 0 else "highest" if whole == len(at) - 1 else ""
        found = _summary(decreases, reported, self.at_best, logs, edge)
        self.improvement = replace(found, fit=tuple(map(float, curves[::_KEPT, -1])))

    @property
    def certain(self) -> bool:
        """Whether I is clearly positive, and within the step sizes."""
        return self.improvement.interval[0] > 0 and not self.improvement.edge


def _summary(
    decreases: Decreases, reported: Array, at_best: Array, logs: Array, edge: str
) -> Improvement:
    """Summarise decreases at the best step size.

    ``logs`` are best log step sizes with one draw left out each, and last the one from all draws.
    """
    draws = len(reported)
    quantile = float(stdtrit(draws - 1, 1 - LEVEL / 2))
    value = float(reported.mean())
    reach = quantile * float(at_best.std(ddof=1)) / math.sqrt(draws)
    spread = math.sqrt((draws - 1) / draws * float(((logs[:-1] - logs[:-1].mean()) ** 2).sum()))
    lr, wide = float(np.exp(logs[-1])), math.exp(min(quantile * spread, 50.0))
    table = decreases.table
    with np.errstate(invalid="ignore"):
        errors = table.std(axis=0, ddof=1) / math.sqrt(draws)
    return Improvement(
        method=decreases.key,
        track=decreases.track,
        draws=draws,
        value=value,
        interval=(value - reach, value + reach),
        lr=lr,
        lr_interval=(lr / wide, lr * wide),
        edge=edge,
        lrs=tuple(decreases.lrs),
        curve=tuple(float(x) for x in table.mean(axis=0)),
        errors=tuple(float(x) for x in errors),
    )


def _peaks(at: Array, curves: Array, best: Array) -> Array:
    """Return where curves, of shape (points, n), have their maxima: parabolas about the best."""
    inside = np.clip(best, 1, len(at) - 2)
    columns = np.arange(curves.shape[1])
    before, here, after = (curves[inside + shift, columns] for shift in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend < 0)
    found = at[inside] + np.clip(shift, -1, 1) * (at[1] - at[0])
    return np.asarray(np.where(best == inside, found, at[best]))


def _spline(log_lrs: Array, decreases: Array, at: Array) -> Array:
    """Interpolate decreases, of shape (step sizes, n), at other logarithms of step sizes."""
    ratio = decreases / np.exp(log_lrs)[:, None]
    return np.asarray(CubicSpline(log_lrs, ratio)(at) * np.exp(at)[:, None])
