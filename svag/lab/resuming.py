"""Saves and restores the state of a model, its optimizers and its step, for checkpoints.

They can have state that is not in their ``state_dict``: buffers that are not persistent, counters,
caches, generators. Plain values (tensors, numbers, texts and nestings of them) are saved. Other
values (objects, hooks, functions of the problem, tensors that share memory with a parameter) cannot
be saved; they are hashed, and must be the same as when the run began. If one has changed, no
checkpoint is written, and an interrupted run begins again. After a state has been restored, it is
saved again and compared. Global variables and attributes of classes are not covered.
"""

import hashlib
import io
import pickle
import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag.lab.step_state import (
    GENERATORS,
    NotResumable,
    State,
    demand_plain,
    give_back,
    has_state_dict,
    modules_in,
    state_of,
    values,
)
from svag.optim import Dissected
from svag.problems.steps import Step

_OF_MODULES = frozenset(vars(nn.Module()))
_OF_PARAMETERS = frozenset({"grad_var"})  # recomputed in every step, so not saved
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_post_accumulate_grad_hooks", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
)


class Resumable:
    """Saves and restores the state of a model, its optimizers and its step.

    Args:
        model: the model.
        optimizers: the optimizers of the run.
        step: the problem's own step; None if it has none. With a step, gradients are saved, too.
        functions: other functions that a step calls, such as the loss, by name; their state cannot
            be saved and must not change.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        step: Step | None,
        functions: Mapping[str, Callable[..., Any] | None] | None = None,
    ) -> None:
        self._model, self._optimizers, self._step = model, optimizers, step
        self._functions = {name: f for name, f in (functions or {}).items() if f is not None}
        self._roots = {"the model": model, **dict(modules_in(step, "the step"))}
        self._outside = [o for o in optimizers if not isinstance(o, Dissected)]
        self._held = self._parts_held()
        self._known = {id(one): number for number, one in enumerate([*self._held, *optimizers])}
        self._at_start = self.digests()

    def digests(self) -> dict[str, str | None]:
        """Return hashes of the values that cannot be saved, by name; None if not hashable."""
        return {where: self._digest(value) for where, value in self._opaque()}

    def state_dict(self) -> State:
        """Return the state.

        Raises:
            NotResumable: a value that cannot be saved has changed since the run began.
        """
        if [id(one) for one in self._parts_held()] != [id(one) for one in self._held]:
            raise NotResumable("a module or a parameter was added, removed or replaced")
        now = self.digests()
        plain = [
            f"{name!r} of {of}" for of, *its in self._holders() for name, _ in _attributes(*its)
        ]
        for where in [*now, *(self._at_start.keys() - plain)]:
            if now.get(where) is None or now[where] != self._at_start.get(where):
                raise NotResumable(f"{where} may have changed")
        params = dict(self._model.named_parameters())
        state: State = {
            "model": self._model.state_dict(),
            "parameters": [p.detach() for p in self._parameters()],
            "buffers": [
                dict(root.named_buffers(remove_duplicate=False)) for root in self._roots.values()
            ],
            "frozen": [name for name, p in params.items() if not p.requires_grad],
            "training": [m.training for m in self._held if isinstance(m, nn.Module)],
            "attributes": [
                {name: value for name, value in _attributes(holder, usual) if self._plain(value)}
                for _, holder, usual in self._holders()
            ],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        if self._step is not None:
            state["gradients"] = {name: p.grad for name, p in params.items()}
            state["step"] = state_of(self._step, "the step")
            if not has_state_dict(self._step) and self._shares_memory(values(state["step"])):
                raise NotResumable("the step holds parameters or buffers of the model")
        demand_plain(state, "the state")
        return state

    def load_state_dict(self, state: State) -> None:
        """Restore a state in newly built objects.

        Raises:
            NotResumable: the state afterwards differs from the given one.
        """
        self._model.load_state_dict(state["model"])
        for (_, holder, usual), held in zip(self._holders(), state["attributes"], strict=True):
            for name, value in _attributes(holder, usual):
                if name not in held and self._plain(value):
                    delattr(holder, name)
            for name, value in held.items():
                setattr(holder, name, value)
        for root, buffers in zip(self._roots.values(), state["buffers"], strict=True):
            _set_buffers(root, buffers)
        for number, optimizer in enumerate(self._optimizers):
            optimizer.load_state_dict(state["optimizers"][number])
            if type(optimizer).load_state_dict is Optimizer.load_state_dict:
                _set_exactly(optimizer, state["optimizers"][number]["state"])
        if self._step is not None:
            give_back(self._step, state["step"])
        with torch.no_grad():
            for param, value in zip(self._parameters(), state["parameters"], strict=True):
                param.copy_(value)
        for name, param in self._model.named_parameters():
            param.requires_grad_(name not in state["frozen"])
            param.grad = state.get("gradients", {}).get(name)
        modules = [m for m in self._held if isinstance(m, nn.Module)]
        for module, training in zip(modules, state["training"], strict=True):
            module.training = training
        given = self.state_dict()
        if differing := _difference({name: state[name] for name in given}, given):
            raise NotResumable(f"{differing} is not restored exactly")

    def _parts_held(self) -> list[nn.Module | nn.Parameter]:
        """Return modules and parameters, which must stay the same objects during a run."""
        roots = self._roots.values()
        return [
            *(m for r in roots for m in r.modules()),
            *(p for r in roots for p in r.parameters()),
        ]

    def _parameters(self) -> list[nn.Parameter]:
        return [p for root in self._roots.values() for p in root.parameters()]

    def _holders(self) -> Iterator[tuple[str, Any, frozenset[str]]]:
        """Yield objects that may have attributes of the user's, and torch's own attributes."""
        for at, root in self._roots.items():
            of = "" if root is self._model else f" of {at}"
            for name, module in root.named_modules():
                yield f"{type(module).__name__} {name}".strip() + of, module, _OF_MODULES
            for name, param in root.named_parameters():
                yield f"parameter {name}{of}", param, _OF_PARAMETERS
        for number, optimizer in enumerate(self._outside):
            yield f"{type(optimizer).__name__} {number or ''}".strip(), optimizer, _of_optimizers()

    def _opaque(self) -> Iterator[tuple[str, Any]]:
        """Yield all values that cannot be saved, each after its name."""
        for of, holder, usual in self._holders():
            for name, value in _attributes(holder, usual):
                if not self._plain(value):
                    yield f"{name!r} of {of}", value
        held = [(of, holder) for of, holder, _ in self._holders()]
        ours = [(type(o).__name__, o) for o in self._optimizers if o not in self._outside]
        for of, holder in held + ours:
            for name in _HOOKS:
                if hooks := getattr(holder, name, None):
                    yield f"{name!r} of {of}", list(hooks.values())
        for name, function in self._functions.items():
            yield f"what {name} holds", function

    def _plain(self, value: Any) -> bool:
        """Whether a value can be saved: it is plain and shares no memory with the model."""
        try:
            demand_plain(value, "")
        except NotResumable:
            return False
        return not self._shares_memory(value)

    def _shares_memory(self, value: Any) -> bool:
        """Whether a tensor in a value shares memory with a parameter or a buffer."""
        ends = [part for part in _ends(value) if isinstance(part, Tensor)]
        if not ends:
            return False
        held = [t for r in self._roots.values() for t in (*r.parameters(), *r.buffers())]
        return bool({_memory(t) for t in ends} & {_memory(t) for t in held} - {0})

    def _digest(self, value: Any) -> str | None:
        """Hash a value, in which parts of the model are numbers; None if it cannot be pickled."""
        written = io.BytesIO()
        try:
            _Pickler(written, self._known).dump(value)
        except Exception:  # a user's __reduce__ may raise anything
            return None
        return hashlib.sha256(written.getvalue()).hexdigest()


class _Pickler(pickle.Pickler):
    """Pickles values for hashing: functions with their closures, tensors by their values."""

    def __init__(self, file: io.BytesIO, known: Mapping[int, int]) -> None:
        super().__init__(file)
        self._known = known
        self._met: dict[int, str] = {}

    def persistent_id(self, held: Any) -> int | str | None:
        held = held() if isinstance(held, weakref.ref) else held
        if isinstance(held, FunctionType):
            if id(held) in self._met:
                return self._met[id(held)]
            self._met[id(held)] = f"function {len(self._met)}"
        return GENERATORS.get(id(held)) or self._known.get(id(held))

    def reducer_override(self, held: Any) -> Any:
        if held is _written:
            return NotImplemented
        if isinstance(held, FunctionType):
            cells = [cell.cell_contents for cell in held.__closure__ or ()]
            defaults = (held.__defaults__, held.__kwdefaults__)
            return _written, (held.__module__, held.__qualname__, defaults, cells, vars(held))
        if isinstance(held, type):
            return _written, (held.__module__, held.__qualname__)
        if isinstance(held, ModuleType):
            return _written, (held.__name__,)
        if isinstance(held, Tensor) and held.layout is torch.strided:
            flat = held.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
            return _written, (str(held.dtype), tuple(held.shape), flat.numpy().tobytes())
        return NotImplemented


def _written(*parts: Any) -> None:
    """A name for pickles to call; they are only hashed, so it is never called."""


def generators(device: torch.device) -> State:
    """Return the states of the global generators of Python, NumPy and torch."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is meant
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_generators(state: State, device: torch.device) -> None:
    """Restore the states of the global generators."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@cache
def _of_optimizers() -> frozenset[str]:
    """Return the attributes of every optimizer; cached, since torch's first takes two seconds."""
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=1.0))) - {"defaults"}


def plain_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Return a module's plain attributes, without parameters, buffers and modules."""
    found = []
    for name, value in _attributes(module, _OF_MODULES):
        with suppress(NotResumable):
            found.append((name, demand_plain(value, name)))
    return found


def _attributes(holder: Any, usual: frozenset[str]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(holder).items() if name not in usual]


def _ends(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _ends(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _ends(part)
    else:
        yield value


def _memory(tensor: Tensor) -> int:
    """Return the address of a tensor's storage; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, or without a shape yet
        return 0


def _set_buffers(root: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Restore buffers, in place if shape, dtype and device are the same."""
    for at, module in root.named_modules():
        for name, buffer in module._buffers.items():
            value = buffers.get(f"{at}.{name}".lstrip("."))
            if value is None or buffer is None or _kind(value) != _kind(buffer):
                module._buffers[name] = value
            else:
                buffer.copy_(value)


def _set_exactly(optimizer: Optimizer, state: Mapping[int, Any]) -> None:
    """Restore the state of parameters without torch's cast to the parameters' dtypes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in state.items():
        optimizer.state[params[index]] = entry


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.device


def _difference(one: Any, other: Any, where: str = "the state") -> str:
    """Say where two states differ; empty if nowhere."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = _kind(one) == _kind(other) and bool(torch.equal(one, other) or _alike(one, other))
        return "" if same else where
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        found = (_difference(one[key], other[key], f"{where}[{key!r}]") for key in one)
        return next(filter(None, found), "")
    if type(one) is type(other) and isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        found = (_difference(a, b, f"{where}[{index}]") for index, (a, b) in pairs)
        return next(filter(None, found), "")
    same = type(one) is type(other) and (one == other or (one != one and other != other))
    return "" if same else where


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, NaN to NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
