"""Where the tensors of a step lie now, and whether anything else about them has changed.

A fused engine works on addresses, and between two steps anything may be replaced: gradients are
made anew, ``.data`` is swapped, states are loaded or cleared. So every step asks each tensor that
the optimizer has at that time. Nothing here keeps a tensor alive.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from svag.optim.dtensor import PLAIN, local, local_gradient
from svag.optim.engines.kernel_spec import EMPTY

_dtype: Final = operator.attrgetter("dtype")
_bytes: Final = operator.attrgetter("nbytes")


class MemoryLayout(NamedTuple):
    """How some tensors lie in memory.

    Attributes:
        dtypes: of each.
        sizes: in bytes. Of what fills a stretch of memory, as fused engines ask, the size and the
            strides tell the shape.
        strides: None where all are contiguous.
    """

    dtypes: list[torch.dtype]
    sizes: list[int]
    strides: list[tuple[int, ...]] | None

    @classmethod
    def of(cls, tensors: Sequence[Tensor], *, contiguous: bool = True) -> "MemoryLayout":
        """Ask tensors: a few calls for each.

        Args:
            tensors: plain ones.
            contiguous: leave out strides if all are contiguous.
        """
        strides = None
        if not (contiguous and all(map(Tensor.is_contiguous, tensors))):
            strides = list(map(Tensor.stride, tensors))
        return cls(list(map(_dtype, tensors)), list(map(_bytes, tensors)), strides)

    def at(self, places: Sequence[int]) -> "MemoryLayout":
        """Return the layout of some of the tensors."""
        parts: list[Any] = [part and [part[place] for place in places] for part in self]
        return MemoryLayout(*parts)

    def with_part(self, places: Sequence[int], seen: "MemoryLayout") -> "MemoryLayout":
        """Return this layout, at some places as it was seen there."""
        parts: list[Any] = [part and [*part] for part in self]
        for part, found in zip(parts, seen, strict=True):
            if part is not None and found is not None:
                for place, value in zip(places, found, strict=True):
                    part[place] = value
        return MemoryLayout(*parts)


class Sight:
    """What was last seen of the tensors of some parameters.

    Args:
        places: of the parameters among all of the optimizer's.
        state_places: of their states among all of the optimizer's; empty if they have none.
        names: of the tensors of a state that are updated, the step among them.
        within_batch: whether ``grad_var`` is read beside ``grad``.
        distributed: whether there are DTensors.

    Attributes:
        addresses: by column of :data:`~svag.optim.engines.kernel_spec.ADDRESSES`. A parameter
            without a gradient has 0 there.
        moved: the columns that the last look has found elsewhere.
    """

    def __init__(
        self,
        places: Sequence[int],
        state_places: Sequence[int],
        names: Sequence[str],
        *,
        within_batch: bool,
        distributed: bool,
    ) -> None:
        self._places, self._state_places, self._names = places, state_places, names
        self._of_gradients = ("grad", "grad_var") if within_batch else ("grad",)
        self._distributed = distributed
        self._layouts: dict[str, MemoryLayout] = {}
        self._columns: dict[str, list[Tensor]] = {}  # between a look and the step
        self.addresses: dict[str, list[int]] = {}
        self.moved: list[str] = []

    def look(self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> bool:
        """Find the tensors where they are now; False if anything but gradients' places changed.

        The first look remembers what it sees.

        Args:
            params: all of the optimizer's.
            states: all of the optimizer's.
        """
        self.moved = []
        try:
            self._columns = self._gathered(params, states)
            return all(
                self._are_in_place(name, tensors) for name, tensors in self._columns.items()
            ) and all(self._are_alike(name) for name in self._of_gradients)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            return False  # a tensor is gone, or has no address

    def count_changes(self) -> None:
        """Raise the versions of what has been updated since the last look, which autograd compares.

        Then the tensors are let go.
        """
        columns = [tensors for name, tensors in self._columns.items() if name != "step"]
        gradients, self._columns = self.addresses["grad"], {}
        if 0 in gradients:
            columns = [[t for t, at in zip(c, gradients, strict=True) if at] for c in columns]
        torch.autograd.graph.increment_version(itertools.chain.from_iterable(columns))

    def _gathered(
        self, params: Sequence[Tensor], states: Sequence[dict[str, Any]]
    ) -> dict[str, list[Tensor]]:
        """Return the parameters, and what is updated of their states, by name."""
        own = [states[place] for place in self._state_places]
        return {
            "param": [params[place] for place in self._places],
            **{name: [state[name] for state in own] for name in self._names},
        }

    def _are_in_place(self, name: str, tensors: Sequence[Tensor]) -> bool:
        """Whether parameters or their averages lie where they lay, as they did."""
        if self._distributed:
            tensors = list(map(local, tensors))
        known = self._layouts.get(name)
        addresses = list(map(Tensor.data_ptr, tensors))
        if name == "step" and known is not None:  # one number, which has no strides
            return addresses == self.addresses[name] and list(map(_dtype, tensors)) == known.dtypes
        layout = MemoryLayout.of(tensors, contiguous=known is None or known.strides is None)
        if known is None:
            self._layouts[name], self.addresses[name] = layout, addresses
            self.moved.append(name)
        elif addresses != self.addresses[name] or layout != known:
            return False
        if name == "param" and any(map(Tensor.is_inference, tensors)):
            return False
        return _are_plain(tensors, layout)

    def _are_alike(self, name: str) -> bool:
        """Whether those gradients that there are are laid out as they were; note where they lie."""
        params = self._columns["param"]
        every = self._gradients(params, name)
        tensors = [tensor for tensor in every if tensor is not None]
        there: Sequence[int] = range(len(every))
        if len(tensors) < len(every):
            there = [place for place, tensor in enumerate(every) if tensor is not None]
        if name not in self._layouts:
            self._layouts[name] = self._expected(name, tensors, there)
        known = self._layouts[name]
        layout = MemoryLayout.of(tensors, contiguous=known.strides is None)
        if layout != (known if len(there) == len(every) else known.at(there)):
            return False
        addresses = list(map(Tensor.data_ptr, tensors))
        if 0 in addresses:
            if any(size and not at for size, at in zip(layout.sizes, addresses, strict=True)):
                return False
            addresses = [at or EMPTY for at in addresses]
        if len(there) < len(every):
            found = iter(addresses)
            addresses = [0 if tensor is None else next(found) for tensor in every]
        if addresses != self.addresses.get(name):
            self.addresses[name] = addresses
            self.moved.append(name)
        return _are_plain(tensors, layout)

    def _gradients(self, params: Sequence[Tensor], name: str) -> list[Tensor | None]:
        """Return gradients, or their variances, None where there is none."""
        if not self._distributed and name == "grad":
            return [param.grad for param in params]
        take = local_gradient if name == "grad" else _local_variance
        return [None if param.grad is None else take(param) for param in params]

    def _expected(self, name: str, tensors: Sequence[Tensor], there: Sequence[int]) -> MemoryLayout:
        """Return the layout of gradients; of one that there is not yet, its parameter's."""
        likely = self._layouts["param"]
        if name == "grad_var":
            wide = [torch.promote_types(dtype, torch.float32) for dtype in likely.dtypes]
            shares = [w.itemsize // d.itemsize for w, d in zip(wide, likely.dtypes, strict=True)]
            sizes = [size * share for size, share in zip(likely.sizes, shares, strict=True)]
            likely = MemoryLayout(wide, sizes, likely.strides)
        seen = MemoryLayout.of(tensors, contiguous=likely.strides is None)
        if seen.strides is not None and likely.strides is None:
            params = self._columns["param"]
            likely = likely._replace(strides=[local(param).stride() for param in params])
        return likely.with_part(there, seen)


def _local_variance(param: Tensor) -> Tensor:
    return local(cast(Any, param).grad_var)


def _are_plain(tensors: Sequence[Tensor], layout: MemoryLayout) -> bool:
    """Whether tensors are torch's own, and none stands for its negative or its conjugate."""
    if not set(map(type, tensors)).issubset(PLAIN) or any(map(Tensor.is_neg, tensors)):
        return False
    is_complex = any(dtype.is_complex for dtype in set(layout.dtypes))
    return not (is_complex and any(map(Tensor.is_conj, tensors)))
