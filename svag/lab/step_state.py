"""Saves and restores the state of a problem's own step, for checkpoints.

A step is a function with a closure, or an object. Among the values that it holds, those with a
``state_dict`` and generators are asked for their state. Other objects are saved attribute by
attribute. All other values have to be plain: tensors, numbers, texts and nestings of them.
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

State: TypeAlias = dict[str, Any]

GENERATORS = {  # global generators, whose states are always saved
    id(getattr(random.random, "__self__", None)): "Python",
    id(getattr(np.random.rand, "__self__", None)): "NumPy",
}

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_STATELESS = (type, ModuleType)


class NotResumable(Exception):
    """Some state cannot be saved in a checkpoint; the message says which."""


def demand_plain(value: Any, where: str) -> Any:
    """Return a value if it is plain throughout, else raise :class:`NotResumable`."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            demand_plain(key, f"a key of {where}")
            demand_plain(part, f"{where}[{key!r}]")
        return value
    if type(value) in (list, tuple):
        for index, part in enumerate(value):
            demand_plain(part, f"{where}[{index}]")
        return value
    raise NotResumable(f"{where} is {type(value).__name__}")


def has_state_dict(value: Any) -> bool:
    """Whether a value can save and load its own state."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def modules_in(value: Any, where: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a step holds, each after its place."""
    pending, met = [(where, value)], set()
    while pending:
        at, held = pending.pop()
        if id(held) in met:
            continue
        met.add(id(held))
        if isinstance(held, nn.Module):
            yield at, held
        elif not has_state_dict(held) and not isinstance(held, torch.Generator):
            with suppress(NotResumable):  # state_dict raises for the same value
                parts = (_parts(held, at) or {}).items()
                pending += [(f"{name} of {at}", part) for name, part in parts]


def state_of(value: Any, where: str) -> State:
    """Return the state of a step or of a value in it, as a dictionary of its kind and the state."""
    if isinstance(value, torch.Generator):
        return {"generator": value.get_state()}
    if has_state_dict(value):
        return {"state_dict": value.state_dict()}
    parts = _parts(value, where)
    if parts is None:
        return {"value": demand_plain(value, where)}
    return {"parts": {name: state_of(part, f"{name} of {where}") for name, part in parts.items()}}


def values(state: State) -> list[Any]:
    """Return the plain values in a step's state, without the states of modules and the like."""
    if "parts" in state:
        return [value for part in state["parts"].values() for value in values(part)]
    return [state["value"]] if "value" in state else []


def give_back(value: Any, state: State) -> Any:
    """Restore the state of a value, and return the value to use in its place.

    Raises:
        NotResumable: the state belongs to an object that the step creates only during the run.
    """
    (kind, its), parts = next(iter(state.items())), None
    if kind == "value":
        return its
    if kind == "generator" and isinstance(value, torch.Generator):
        value.set_state(its)
    elif kind == "state_dict" and has_state_dict(value):
        value.load_state_dict(its)
    elif kind == "parts" and (parts := _parts(value, "the step")) is not None:
        for name, part in its.items():
            given = give_back(parts.get(name), part)
            if isinstance(value, FunctionType):
                (value.__closure__ or ())[int(name)].cell_contents = given
            elif not isinstance(value, MethodType | partial):
                setattr(value, name, given)
        for name in parts.keys() - its.keys():
            delattr(value, name)
    else:
        raise NotResumable("the step holds an object that it did not hold when the run began")
    return value


def _parts(value: Any, where: str) -> dict[str, Any] | None:
    """Return the values that a function or an object holds; None for plain values."""
    if isinstance(value, _STATELESS):
        return {}
    if isinstance(value, BuiltinFunctionType):
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, _STATELESS) or id(owner) in GENERATORS:
            return {}
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        bound = [*value.args, *value.keywords.values()]
        if not all(type(part) in _PLAIN or callable(part) for part in bound):
            raise NotResumable(f"{where} is a partial with arguments that may change")
        return {str(n): part for n, part in enumerate([value.func, *filter(callable, bound)])}
    if isinstance(value, FunctionType) and not vars(value):
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        if not all(type(part) in (*_PLAIN, FunctionType, type) for part in defaults):
            raise NotResumable(f"{where} has default arguments that may change")
        cells = value.__closure__ or ()
        return {str(number): cell.cell_contents for number, cell in enumerate(cells)}
    if isinstance(value, (Tensor, list, tuple, dict, *_PLAIN)):
        return None
    if type(value).__module__ != "builtins" and _is_its_dict(value):
        return dict(vars(value))
    raise NotResumable(f"{where} is {type(value).__name__}")


def _is_its_dict(value: Any) -> bool:
    """Whether ``__dict__`` is an object's whole state, without slots or state in C."""
    kind = type(value)
    usual = all(getattr(kind, f) is getattr(object, f) for f in ("__reduce__", "__reduce_ex__"))
    slots = any(set(_slots(base)) - {"__dict__", "__weakref__"} for base in kind.__mro__)
    return hasattr(value, "__dict__") and usual and not slots


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
