"""Where the tensors of a step lie now, and whether anything else about them has changed."""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from svag.optim.local import PLAIN, is_distributed, local, local_gradient

_address: Final = Tensor.data_ptr
_strides: Final = Tensor.stride
_elements: Final = Tensor.numel
_is_neg: Final = Tensor.is_neg
_is_conj: Final = Tensor.is_conj


class Watch(Protocol):
    """What has been seen of some parameters, their states and their gradients."""

    is_compiled: bool

    @property
    def places(self) -> Mapping[str, Any]:
        """Addresses by column of :data:`~svag.optim.engines.kernel.ADDRESSES`."""

    def look(self) -> Mapping[str, Any] | None:
        """Return the columns that lie elsewhere now, None if anything else has changed."""

    def count_changes(self) -> None:
        """Bump the versions of all parameters and averages, which autograd compares."""


def watch(
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    names: Sequence[str],
    *,
    within_batch: bool,
) -> Watch:
    """Watch some parameters in the fastest way there is for them.

    Args:
        params: all with a gradient.
        states: what their optimizer keeps of each.
        names: the tensors of a state that are updated.
        within_batch: whether ``grad_var`` is wanted beside ``grad``.
    """
    buffers = (state[name] for state in states for name in names)
    plain = all(type(tensor) in PLAIN for tensor in itertools.chain(params, buffers))
    plain = plain and all(type(state) is dict for state in states)
    if within_batch or not plain or not _can_look_in_compiled_code():
        return _Watch(params, states, names, within_batch)
    from svag.optim.engines import numba_watch

    return numba_watch.Watch(params, states, names)


def _can_look_in_compiled_code() -> bool:
    try:
        from svag.optim.engines import numba_watch
    except ImportError:  # there is no Numba
        return False
    return numba_watch.available()


class Members(Protocol):
    """Which parameters an optimizer has, and which states."""

    def are_the_same(self) -> bool:
        """Whether its lists and its states still hold the same objects."""


def members(
    lists: Sequence[Sequence[Tensor]], states: dict[Tensor, dict[str, Any]], *, compiled: bool
) -> Members:
    """Remember what lists of parameters and a dictionary of states hold.

    Args:
        lists: of parameters.
        states: by parameter.
        compiled: whether it is worth loading compiled code, if there is some.
    """
    plain = isinstance(states, dict) and all(isinstance(x, list) for x in lists)
    if not compiled or not plain or not _can_look_in_compiled_code():
        return _Members(lists, states)
    from svag.optim.engines import numba_members

    return numba_members.Members(lists, states)


class _Members:
    """A look from Python at what an optimizer holds."""

    def __init__(
        self, lists: Sequence[Sequence[Tensor]], states: dict[Tensor, dict[str, Any]]
    ) -> None:
        self._lists, self._states = lists, states
        self._held = self._seen()

    def are_the_same(self) -> bool:
        now = self._seen()
        return list(map(len, now)) == list(map(len, self._held)) and all(
            map(operator.is_, _flat(now), _flat(self._held))
        )

    def _seen(self) -> list[list[Any]]:
        return [*map(list, self._lists), list(self._states), list(self._states.values())]


class _Watch:
    """A look from Python: at any tensors, for a microsecond each."""

    is_compiled = False

    def __init__(
        self,
        params: Sequence[Tensor],
        states: Sequence[dict[str, Any]],
        names: Sequence[str],
        within_batch: bool,
    ) -> None:
        self._params, self._states = params, states
        self._of_gradients = ("grad", "grad_var") if within_batch else ("grad",)
        self._complex = any(param.is_complex() for param in params)
        self._distributed = any(map(is_distributed, params))
        # Held, so that nothing else can come to lie at the addresses that were seen.
        self._items = self._all_items()
        self._buffers = [state[name] for name in names for state in states]
        # Inference tensors have no version.
        self._counted = [t for t in [*params, *self._buffers] if not t.is_inference()]
        # What can be transposed where it lies.
        self._matrices = [t for t in map(local, [*params, *self._buffers]) if t.dim() > 1]
        self._grads, self._seen = self._sight()
        fixed = _rows([*self._seen[1], *self._seen[2]], ("param", *names))
        self.places = {**fixed, **_rows(self._grads, self._of_gradients)}

    def look(self) -> Mapping[str, Any] | None:
        items = self._all_items()
        if len(items) != len(self._items) or not all(map(operator.is_, items, self._items)):
            return None
        try:
            grads, seen = self._sight()
        except (AttributeError, RuntimeError):  # gone, or without an address
            return None
        if seen != self._seen:
            return None
        moved = grads != self._grads
        self._grads = grads
        return _rows(grads, self._of_gradients) if moved else {}

    def count_changes(self) -> None:
        torch.autograd.graph.increment_version(self._counted)

    def _all_items(self) -> list[Any]:
        """Return the keys and the values of all states."""
        return _flat(itertools.chain(state, state.values()) for state in self._states)

    def _sight(self) -> tuple[list[int], tuple[Any, ...]]:
        """Return where gradients are, and all that has to stay as it is."""
        params, buffers, grads = self._params, self._buffers, []
        for name in self._of_gradients:
            grads += [getattr(param, name) for param in params]
        if any(grad is None for grad in grads):
            raise AttributeError("a gradient is gone")
        if self._distributed:
            grads = [*map(local_gradient, params), *map(local, grads[len(params) :])]
            params, buffers = list(map(local, params)), list(map(local, buffers))
        if any(map(_is_neg, grads)) or (self._complex and any(map(_is_conj, grads))):
            raise AttributeError("a gradient stands for its negative or conjugate")
        addresses = list(map(_address, grads))
        return addresses, (
            [address == 0 for address in addresses],  # empty, and not without memory
            list(map(_address, params)),
            list(map(_address, buffers)),
            list(map(_elements, [*params, *buffers])),
            [buffer.dtype for buffer in buffers],
            list(map(_strides, grads)),
            [grad.dtype for grad in grads],
            [(t.stride(), t.is_neg(), t.is_conj()) for t in self._matrices],
        )


def _flat(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _rows(numbers: Sequence[int], names: Sequence[str]) -> dict[str, Sequence[int]]:
    """Cut numbers into as many equal parts as there are names."""
    each = len(numbers) // len(names)
    return {name: numbers[i * each : (i + 1) * each] for i, name in enumerate(names)}
