"""What a dissection is to measure, and within which time."""

import operator
from dataclasses import dataclass

from svag.diagnosis.budget import DEFAULT
from svag.diagnosis.of_optimizer import States
from svag.entrants import Entrant
from svag.errors import InvalidOption

_CELLS = ("m-sgd", "m-svag", "m-ssd", "adam")
_SHARE_RACED, _LEAST_RACED = 5, 20


@dataclass(frozen=True)
class Plan:
    """What is dissected, beside the objective and its batches.

    Attributes:
        methods: the methods.
        budget: seconds for everything.
        spent: seconds of the budget that are spent already.
        draws: number of draws of each direction; None lets the budget decide.
        steps: length of the training that is planned; None if not known.
        longest: most steps of a training in the race; None for a fifth of ``steps``.
        race: whether there is a race.
        variants: whether rotated directions and larger batches are measured.
        states: states of optimizers to start from, by method and parameter.
        problem: name of what is dissected.
        step: training steps taken before, if known.
        seed: of everything that is drawn.
    """

    methods: tuple[Entrant, ...]
    budget: float = DEFAULT
    spent: float = 0.0
    draws: int | None = None
    steps: int | None = None
    longest: int | None = None
    race: bool = True
    variants: bool = True
    states: States | None = None
    problem: str = "model"
    step: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse numbers outside their sets.

        Raises:
            InvalidOption: as said.
        """
        if self.draws is not None:
            _refuse_unless_whole("draws", self.draws, 3, "an interval takes 3 or more")
        if self.steps is not None:
            _refuse_unless_whole("steps", self.steps, 1, "give an integer of 1 or more")
        if self.longest is not None:
            _refuse_unless_whole("longest", self.longest, 1, "give an integer of 1 or more")
        _refuse_unless_whole("seed", self.seed, -(2**63), "give an integer below 2^64", 2**64 - 1)

    @property
    def most_raced(self) -> int | None:
        """Most steps of a training in the race; None for no limit."""
        if self.longest is not None or self.steps is None:
            return self.longest
        return min(max(self.steps // _SHARE_RACED, _LEAST_RACED), self.steps)

    @property
    def cells(self) -> tuple[str, ...]:
        """Keys of the methods in the cells of the 2x2 table; empty if one is missing.

        A cell is filled by the first method of its row, with or without options.
        """
        found = []
        for cell in _CELLS:
            keys = [one.key for one in self.methods if one.row == cell]
            found += keys[:1]
        return tuple(found) if len(found) == len(_CELLS) else ()


def _refuse_unless_whole(
    name: str, value: object, least: int, remedy: str, most: float = float("inf")
) -> None:
    """Raise InvalidOption unless a value is an integer within bounds."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise InvalidOption(f"{name}={value!r}: {remedy}")
