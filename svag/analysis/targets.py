"""How soon methods reach a target: steps and seconds to the first evaluation that is as good.

By default the target is the mean of the worst method at the last evaluation, which all methods
reach. Steps are only as exact as the distance between evaluations. Seconds are those of the final
runs, on the machines they ran on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svag.analysis.results import Figure, Spread, spread, value
from svag.analysis.study import Analysis
from svag.errors import InvalidOption
from svag.lab.records import Record


@dataclass(frozen=True)
class Reached:
    """How soon a method's final runs reach a target.

    Attributes:
        reached: number of runs that reach it.
        runs: number of runs.
        steps: mean and deviation of the steps of the runs that reach it.
        seconds: mean and deviation of their times; NaN if a record has no time.
    """

    reached: int
    runs: int
    steps: Spread
    seconds: Spread


@dataclass(frozen=True)
class Target:
    """A value of a figure, and how soon each method reaches it.

    Attributes:
        figure: the figure.
        value: the value to reach.
        worst: name of the method whose mean at the last evaluation is the value; empty if the value
            was given.
        by_method: how soon it is reached, by method.
    """

    figure: Figure
    value: float
    worst: str
    by_method: Mapping[str, Reached]


def target(analysis: Analysis, figure: Figure, given: float | None = None) -> Target | None:
    """Compute how soon each method reaches a value of a figure.

    Args:
        analysis: the analysis of a study.
        figure: the study's metric, or a loss.
        given: the value, a fraction if the figure is a percentage; None for the mean of the worst
            method at the last evaluation.

    Returns:
        The target; None if no method has a final run with a finite figure.

    Raises:
        InvalidOption: the value is not finite, or outside the bounds of the figure.
    """
    quantity = figure.quantity
    runs = {key: result.runs for key, result in analysis.methods.items() if result.runs}
    if given is not None:
        _check(given, figure)
    last = {
        key: float(curve.mean[-1])
        for key in runs
        if (curve := analysis.methods[key].curves[figure.name]).steps.size
        and math.isfinite(curve.mean[-1])
    }
    if not last:
        return None
    worst = min(last, key=lambda key: quantity.merit(last[key]))
    wanted = last[worst] if given is None else given
    return Target(
        figure=figure,
        value=wanted,
        worst=worst if given is None else "",
        by_method={key: _reached(records, figure, wanted) for key, records in runs.items()},
    )


def _check(given: float, figure: Figure) -> None:
    quantity = figure.quantity
    low = -math.inf if quantity.low is None else quantity.low
    high = math.inf if quantity.high is None else quantity.high
    if not (math.isfinite(given) and low <= given <= high):
        bounds = f" from {low:g} to {high:g}" if math.isfinite(low + high) else ""
        note = "; percentages are fractions, 90 % is 0.9" if quantity.percent else ""
        raise InvalidOption(f"target {given}: give a finite {quantity.title}{bounds}{note}")


def _reached(records: Sequence[Record], figure: Figure, wanted: float) -> Reached:
    merit = figure.quantity.merit
    first = [
        next(
            (line for line in record.evals if merit(value(line, figure.name)) >= merit(wanted)),
            None,
        )
        for record in records
    ]
    there = [line for line in first if line is not None]
    return Reached(
        reached=len(there),
        runs=len(records),
        steps=spread([float(line["step"]) for line in there]),
        seconds=spread([value(line, "wall_time") for line in there]),
    )
