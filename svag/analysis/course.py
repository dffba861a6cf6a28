"""Effects at every evaluation of the final runs: exploratory, for what changes on the way.

Intervals are single ones (``contrasts.single``) at the step sizes as they were chosen. Evaluations
may be of a part of each split, so that the last one may differ from the final figures.
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
    """An effect over training: the steps that every run of the four cells was evaluated at."""

    steps: Array
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Turn:
    """An effect that changes sides: clear until a step, and clear the other way since another.

    ``direction`` is that of the end, in the figure's own sense: 1 where the effect is positive.
    """

    until: int
    since: int
    direction: int


def courses(analysis: Analysis, figure: Figure, level: float = 0.05) -> dict[str, Course]:
    """Follow the sign, adaptation and their interaction over training; none if a cell is missing.

    Args:
        analysis: of a study.
        figure: what the effects are on.
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
    """Say when an effect changed sides, if it did.

    The intervals are corrected for the number of evaluations (Bonferroni), since the steps are
    looked for among all of them.
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
    """Return a figure of all runs by step, where each of them has been evaluated."""
    by_step: dict[int, list[float]] = {}
    for record in runs:
        for line in record.evals:
            by_step.setdefault(int(line["step"]), []).append(value(line, figure.name))
    return {step: np.array(v) for step, v in by_step.items() if len(v) == len(runs)}
