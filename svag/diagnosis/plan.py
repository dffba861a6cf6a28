"""What a dissection is to measure, and within which time."""

from dataclasses import dataclass

from svag.diagnosis.of_optimizer import States
from svag.entrants import Entrant

_CELLS = ("m-sgd", "m-svag", "m-ssd", "adam")
_SHARE_RACED, _LEAST_RACED = 5, 20


@dataclass(frozen=True)
class Plan:
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
