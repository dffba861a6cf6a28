"""The cost of finding a step size, and how much the results depend on it.

The cost counts every run before the final ones: the search, the selection among neighbours, and
final runs at step sizes that were given up after a divergence. The sensitivity compares the chosen
step size with its neighbours, by the means of search and selection runs; it is exploratory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from svag.analysis.claims import default_margin
from svag.analysis.results import Figure, MethodResult, Trial, sample
from svag.analysis.study import Analysis
from svag.lab.records import Record, identity


@dataclass(frozen=True)
class TuningCost:
    """Runs and seconds of the search and selection, and of the final runs.

    ``seconds`` is the sum over the runs whose records have a time, ``timed`` out of ``runs``.
    """

    runs: int
    seconds: float
    timed: int
    final_runs: int
    final_seconds: float


@dataclass(frozen=True)
class Sensitivity:
    """The metric around the chosen step size, in its own units.

    Attributes:
        smaller: by how much the metric is better (positive) or worse (negative) at the next smaller
            step size that was tried; NaN if there is none, or every run there diverged.
        larger: the same at the next larger step size.
        low: the smallest step size of the unbroken range around the chosen one in which no run
            diverged and the metric is worse by less than the margin.
        high: the largest step size of that range.
        margin: smallest effect of interest.
    """

    smaller: float
    larger: float
    low: float
    high: float
    margin: float


def cost(result: MethodResult) -> TuningCost:
    """Return the runs and seconds of a method's search and selection, and of its final runs."""
    outcome = result.outcome
    chosen = _once(
        [
            *outcome.search.values(),
            *(record for several in outcome.selection.values() for record in several),
            *(record for several in outcome.lost.values() for record in several),
        ]
    )
    times = [time for record in chosen if (time := _seconds(record)) is not None]
    final = [_seconds(record) or 0.0 for record in outcome.final]
    return TuningCost(len(chosen), sum(times), len(times), len(outcome.final), sum(final))


def sensitivity(analysis: Analysis, key: str) -> Sensitivity | None:
    """Compare a method's step size with its neighbours; None if there was no search."""
    result, figure = analysis.methods[key], analysis.judged
    trials = list(result.trials)
    lrs = [trial.lr for trial in trials]
    if result.lr not in lrs:
        return None
    place, margin = lrs.index(result.lr), _margin(analysis)
    gains = [_gain(trial, trials[place], figure) for trial in trials]
    as_good = [
        gain > -margin and not trial.diverged for gain, trial in zip(gains, trials, strict=True)
    ]
    low = high = place
    while low > 0 and as_good[low - 1]:
        low -= 1
    while high + 1 < len(trials) and as_good[high + 1]:
        high += 1
    return Sensitivity(
        smaller=gains[place - 1] if place > 0 else math.nan,
        larger=gains[place + 1] if place + 1 < len(trials) else math.nan,
        low=lrs[low],
        high=lrs[high],
        margin=margin,
    )


def _gain(trial: Trial, chosen: Trial, figure: Figure) -> float:
    """Return how much better a step size is than the chosen one; NaN if all its runs diverged."""
    merit = figure.quantity.merit
    return merit(trial.mean(figure)) - merit(chosen.mean(figure))


def _margin(analysis: Analysis) -> float:
    """Return the smallest effect of interest, also if a cell is missing."""
    if analysis.claims is not None:
        return analysis.claims.margin
    name = analysis.judged.name
    samples = [sample(result.outcome, name) for result in analysis.methods.values() if result.runs]
    given = analysis.study.smallest_effect
    return given or (default_margin(samples, analysis.quantity) if samples else math.nan)


def _once(records: Sequence[Record]) -> list[Record]:
    """Leave out repeated records: the search's run can also be a selection run."""
    return list({identity(record): record for record in records}.values())


def _seconds(record: Record) -> float | None:
    time = (record.end or {}).get("wall_time")
    return None if time is None else float(time)
