"""Made-up studies of several problems, and how often the paper's observations are said of them.

A problem is four true means in training loss and four in the metric, in the order M-SGD, M-SVAG,
M-SSD, Adam and in units of a seed's standard deviation; larger is better in the metric.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from svag.analysis.contrasts import Sample
from svag.analysis.observations import family_of, observations
from svag.analysis.observations_over_problems import Check, checks
from svag.analysis.results import judged
from svag.quantity import Quantity

SCORE = judged(Quantity("score", larger_is_better=True))
NAMES = ("M-SGD", "M-SVAG", "M-SSD", "Adam")
SIZE = 25.0
"""Of losses and scores, so that 2 % of it is half a standard deviation of a seed."""

Means = tuple[float, float, float, float]
World = Sequence[tuple[Means, Means]]

NOTHING: Means = (0.0, 0.0, 0.0, 0.0)


def sign(effect: float) -> Means:
    """Means where the sign makes so much, and adaptation nothing."""
    return (0.0, 0.0, effect, effect)


def adaptation(effect: float) -> Means:
    """Means where adaptation makes so much, and the sign nothing."""
    return (0.0, effect, 0.0, effect)


def study(world: World, rng: np.random.Generator, seeds: int) -> list[Check]:
    """Draw final runs of every problem, and hold the observations against them."""
    held = {}
    for number, (losses, scores) in enumerate(world):
        drawn = [
            [Sample(SIZE + mean + rng.standard_normal(seeds)) for mean in means]
            for means in (losses, scores)
        ]
        found = family_of(*drawn, SCORE, NAMES, smallest_effect=1.0, problems=len(world))
        held[f"problem {number}"] = observations(found)
    return checks(held)


def said(world: World, studies: int, seeds: int = 3) -> list[Counter[str]]:
    """Count the conclusions of each observation over many studies."""
    rng = np.random.default_rng([studies, seeds])
    counts: list[Counter[str]] = [Counter() for _ in range(4)]
    for _ in range(studies):
        for count, check in zip(counts, study(world, rng, seeds), strict=True):
            count[check.outcome] += 1
    return counts
