"""Effects at every evaluation of the final runs, to see how they change during training.

They are exploratory. Intervals are single ones (``contrasts.single``) at the chosen step sizes.
Evaluations may use a part of each split, so that the last one may differ from the final figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svag.analysis import contrasts
from svag.analysis.contrasts import (
    ADAPTATION,
    INTERACTION,
    SIGN,
    WEIGHTS,
    Array,
    Effect,
    Sample,
)
from svag.analysis.results import Figure, value
from svag.analysis.study import CELLS, Analysis
from svag.lab.records import Record

FOLLOWED = (SIGN, ADAPTATION, INTERACTION)


@dataclass(frozen=True)
class Course:
    """An effect over training, at the steps at which all runs of the four cells were evaluated."""

    steps: Array
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Turn:
    """A change of an effect's sign during training.

    Attributes:
        until: last step at which the interval excluded 0 on the first side.
        since: first step from which on it excluded 0 on the other side.
        direction: sign of the effect at the end: 1 if it increases the figure, else -1.
    """

    until: int
    since: int
    direction: int


def courses(analysis: Analysis, figure: Figure, level: float = 0.05) -> dict[str, Course]:
    """Return the effects of sign, adaptation and interaction over training, by name.

    Args:
        analysis: the analysis of a study; if a cell is missing, there are no effects.
        figure: the figure to take effects on.
        level: one minus the coverage of each interval.
    """
    if not analysis.cells:
        return {}
    cells = [_values(analysis.methods[analysis.cells[cell]].runs, figure) for cell in CELLS]
    shared = sorted(set.intersection(*(set(by_step) for by_step in cells)))
    steps = [step for step in shared if all(np.isfinite(by_step[step]).all() for by_step in cells)]
    found = {}
    for name in FOLLOWED:
        effects = [
            contrasts.single([Sample(by_step[step]) for by_step in cells], WEIGHTS[name], level)
            for step in steps
        ]
        found[name] = Course(np.array(steps, float), tuple(effects))
    return found


def turn(analysis: Analysis, figure: Figure, name: str = SIGN) -> Turn | None:
    """Return when an effect changed its sign during training; None if it did not.

    The intervals are corrected for the number of evaluations (Bonferroni), since all evaluations
    are searched for the change.

    Args:
        analysis: the analysis of a study.
        figure: the figure to take the effect on.
        name: name of the effect.
    """
    many = len(next(iter(courses(analysis, figure).values()), Course(np.empty(0), ())).steps)
    if many < 2:
        return None
    course = courses(analysis, figure, 0.05 / many)[name]
    sides = [effect.direction for effect in course.effects]
    end = sides[-1]
    if not end or -end not in sides:
        return None
    last = max(place for place, side in enumerate(sides) if side == -end)
    since = next(place for place in range(last, many) if set(sides[place:]) == {end})
    return Turn(int(course.steps[last]), int(course.steps[since]), end)


def _values(runs: Sequence[Record], figure: Figure) -> dict[int, Array]:
    """Return a figure of all runs by step, for the steps at which each run was evaluated."""
    by_step: dict[int, list[float]] = {}
    for record in runs:
        for line in record.evals:
            by_step.setdefault(int(line["step"]), []).append(value(line, figure.name))
    return {step: np.array(v) for step, v in by_step.items() if len(v) == len(runs)}
