"""What a module keeps of its calls in attributes: containers, counters, generators, arrays.

A second call of the model must not change them. They are put back into the same objects, since
others may hold these.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_INTERNAL = frozenset({"_parameters", "_buffers", "_modules", "training"})
_MOST = 10_000  # objects that are looked at; what a model refers to may be a whole program
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, nn.Module, torch.dtype)


class Kept:
    """The attributes of modules, and generators among the arguments of a call.

    Args:
        modules: the modules.
        arguments: other objects, such as the arguments of the call.
    """

    def __init__(self, modules: Iterable[nn.Module], arguments: Iterable[Any] = ()) -> None:
        self._held = [(module, _own(module)) for module in modules]
        self._seen: set[int] = set()
        self._back: list[Callable[[], object]] = []
        for _, held in self._held:
            for value in held.values():
                self._keep(value, nested=True)
        for value in arguments:
            if not isinstance(value, Tensor):
                self._keep(value, nested=False)

    def restore(self) -> None:
        """Put everything back."""
        for module, held in self._held:
            for name in _own(module).keys() - held.keys():
                del module.__dict__[name]
            module.__dict__.update(held)
        for back in self._back:
            back()

    def _keep(self, value: Any, *, nested: bool) -> None:
        """Keep what an object contains, and what objects in it do.

        Args:
            value: the object.
            nested: whether it may be an object of a class of the user's.
        """
        if isinstance(value, _PLAIN) or id(value) in self._seen or len(self._seen) >= _MOST:
            return
        self._seen.add(id(value))
        if (back := _way_back(value)) is not None:
            self._back.append(back)
        elif isinstance(value, list | set | deque | tuple | frozenset | dict):
            if not isinstance(value, tuple | frozenset):
                self._back.append(_refill(value))
            for part in value.values() if isinstance(value, dict) else value:
                self._keep(part, nested=nested)
        elif nested and isinstance(own := getattr(value, "__dict__", None), dict):
            self._keep(own, nested=False)


def _own(module: nn.Module) -> dict[str, Any]:
    attributes = module.__dict__.items()
    return {k: v for k, v in attributes if k not in _INTERNAL and "hooks" not in k}


def _refill(value: Any) -> Callable[[], object]:
    """Return a function that puts the present elements back into a container."""
    if isinstance(value, dict):
        items = list(value.items())

        def again() -> None:
            dict.clear(value)
            dict.update(value, items)

        return again
    parts = list(value)

    def refill() -> None:
        value.clear()
        value.update(parts) if isinstance(value, set) else value.extend(parts)

    return refill


def _way_back(value: Any) -> Callable[[], object] | None:
    """Return a function that restores a generator, an array or a tensor; None for others."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        internal = value.getstate()
        return lambda: value.setstate(internal)
    if isinstance(value, np.random.Generator | np.random.RandomState):
        bits = (
            value.bit_generator if isinstance(value, np.random.Generator) else value._bit_generator
        )
        numbers = bits.state
        return lambda: setattr(bits, "state", numbers)
    if isinstance(value, np.ndarray) and value.flags.writeable and not value.dtype.hasobject:
        array = value.copy()
        return lambda: np.copyto(value, array)
    if type(value) is Tensor and value.is_leaf:
        before = value.detach().clone()
        return lambda: _copy_back(value, before)
    return None


@torch.no_grad()
def _copy_back(tensor: Tensor, before: Tensor) -> None:
    if tensor.shape == before.shape and not torch.equal(tensor, before):
        tensor.copy_(before)
