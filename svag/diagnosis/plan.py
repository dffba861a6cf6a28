"""What a dissection is to measure, and within which time."""

import operator
from dataclasses import dataclass, replace

from svag.diagnosis.trained_optimizer import States
from svag.entrants import Entrant
from svag.errors import InvalidOption

_CELLS = ("m-sgd", "m-svag", "m-ssd", "adam")
_SHARE_RACED, _LEAST_RACED = 5, 20
_POSITIVE = "give an integer of 1 or more"
_SEED = "give an integer from -2^63 to 2^64 - 1"


@dataclass(frozen=True)
class DissectionPlan:
    """What is dissected, beside the objective and its batches.

    Attributes:
        methods: the methods.
        budget: seconds for everything; None for what :func:`default_seconds` says.
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
    budget: float | None = None
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

    def checked(self) -> "DissectionPlan":
        """Return the plan with Python's integers for NumPy's.

        Raises:
            InvalidOption: a number is outside its set.
        """
        least = {"draws": (3, "an interval takes 3 or more")}
        found: dict[str, int] = {"seed": _whole("seed", self.seed, -(2**63), _SEED, 2**64 - 1)}
        for name in ("draws", "steps", "longest"):
            if (value := getattr(self, name)) is not None:
                found[name] = _whole(name, value, *least.get(name, (1, _POSITIVE)))
        return replace(self, **found)  # type: ignore[arg-type]

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


def _whole(name: str, value: object, least: int, remedy: str, most: float = float("inf")) -> int:
    """Return an integer within bounds, or raise InvalidOption."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise InvalidOption(f"{name}={value!r}: {remedy}")
    return number
