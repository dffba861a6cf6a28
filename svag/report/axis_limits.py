"""Chooses the limits of an axis of curves, so that differences late in training can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svag.analysis.contrasts import Array
from svag.analysis.results import Curve, Figure
from svag.analysis.study import Analysis

_CALLS_FOR_LOG = 10.0
_SETTLED = 0.25
_STARTED = 0.05
_ROOM = 0.06
_NARROWEST = 0.002


@dataclass(frozen=True, slots=True)
class Axis:
    """Limits of a vertical axis, in units of the figure, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False


def axis(curves: Sequence[Curve], figure: Figure) -> Axis:
    """Choose an axis: logarithmic for a loss that falls tenfold after its start, else linear.

    A logarithmic axis shows all values. A linear one may cut off the beginning: the first quarter
    of the run if larger is better, the first twentieth if smaller is better.
    """
    quantity = figure.quantity
    means = _finite(np.concatenate([curve.mean.ravel() for curve in curves] or [np.empty(0)]))
    if not means.size:
        return Axis(0.0, 1.0)
    if not quantity.larger_is_better and means.min() > 0:
        started = _finite(
            np.concatenate([c.mean[c.steps >= _STARTED * c.steps[-1]] for c in curves])
        )
        if started.size and started.max() / started.min() > _CALLS_FOR_LOG:
            room = float(means.max() / means.min()) ** _ROOM
            return Axis(float(means.min() / room), float(means.max() * room), log=True)
    since = _SETTLED if quantity.larger_is_better else _STARTED
    shown = np.concatenate([_late(curve, since) for curve in curves])
    shown = shown if shown.size else means
    low, high = float(shown.min()), float(shown.max())
    room = _ROOM * max(high - low, _NARROWEST * max(abs(low), abs(high)), 1e-12)
    least = -np.inf if quantity.low is None else quantity.low - room / 2
    most = np.inf if quantity.high is None else quantity.high + room / 2
    return Axis(float(max(low - room, least)), float(min(high + room, most)))


def band(curve: Curve, axis: Axis) -> tuple[Array, Array]:
    """Return mean minus and plus a standard deviation, kept positive on a logarithmic axis."""
    low, high = curve.mean - curve.sd, curve.mean + curve.sd
    return (np.maximum(low, axis.low / 2) if axis.log else low), high


def drawn(analysis: Analysis, figure: Figure) -> dict[str, Curve]:
    """Return the curves by method, of methods with a finished run."""
    return {
        key: result.curves[figure.name] for key, result in analysis.methods.items() if result.runs
    }


def _late(curve: Curve, since: float) -> Array:
    if not curve.steps.size:
        return np.empty(0)
    late = curve.steps >= since * curve.steps[-1]
    low, high = curve.mean - curve.sd, curve.mean + curve.sd
    return _finite(np.concatenate([low[late], high[late]]))


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]
