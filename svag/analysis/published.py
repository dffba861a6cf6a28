"""Figures that others have published for a problem, to show ours beside."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svag.analysis.study import Analysis


@dataclass(frozen=True)
class Published:
    """Final test accuracies by method, as fractions.

    Attributes:
        source: where they stand, and how they were obtained from there.
        steps: length of the published runs.
        test_accuracy: by method.
    """

    source: str
    steps: int
    test_accuracy: Mapping[str, float]


PUBLISHED: Final[Mapping[str, Published]] = {
    "fmnist-2c2d": Published(
        source="Balles and Hennig (2018), read off Figure 5, ten seeds",
        steps=6000,
        test_accuracy={"m-sgd": 0.908, "m-ssd": 0.915, "m-svag": 0.910, "adam": 0.918},
    ),
}


def beside(analysis: Analysis) -> Published | None:
    """Return what is published for a study's problem at its length, if anything is."""
    published = PUBLISHED.get(analysis.study.base.problem)
    if published is None or published.steps != analysis.study.base.steps:
        return None
    return published


def order(accuracies: Mapping[str, float]) -> list[str]:
    """Methods from best to worst."""
    return sorted(accuracies, key=lambda key: accuracies[key], reverse=True)
