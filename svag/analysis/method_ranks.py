"""Ranks of methods over problems, with the range that each rank may have.

Methods are ranked by their mean final metric, 1 is best; equal means share the mean of their ranks.
The range of a rank follows from the methods that are significantly better or worse, by intervals of
all pairs that cover at once with probability 95 %. Ranks ignore how large differences are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from svag.analysis import contrasts
from svag.analysis.contrasts import Effect
from svag.analysis.results import sample
from svag.analysis.study import Analysis


@dataclass(frozen=True)
class Rank:
    """A method's rank on a problem, and the least and greatest rank that it may have."""

    rank: float
    best: int
    worst: int


@dataclass(frozen=True)
class Ranks:
    """Ranks by method and problem, and their means, for methods that are in every study."""

    problems: tuple[str, ...]
    by_method: Mapping[str, Mapping[str, Rank]]
    means: Mapping[str, float]


def ranks(analyses: Sequence[Analysis]) -> Ranks | None:
    """Rank methods over problems; None if fewer than two methods are in all studies."""
    if not analyses:
        return None
    first = analyses[0].methods
    common = [key for key in first if all(_has_runs(one, key) for one in analyses)]
    if len(common) < 2:
        return None
    found = {one.study.base.problem: _ranked(one, common) for one in analyses}
    by_method = {key: {problem: by[key] for problem, by in found.items()} for key in common}
    means = {
        key: float(np.mean([rank.rank for rank in by.values()])) for key, by in by_method.items()
    }
    return Ranks(tuple(found), by_method, means)


def _has_runs(analysis: Analysis, key: str) -> bool:
    return key in analysis.methods and bool(analysis.methods[key].runs)


def _ranked(analysis: Analysis, keys: Sequence[str]) -> dict[str, Rank]:
    merit = analysis.quantity.merit
    samples = [sample(analysis.methods[key].outcome, analysis.judged.name) for key in keys]
    places = rankdata([-merit(float(one.values.mean())) for one in samples])
    pairs = list(combinations(range(len(keys)), 2))
    weights = {f"{i} {j}": _pair(i, j, len(keys)) for i, j in pairs}
    known = contrasts.simultaneous(samples, weights)
    better = np.zeros((len(keys), len(keys)), bool)  # whether row is significantly above column
    for i, j in pairs:
        side = _side(known[f"{i} {j}"], larger_is_better=analysis.quantity.larger_is_better)
        better[i, j], better[j, i] = side > 0, side < 0
    return {
        key: Rank(float(places[i]), 1 + int(better[:, i].sum()), len(keys) - int(better[i].sum()))
        for i, key in enumerate(keys)
    }


def _pair(one: int, other: int, many: int) -> contrasts.Array:
    weights = np.zeros(many)
    weights[one], weights[other] = 1.0, -1.0
    return weights


def _side(effect: Effect, *, larger_is_better: bool) -> int:
    return effect.direction if larger_is_better else -effect.direction
