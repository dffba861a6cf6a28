"""Published figures and statements on the paper's problems, which reports show beside a study's.

The paper is L. Balles and P. Hennig, *Dissecting Adam* (ICML 2018). The numbers of steps are from
its appendix or, if they are not given there, from the benchmark suite DeepOBS, which took its
problems from the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svag.analysis.observations import Outcome
from svag.analysis.study import Analysis


@dataclass(frozen=True)
class Published:
    """Final test accuracies by method, as fractions.

    Attributes:
        source: where they were published, and how they were read from there.
        steps: steps of the published runs.
        test_accuracy: final test accuracies, by method.
    """

    source: str
    steps: int
    test_accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Said:
    """The paper's statement on a problem in one of its observations, and its outcome."""

    outcome: Outcome
    words: str


@dataclass(frozen=True)
class OfThePaper:
    """A problem of the paper.

    Attributes:
        name: P1 to P4.
        steps: steps of the paper's runs.
        source: where the number of steps is given.
        batch_size: examples in a batch.
        said: the paper's statements on the problem in the four observations; None if there is none.
        least: runs with fewer steps are only trials, which are not used to check the observations.
    """

    name: str
    steps: int
    source: str
    batch_size: int
    said: tuple[Said | None, ...]
    least: int = 0


SEEDS: Final = 10
"""Number of runs of every method in the paper."""

PUBLISHED: Final[Mapping[str, Published]] = {
    "fmnist-2c2d": Published(
        source="Balles and Hennig (2018), read off Figure 5, ten seeds",
        steps=6000,
        test_accuracy={"m-sgd": 0.908, "m-ssd": 0.915, "m-svag": 0.910, "adam": 0.918},
    ),
}

_DOMINATES = Said("holds", "the methods cluster into sign-based and others")
_AT_LEAST_AS_GOOD = Said("holds", "adapted variants perform at least as well as their base methods")

PAPER: Final[Mapping[str, OfThePaper]] = {
    "fmnist-2c2d": OfThePaper(
        name="P1",
        steps=6000,
        source="the paper's appendix",
        batch_size=64,
        said=(
            _DOMINATES,
            Said("helps", "sign-based methods clearly outperform the others in training loss"),
            _AT_LEAST_AS_GOOD,
            None,
        ),
    ),
    "cifar10-3c3d": OfThePaper(
        name="P2",
        steps=40_000,
        source="believed; DeepOBS",
        batch_size=128,
        said=(
            _DOMINATES,
            Said(
                "hurts",
                "Adam and M-SSD are fast at first, plateau later and are undercut by M-SGD and "
                "M-SVAG",
            ),
            _AT_LEAST_AS_GOOD,
            None,
        ),
    ),
    "cifar100-wrn404": OfThePaper(
        name="P3",
        steps=78_200,
        source="DeepOBS: 200 epochs",
        batch_size=128,
        said=(
            _DOMINATES,
            Said("helps", "sign-based methods clearly outperform the others in training loss"),
            Said(
                "holds",
                "Adam and M-SSD perform identically, M-SVAG significantly outperforms M-SGD",
            ),
            Said(
                "holds",
                "Adam and M-SSD are far better than M-SGD in training loss and significantly worse "
                "on test data, M-SVAG is not",
            ),
        ),
        least=5_000,
    ),
    "tolstoi-char-lstm": OfThePaper(
        name="P4",
        steps=200 * 1022,
        source="DeepOBS: 200 epochs",
        batch_size=50,
        said=(
            Said("does not hold", "the exception: methods do not cluster by the sign"),
            Said("hurts", "methods without the sign show superior performance"),
            Said("holds", "M-SVAG significantly outperforms M-SGD"),
            None,
        ),
    ),
}
"""The paper's problems, by their names in svag."""


def beside(analysis: Analysis) -> Published | None:
    """Return the published figures for a study's problem and number of steps, if there are any."""
    published = PUBLISHED.get(analysis.study.base.problem)
    if published is None or published.steps != analysis.study.base.steps:
        return None
    return published


def place(problem: str) -> tuple[int, str]:
    """Return a key that sorts the paper's problems first, in its order, then others by name."""
    names = list(PAPER)
    return (names.index(problem) if problem in names else len(names), problem)


def order(accuracies: Mapping[str, float]) -> list[str]:
    """Return the methods in the order of accuracy, the best first."""
    return sorted(accuracies, key=lambda key: accuracies[key], reverse=True)
