"""The state of what a problem brings along, so that a run can be broken off and gone on with.

A model, an optimizer or a step can hold more than its ``state_dict`` says: buffers that are not
persistent, counters, caches, generators. What is plain (tensors, numbers, texts and nestings of
them) is taken along. What is not has to be as it was when the run began: where it has changed,
there is no checkpoint, and the run begins again rather than go on with a part of its state.
"""

import hashlib
import io
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag.problems.steps import Step

State: TypeAlias = dict[str, Any]

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_STATELESS = (type, ModuleType, BuiltinFunctionType)
_OF_MODULES = frozenset(vars(nn.Module()))
_OF_OPTIMIZERS = frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=1.0)))


class NotResumable(Exception):
    """Something has state that cannot be taken along; the message says what."""


class Resumable:
    """The state of a model, its optimizers and its step, to be taken and given back.

    Args:
        model: it.
        optimizers: those of the run.
        step: the problem's own, if it has one; gradients are then part of the state.
        outside: whether the optimizers are from outside svag, so may keep state of any kind.
    """

    def __init__(
        self, model: nn.Module, optimizers: list[Optimizer], step: Step | None, *, outside: bool
    ) -> None:
        self._model, self._optimizers, self._step = model, optimizers, step
        self._holders: list[tuple[str, Any, frozenset[str]]] = [
            (f"{type(module).__name__} {name}".strip(), module, _OF_MODULES)
            for name, module in model.named_modules()
        ]
        if outside:
            self._holders += [(type(o).__name__, o, _OF_OPTIMIZERS) for o in optimizers]
        held = [*model.modules(), *model.parameters(), *optimizers]
        self._known = {id(one): number for number, one in enumerate(held)}
        self._at_start = {where: self._digest(value) for where, value in self._opaque()}

    def state_dict(self) -> State:
        """Return the state.

        Raises:
            NotResumable: something has state that cannot be taken along.
        """
        for where, value in self._opaque():
            digest = self._digest(value)
            if digest is None or self._at_start.get(where) != digest:
                raise NotResumable(f"{where} is {type(value).__name__} and may have changed")
        params = dict(self._model.named_parameters())
        state: State = {
            "model": self._model.state_dict(),
            "buffers": dict(self._model.named_buffers()),
            "frozen": [name for name, p in params.items() if not p.requires_grad],
            "attributes": [
                {name: value for name, value in _attributes(holder, usual) if self._plain(value)}
                for _, holder, usual in self._holders
            ],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        if self._step is not None:
            state["gradients"] = {name: p.grad for name, p in params.items()}
            state["step"] = _state_of(self._step, "the step")
        _demand_plain(state, "the state")
        return state

    def load_state_dict(self, state: State) -> None:
        """Give the state back to what was built anew."""
        self._model.load_state_dict(state["model"])
        for (_, holder, _), values in zip(self._holders, state["attributes"], strict=True):
            for name, value in values.items():
                setattr(holder, name, value)
        with torch.no_grad():
            for name, buffer in self._model.named_buffers():
                buffer.copy_(state["buffers"][name])
        for name, param in self._model.named_parameters():
            param.requires_grad_(name not in state["frozen"])
            param.grad = state.get("gradients", {}).get(name)
        for optimizer, its in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        if self._step is not None:
            _give_back(self._step, state["step"])

    def _opaque(self) -> Iterator[tuple[str, Any]]:
        """Yield what is held and not plain, with a name for each."""
        for of, holder, usual in self._holders:
            for name, value in _attributes(holder, usual):
                if not self._plain(value):
                    yield f"{name!r} of {of}", value

    def _plain(self, value: Any) -> bool:
        """Whether it can be taken along: plain, and no parameter, of which a copy would be made."""
        try:
            _demand_plain(value, "")
        except NotResumable:
            return False
        return not any(isinstance(part, nn.Parameter) for part in _ends(value))

    def _digest(self, value: Any) -> str | None:
        """Hash a value, the model's own parts by their names; None for what cannot be pickled."""
        if isinstance(value, _STATELESS):
            return "stateless"
        known = self._known

        class Pickler(pickle.Pickler):
            def persistent_id(self, held: Any) -> int | None:
                return known.get(id(held))

        written = io.BytesIO()
        try:
            Pickler(written).dump(value)
        except Exception:  # whatever a __reduce__ raises
            return None
        return hashlib.sha256(written.getvalue()).hexdigest()


def generators(device: torch.device) -> State:
    """Return the states of all generators that a user's code may draw from without saying so."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is meant
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_generators(state: State, device: torch.device) -> None:
    """Set all these generators to where they were."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _attributes(holder: Any, usual: frozenset[str]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(holder).items() if name not in usual]


def _demand_plain(value: Any, where: str) -> Any:
    """Return a value that is plain throughout; raise where it is not."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            _demand_plain(key, f"a key of {where}")
            _demand_plain(part, f"{where}[{key!r}]")
        return value
    if type(value) in (list, tuple):
        for index, part in enumerate(value):
            _demand_plain(part, f"{where}[{index}]")
        return value
    raise NotResumable(f"{where} is {type(value).__name__}")


def _ends(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _ends(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _ends(part)
    else:
        yield value


def _state_of(value: Any, where: str) -> Any:
    """Return the state of a step, or of something that it holds."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        return value.state_dict()
    parts = _parts(value, where)
    if parts is None:
        return _demand_plain(value, where)
    return {name: _state_of(part, f"{name} of {where}") for name, part in parts.items()}


def _give_back(value: Any, state: Any) -> Any:
    """Give its state back to a value, and return what is to stand in its place."""
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
    elif (parts := _parts(value, "")) is None:
        return state
    else:
        for name, part in parts.items():
            given = _give_back(part, state[name])
            if isinstance(value, FunctionType):
                (value.__closure__ or ())[int(name)].cell_contents = given
            elif not isinstance(value, MethodType | partial):
                setattr(value, name, given)
    return value


def _parts(value: Any, where: str) -> dict[str, Any] | None:
    """Return what a function or an object holds; None for what is a value itself."""
    if isinstance(value, _STATELESS):
        return {}
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        bound = [*value.args, *value.keywords.values()]
        if not all(type(part) in _PLAIN or callable(part) for part in bound):
            raise NotResumable(f"{where} is a partial with arguments that may change")
        return {str(n): part for n, part in enumerate([value.func, *filter(callable, bound)])}
    if isinstance(value, FunctionType) and not vars(value):
        cells = value.__closure__ or ()
        return {str(number): cell.cell_contents for number, cell in enumerate(cells)}
    if isinstance(value, (Tensor, list, tuple, dict, *_PLAIN)):
        return None
    if type(value).__module__ != "builtins" and hasattr(value, "__dict__"):
        return dict(vars(value))
    raise NotResumable(f"{where} is {type(value).__name__}")
