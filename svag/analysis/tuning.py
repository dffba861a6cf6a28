"""What finding a step size took, and how much depends on it.

The cost counts every run before the final ones: the search, the selection among neighbours, and
final runs at step sizes that a divergence moved the choice away from. The sensitivity compares the
chosen step size with those beside it, by the mean of the runs that chose: it is exploratory.
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
    """Runs and seconds: those of the choice, and those of the final figures.

    ``seconds`` are of the runs whose records have a time; ``timed`` of ``runs`` do.
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
        smaller: by how much the metric is better (positive) or worse at the next smaller step size
            that was tried; NaN if none was, or every run there diverged.
        larger: the same at the next larger one.
        low: the smallest step size of those in a row around the chosen one that are no worse than
            it by the margin.
        high: the largest of them.
        margin: smallest effect of interest.
    """

    smaller: float
    larger: float
    low: float
    high: float
    margin: float


def cost(result: MethodResult) -> TuningCost:
    """Count what a method's step size and its final figures took."""
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
    """Compare a method's step size with its neighbours; None where it was not searched for."""
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
    """How much better a step size is than the chosen one; NaN if all its runs diverged."""
    merit = figure.quantity.merit
    return merit(trial.mean(figure)) - merit(chosen.mean(figure))


def _margin(analysis: Analysis) -> float:
    """Smallest effect of interest, also where the four cells are not all there."""
    if analysis.claims is not None:
        return analysis.claims.margin
    name = analysis.judged.name
    samples = [sample(result.outcome, name) for result in analysis.methods.values() if result.runs]
    given = analysis.study.smallest_effect
    return given or (default_margin(samples, analysis.quantity) if samples else math.nan)


def _once(records: Sequence[Record]) -> list[Record]:
    """Leave out repetitions: the search's run may be among those that select."""
    return list({identity(record): record for record in records}.values())


def _seconds(record: Record) -> float | None:
    time = (record.end or {}).get("wall_time")
    return None if time is None else float(time)
