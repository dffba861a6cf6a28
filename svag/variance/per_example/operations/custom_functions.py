"""Custom autograd functions that take parameters, such as straight-through estimators."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.operations.masked import by_masks
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.placement import CONSTANT
from svag.variance.per_example.recording.derived import derive
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.structures import tensors_in

_Function = torch.autograd.Function


class CustomFunctions:
    """Follows ``Function.apply`` of the user's classes while the context is open.

    Args:
        mode: the open context's interception.
    """

    def __init__(self, mode: Interception) -> None:
        self._mode = mode

    def start(self) -> None:
        """Follow calls from here on."""
        _watch()
        _open.append(self)

    def stop(self) -> None:
        """Stop following calls."""
        if self in _open:
            _open.remove(self)

    def run(
        self, cls: type[_Function], call: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run a custom function.

        Args:
            cls: its class.
            call: its ``apply``.
            args: positional arguments.
            kwargs: keyword arguments.
        """
        recorder = self._mode.recorder
        ours = cls.__module__.partition(".")[0] in ("svag", "torch")
        if ours or recorder.silent or not torch._C._is_torch_function_enabled():
            return call(*args, **kwargs)
        tensors = list(tensors_in((*args, *kwargs.values())))
        used = recorder.followed(tensors)
        if not used or not torch.is_grad_enabled():
            return call(*args, **kwargs)
        if all(state_of(t) is CONSTANT for t in tensors):
            return derive(recorder, call, args, kwargs, used)
        before = [t._version for t in tensors]
        out = call(*args, **kwargs)
        if not isinstance(out, Tensor) or before != [t._version for t in tensors]:
            raise PerExampleError(
                f"{cls.__name__}, a custom autograd.Function, takes "
                f"{', '.join(map(recorder.label, used))} and has several results or changes its "
                "arguments in place, which svag does not follow; write it with torch operations, "
                "or use svag.micro_batch_variance"
            )
        return by_masks(self._mode, call, args, kwargs, out)


_open: list[CustomFunctions] = []


@functools.cache
def _watch() -> None:
    """Replace ``Function.apply`` once, since setting it again would slow the next calls down."""
    original = _Function.__dict__["apply"]

    def apply(cls: type[_Function], *args: Any, **kwargs: Any) -> Any:
        call = original.__get__(None, cls)
        return _open[-1].run(cls, call, args, kwargs) if _open else call(*args, **kwargs)

    _Function.apply = classmethod(apply)  # type: ignore[assignment]
