"""Marks the model's inputs: which arguments hold the examples, and along which dimension."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from svag.errors import InvalidOption
from svag.variance.per_example.contributions.base import refuse_one
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.marks import mark, mark_of
from svag.variance.per_example.owners.placement import CONSTANT, Layout, Packed
from svag.variance.per_example.structures import named_parts

Key: TypeAlias = int | str
Choice: TypeAlias = "Key | Sequence[Key] | Callable[[Key, Tensor], bool] | None"


class Inputs:
    """Marks the inputs of calls of the model.

    Args:
        batch_dim: dimension that holds the examples.
        choice: the arguments that hold the examples, see :class:`within_batch_variance`; None for
            all tensors, which then have to agree in the number of examples.
    """

    def __init__(self, batch_dim: int, choice: Choice) -> None:
        self.batch_dim = batch_dim
        self._choice = choice
        self._names: list[str] = []

    def enter(
        self,
        module: nn.Module,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        followed: Callable[[Tensor], bool],
    ) -> int:
        """Mark the arguments of a call from outside the model; return the number of examples.

        Args:
            module: the module that is called.
            args: its positional arguments.
            kwargs: its keyword arguments.
            followed: returns whether a tensor is a parameter or computed from one.

        Raises:
            InvalidOption: the arguments disagree in the number of examples, or ``choice`` names
                none of them.
        """
        found = list(self._flat(args, kwargs))
        own = "forward" in vars(module)
        self._names = _names_of(type(module).forward) if not own else []
        packs = [(key, v) for key, v in found if isinstance(v, PackedSequence)]
        counts = [count for _, pack in packs if (count := _mark_packed(pack))]
        fresh = [
            (key, v)
            for key, v in found
            if isinstance(v, Tensor) and mark_of(v) in (None, CONSTANT) and v.dim()
            if not followed(v)
        ]
        chosen = [(key, t) for key, t in fresh if self._chosen(key, t)]
        named = any(self._chosen(key, v) for key, v in found if isinstance(v, Tensor))
        examples = self._agreed(module, chosen, counts, bool(fresh) and not named)
        for _, tensor in fresh:
            ours = any(tensor is t for _, t in chosen) and tensor.dim() > self.batch_dim
            ours = ours and bool(examples) and tensor.shape[self.batch_dim] == examples
            mark(tensor, Layout(self.batch_dim, examples) if ours else CONSTANT)
        return examples

    def _flat(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Key, Any]]:
        """Yield every tensor and packed sequence with the position or name of its argument."""
        arguments: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
        for key, value in arguments:
            if isinstance(value, list) and self._choice is None:
                _refuse_list(key, value)
            named = None if isinstance(value, Tensor) else named_parts(value)
            if named is not None:
                yield from self._flat((), {str(name): part for name, part in named.items()})
            elif isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
                yield from ((key, part) for _, part in self._flat(value, {}))
            elif isinstance(value, Tensor | PackedSequence):
                yield key, value

    def _chosen(self, key: Key, tensor: Tensor) -> bool:
        choice = self._choice
        if choice is None:
            return True
        keys: set[Key] = {key}
        if isinstance(key, int):
            keys.update(self._names[key : key + 1])
        elif key in self._names:
            keys.add(self._names.index(key))
        if callable(choice):
            return choice(key, tensor)
        return bool(keys & ({choice} if isinstance(choice, int | str) else set(choice)))

    def _agreed(
        self,
        module: nn.Module,
        chosen: Sequence[tuple[Key, Tensor]],
        counts: Sequence[int],
        misnamed: bool,
    ) -> int:
        dim = self.batch_dim
        sizes = {_named(key): t.shape[dim] for key, t in chosen if t.dim() > dim}
        found = sorted({*sizes.values(), *counts})
        if len(found) > 1 and self._choice is None:
            found = [n for n in found if n != 1]  # tensors of size 1 are broadcast
        listed = ", ".join(f"{name} of {size}" for name, size in sizes.items())
        if len(found) > 1:
            raise InvalidOption(
                f"{type(module).__name__} was given tensors that differ in dimension {dim}, which "
                f"should hold the examples: {listed}. Say which hold them, as in "
                "within_batch_variance(model, examples=0), by position, name or a function of both"
            )
        short = [(key, t) for key, t in chosen if t.dim() <= dim]
        if short and (not found or self._choice is not None):
            shapes = ", ".join(str(tuple(t.shape)) for _, t in short)
            raise InvalidOption(
                f"batch_dim={dim}: {type(module).__name__} was given tensors of shape "
                f"{shapes}, none of which has that dimension; give the one that holds the examples"
            )
        if self._choice is not None and misnamed:
            raise InvalidOption(
                f"examples={self._choice!r}: no argument of {type(module).__name__} that is a "
                "tensor has this position or name"
            )
        if found and found[0] == 0:
            refuse_one(0)
        return found[0] if found else 0


@functools.lru_cache(maxsize=256)
def _names_of(forward: Callable[..., Any]) -> list[str]:
    """Return the names of a method's positional arguments."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds]


def _named(key: Key) -> str:
    return f"argument {key}" if isinstance(key, int) else f"{key!r}"


def _refuse_list(key: Key, value: Sequence[Any]) -> None:
    """Raise if an argument is a list of tensors, which might be one for each example."""
    shapes = [tuple(v.shape) for v in value if isinstance(v, Tensor)]
    if len(shapes) > 1:
        raise InvalidOption(
            f"{_named(key)} of the model is a list of tensors of shapes "
            f"{', '.join(map(str, shapes[:4]))}: it may hold one for each example, or several with "
            "all examples each. If the latter, say so with within_batch_variance(model, "
            f"examples={key!r}); if the former, give one tensor, padded, or a PackedSequence"
        )


def _mark_packed(sequences: PackedSequence) -> int:
    """Mark a packed sequence; return the number of its sequences if it was not marked yet."""
    fresh = state_of(sequences.data) is CONSTANT
    if fresh:
        order = sequences.sorted_indices
        names = None if order is None else order.detach().cpu().numpy()
        mark(sequences.data, Packed(sequences.batch_sizes, names))
    for rest in (sequences.batch_sizes, sequences.sorted_indices, sequences.unsorted_indices):
        if rest is not None:
            mark(rest, CONSTANT)
    where = mark_of(sequences.data)
    return where.examples if isinstance(where, Packed) else 0


__all__ = ["Choice", "Inputs"]
