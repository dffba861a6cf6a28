"""One call of a torch function, and the registry of rules for its outputs' marks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from svag.variance.per_example.owners.marks import is_learned
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Lost,
    Placed,
    Summed,
    Where,
)

SUMMED = Summed("a sum over the examples")


_inside_model = False


def inside_model(answer: bool) -> None:
    """Set whether a call of the model is running."""
    global _inside_model
    _inside_model = answer


def couples(tensor: Tensor, where: Where) -> bool:
    """Whether a tensor is a sum over examples that may not multiply what belongs to one of them.

    A loss may be divided by a number that depends on all examples' inputs or targets, such as a
    count of tokens. It may not if the number depends on what was learned, as a mean of the
    outputs does. Inside the model either makes one example's output depend on the others.

    Args:
        tensor: the tensor.
        where: its mark.
    """
    return isinstance(where, Summed) and (_inside_model or is_learned(tensor))


@dataclass(frozen=True)
class Operation:
    """One call of a torch function, after it has run.

    Attributes:
        func: the function.
        name: its name, the same for in-place and reflected versions (``add`` for ``__iadd__``).
        args: positional arguments.
        kwargs: keyword arguments.
        inputs: every tensor among the arguments.
        states: the mark of each input.
        outputs: every tensor returned.
    """

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    inputs: Sequence[Tensor]
    states: Sequence[Where]
    outputs: Sequence[Tensor]

    @property
    def out(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    def given(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument.

        Args:
            name: its name, if it was given by keyword.
            position: its index among positional arguments.
            default: its value if it was not given.
        """
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    def where(self, tensor: object) -> Where:
        """Return the mark of an argument; CONSTANT if it is no tensor."""
        if not isinstance(tensor, Tensor):
            return CONSTANT
        return next(w for t, w in zip(self.inputs, self.states, strict=True) if t is tensor)

    def pairs(self) -> list[tuple[Tensor, Placed]]:
        """Return the inputs whose rows are assigned to examples, with their marks."""
        every = zip(self.inputs, self.states, strict=True)
        return [(t, where) for t, where in every if isinstance(where, IS_PLACED)]

    def mixes(self) -> Lost:
        """Return the mark for an operation that mixes the examples."""
        return Lost(f"{self.name} mixes the examples", mixed=True)

    def chooses(self) -> Lost:
        """Return the mark for indices of rows that were chosen among those of all examples."""
        return Lost(f"{self.name} chooses among the examples", mixed=True, chosen=True)

    def unknown(self) -> Lost:
        """Return the mark for an operation whose effect on the examples is unknown."""
        return Lost(f"svag does not know what {self.name} does to the examples", mixed=False)


Rule: TypeAlias = Callable[[Operation], "Where | Sequence[Where]"]


RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule for operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
