"""Marks: every tensor that depends on the mini-batch carries its placement.

Marks are set on the inputs of the model, and every operation passes them on
(:mod:`~svag.variance.per_example.owners.following`).
"""

import itertools
import weakref
from typing import cast

from torch import Tensor

from svag.variance.per_example.owners.placement import Lost, Where

_MARK = "_svag_placement"
_LEARNED = "_svag_learned"
_ROWS = "_svag_rows"
_CHANGED = "_svag_changed"
_ALIAS = "_svag_alias"
_REWRITTEN = Lost("rows of other examples were written into it through another view", mixed=False)

_sessions = itertools.count(1)
_session = 0
_changes = 0  # times that an operation in place gave rows to other examples
_by_address: dict[tuple[object, ...], Where] = {}


def forget_marks() -> None:
    """Make the marks of all tensors invalid."""
    global _session
    _session = next(_sessions)
    _by_address.clear()


def mark(tensor: Tensor, where: Where) -> None:
    """Set the mark of a tensor.

    It is stored under the tensor's address, too: checkpointing recomputes from new tensor objects
    that share the memory of the original inputs.
    """
    setattr(tensor, _MARK, (_session, where, _changes))
    _by_address[_address(tensor)] = where


def note_change(tensor: Tensor) -> None:
    """Record that rows of a tensor, and of what it is a view of, were given to other examples.

    Args:
        tensor: the tensor, before its new mark is set.
    """
    global _changes
    _changes += 1
    setattr(whole_of(tensor), _CHANGED, (_session, _changes))


def note_alias(tensor: Tensor, origin: Tensor) -> None:
    """Record that a tensor shares its memory with another, as ``x.data`` does, and is no view."""
    setattr(tensor, _ALIAS, _Reference(origin))


class _Reference:
    """A weak reference to a tensor that is lost in copies."""

    def __init__(self, tensor: Tensor | None = None) -> None:
        self._tensor = None if tensor is None else weakref.ref(tensor)

    def __call__(self) -> Tensor | None:
        return None if self._tensor is None else self._tensor()

    def __reduce__(self) -> tuple[type["_Reference"], tuple[()]]:
        return _Reference, ()


def origin_of(tensor: Tensor) -> Tensor | None:
    """Return the tensor that :func:`note_alias` recorded."""
    reference = getattr(tensor, _ALIAS, None)
    return None if reference is None else cast(_Reference, reference)()


def whole_of(tensor: Tensor) -> Tensor:
    """Return the tensor that a view is a view of; a tensor that is no view itself."""
    base = tensor._base if tensor._is_view() else None
    return tensor if base is None else base


def mark_learned(tensor: Tensor) -> None:
    """Record that a tensor without a gradient depends on the parameters, as a detached output."""
    setattr(tensor, _LEARNED, _session)


def is_learned(tensor: Tensor) -> bool:
    """Whether a tensor depends on trained parameters, with or without a gradient."""
    return tensor.requires_grad or getattr(tensor, _LEARNED, 0) == _session


def note_rows(tensor: Tensor, where: Where) -> None:
    """Record the mark that the gradient of a constant has, such as a perturbation of the inputs.

    Args:
        tensor: the constant, which requires a gradient.
        where: the mark of its gradient.
    """
    setattr(tensor, _ROWS, (_session, where))


def noted_rows(tensor: Tensor) -> Where | None:
    """Return the mark that :func:`note_rows` recorded."""
    session, where = getattr(tensor, _ROWS, (0, None))
    return where if session == _session else None


def forget_addresses() -> None:
    """Clear the marks by address, which :func:`recall` uses, when a new forward pass begins."""
    _by_address.clear()


def _address(tensor: Tensor) -> tuple[object, ...]:
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
    except RuntimeError:  # without memory: sparse tensors, tensors inside functorch
        return (id(tensor),)


def recall(tensor: Tensor) -> None:
    """Restore the mark of a tensor that checkpointing passes in again, by its address."""
    if mark_of(tensor) is None and (where := _by_address.get(_address(tensor))) is not None:
        mark(tensor, where)


def mark_of(tensor: Tensor) -> Where | None:
    """Return the mark of a tensor; None if it has none, as tensors from outside the model."""
    session, where, changes = getattr(tensor, _MARK, (0, None, 0))
    if session != _session:
        return None
    if changes != _changes:
        session, last = getattr(whole_of(tensor), _CHANGED, (0, 0))
        if session == _session and last > changes:
            return _REWRITTEN
    return cast(Where, where)
