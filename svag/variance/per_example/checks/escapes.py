"""Notes where a model reads numbers from tensors, which then are no tensors with owners."""

import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.placement import CONSTANT
from svag.variance.per_example.recording.functions import SET_DATA
from svag.variance.per_example.structures import tensors_in

Place = tuple[str, int]

_READS = frozenset(
    {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__}
    | {Tensor.__float__, Tensor.__index__, Tensor.__complex__, Tensor.__contains__}
    | {torch.equal, Tensor.equal, torch.allclose, Tensor.allclose}
    | {torch.is_nonzero, Tensor.is_nonzero, SET_DATA}
)
_HIDDEN = tuple(str(Path(p).parent) for p in (torch.__file__, __file__))

_approved: "weakref.WeakKeyDictionary[nn.Module, set[Place]]" = weakref.WeakKeyDictionary()


class Escapes:
    """The places in the code at which one call of a model reads numbers from tensors.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places: set[Place] = set()
        self._versions: list[int] = []

    def begin(self, inputs: Any) -> None:
        """Forget the places, when a call begins.

        Args:
            inputs: the arguments of the call.
        """
        self._places.clear()
        self._versions = [t._version for t in tensors_in(inputs)]

    def record(self, func: Callable[..., Any], args: Sequence[Any]) -> None:
        """Note the place if the operation reads numbers that depend on the mini-batch.

        Args:
            func: the operation.
            args: its positional arguments.
        """
        if func not in _READS or torch._C._current_graph_task_id() != -1:
            return
        if any(state_of(t) is not CONSTANT for t in args if isinstance(t, Tensor)):
            self._places.add(_place())

    def found(self, inputs: Any) -> bool:
        """Whether a place is new, and the call can be repeated since no input has changed.

        Args:
            inputs: the arguments of the call.
        """
        if self._places <= _approved.get(self._model, set()):
            return False
        return self._versions == [t._version for t in tensors_in(inputs)]

    def approve(self) -> None:
        """Record that these places were checked."""
        _approved.setdefault(self._model, set()).update(self._places)


def _place() -> Place:
    """Return file and line of the innermost call outside torch and svag."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HIDDEN):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
