"""Tensors computed from parameters with a row for each example: class tokens, initial states."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions, PlacedRows
from svag.variance.per_example.owners.following import follow, state_of
from svag.variance.per_example.owners.placement import CONSTANT, Layout, Placed, Scattered, Single
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.taps import Factory


def joined(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Concatenate the mini-batch with parameters that have a row per example (class tokens)."""
    tensors = list(args[0] if args else kwargs["tensors"])
    known = [t for t in tensors if state_of(t) is not CONSTANT]
    where = mode.where_of(known[0], func)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    dim = dim % tensors[0].dim()
    followed = mode.recorder.followed(tensors)
    for tensor in followed:
        same = not isinstance(where, Single) and tensor.dim() > where.dim
        if not same or where.dim == dim or tensor.shape[where.dim] != known[0].shape[where.dim]:
            raise PerExampleError(_unclear(mode, func, tensor, where))
    out = func(*args, **kwargs)
    follow(func, args, kwargs, tensors, [out])
    place, starts = mode.where_of(out, func), [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.shape[dim])

    def piece(n: int) -> Factory:
        def placed(delta: Tensor) -> Contributions:
            grad = delta.narrow(dim, starts[n], tensors[n].shape[dim])
            return PlacedRows(grad, cast(Layout, place))

        return placed

    uses = [(t, piece(n)) for n, t in enumerate(tensors) if any(t is f for f in followed)]
    return mode.tap(out, [], uses, place, observe=True)


def _unclear(mode: Interception, func: Call, tensor: Tensor, where: Placed) -> str:
    place = "" if isinstance(where, Single) else f" along dimension {where.dim}"
    return (
        f"{name_of(func)} takes {mode.recorder.label(tensor)} of shape {tuple(tensor.shape)} "
        f"beside a mini-batch of {where.examples} examples{place}, so which part belongs to which "
        "example is not clear; expand it to one row for each example first, or use "
        "svag.micro_batch_variance"
    )


def placed_state(mode: Interception, state: Tensor, where: Layout | Scattered) -> Tensor:
    """Return an initial state of a recurrent layer, with a tap behind it if it is learned.

    Args:
        mode: the open context's interception.
        state: the initial state, ``(layers, B, width)``.
        where: mark of the state: its examples are along dimension 1.
    """
    if mode.recorder.source_of(state) is None:
        return state

    def placed(delta: Tensor) -> Contributions:
        return PlacedRows(delta, where)

    return mode.tap(state.clone(), [], [(state, placed)], where, observe=True)
