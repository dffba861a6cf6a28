"""The rule in torch operations: any device and dtype, differentiable, compilable."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from svag.optim import rounding
from svag.optim.dtensor import PLAIN
from svag.optim.engines.torch_arithmetic import Tensors, on_lists, on_tensors
from svag.optim.rule import Scalar, Settings, Switches, element_of, numbers_of

_HALF = (torch.bfloat16, torch.float16)
_NOISE = {
    "param": "param",
    "exp_avg": "mean",
    "exp_avg_sq": "second",
    "max_exp_avg_sq": "largest",
    "exp_avg_var": "second",
}
_KEPT = tuple(_NOISE)  # in the order in which the rule returns them

# Measured on two cores. Below _SMALL elements calls cost more than arithmetic. Larger tensors are
# updated _PIECE elements at a time, so that the temporaries of the rule stay in cache.
_SMALL = 4096
_PIECE = 65536


class Operands(NamedTuple):
    """One parameter with its gradient, their variance and its averages; None where unneeded."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    max_exp_avg_sq: Tensor | None = None
    exp_avg_var: Tensor | None = None
    grad_var: Tensor | None = None


@dataclass(slots=True)
class Bucket:
    """Rows of one device, dtype and step.

    ``step`` is the number of the step being taken, from 1: a float, or one tensor if traced.
    ``places`` are the parameters' places in the optimizer, which tell their noise apart.
    """

    step: Scalar
    rows: list[Operands] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Update:
    """A group's update, in place; gradients are left untouched.

    Complex tensors are treated as pairs of reals. Half-precision tensors are computed in float32
    and rounded once, when they are written back.

    Attributes:
        switches: what the update of an element is made of.
        settings: its numbers.
        dither_param: round bfloat16 parameters stochastically.
        dither_state: round bfloat16 averages stochastically.
        foreach: operate on lists (True), tensor by tensor (False), or as is faster (None).
    """

    switches: Switches
    settings: Settings
    dither_param: bool
    dither_state: bool
    foreach: bool | None

    def apply(self, bucket: Bucket) -> None:
        """Take one step with every tensor of a bucket."""
        rows = bucket.rows
        if rows[0].param.is_complex():
            rows = [_map(torch.view_as_real, row) for row in rows]
        if not any(tensor is not None and tensor.dtype in _HALF for tensor in rows[0]):
            self._step(bucket.step, rows)
            return
        computed = [_map(Tensor.float, row) for row in rows]
        self._step(bucket.step, computed)
        for row, result, place in zip(rows, computed, bucket.places, strict=True):
            self._store(row, result, rounding.key(self.settings.seed, place, bucket.step))

    def _store(self, row: Operands, result: Operands, key: Any) -> None:
        """Write back what was computed in float32, rounded to nearest or stochastically."""
        dithers = self.dither_param or self.dither_state
        noise = rounding.noise(key, row.param) if dithers else None
        for name in _KEPT:
            stored, value = getattr(row, name), getattr(result, name)
            if stored is None or stored is value:
                continue
            dithered = self.dither_param if name == "param" else self.dither_state
            if noise is not None and dithered and stored.dtype == torch.bfloat16:
                rounding.round_(stored, value, getattr(noise, _NOISE[name]))
            else:
                stored.copy_(value)

    def _step(self, step: Scalar, rows: list[Operands]) -> None:
        """Update small tensors together, large ones one by one, in pieces that fit a cache."""
        listed, single = (rows, []) if self.foreach else ([], rows)
        if self.foreach is None:
            listed = [row for row in rows if _listable(row)]
            single = [row for row in rows if not _listable(row)]
        dtype = rows[0].param.dtype
        if listed and _joinable(listed):
            ops = on_tensors(dtype)
            element, numbers = element_of(self.switches, ops), self._numbers(ops, step)
            for batch in _batches(listed):
                columns = list(zip(*batch, strict=True))
                joined = [None if c[0] is None else _joined(c) for c in columns]
                sizes = [row.param.numel() for row in batch]
                for name, result in zip(_KEPT, element(*joined, numbers), strict=True):
                    if result is not None:
                        stored = [getattr(row, name) for row in batch]
                        parts = zip(result.split(sizes), stored, strict=True)
                        torch._foreach_copy_(stored, [part.view(t.shape) for part, t in parts])
        elif listed:
            ops = on_lists(dtype)
            lists = [None if c[0] is None else Tensors(c) for c in zip(*listed, strict=True)]
            results = element_of(self.switches, ops)(*lists, self._numbers(ops, step))
            for name, result in zip(_KEPT, results, strict=True):
                if result is not None:
                    stored = [getattr(row, name) for row in listed]
                    torch._foreach_copy_(stored, result.parts)
        if single:
            ops = on_tensors(dtype)
            element, numbers = element_of(self.switches, ops), self._numbers(ops, step)
            for row in itertools.chain.from_iterable(map(_pieces, single)):
                # What autograd keeps must not be written into.
                before = _map(torch.clone, row) if torch.is_grad_enabled() else row
                for name, result in zip(_KEPT, element(*before, numbers), strict=True):
                    if result is not None:
                        getattr(row, name).copy_(result)

    def _numbers(self, ops: Any, step: Scalar) -> tuple[Scalar, ...]:
        return numbers_of(self.switches, ops)(*self.settings[:-1], step)


def _listable(row: Operands) -> bool:
    """Whether a row is updated faster in a list, and can be: of plain tensors, none negated.

    As in torch, tensors of classes of their own, which may not know lists, go one by one.
    """
    tensors = [tensor for tensor in row if tensor is not None]
    if not all(type(tensor) in PLAIN for tensor in tensors):
        return False
    if row.param.device.type != "cpu":
        return True
    return row.param.numel() <= _SMALL and not any(tensor.is_neg() for tensor in tensors)


def _pieces(row: Operands) -> Iterable[Operands]:
    """Cut a large row into views of equal places, so that temporaries stay in cache.

    Left whole: what autograd follows, what is not contiguous throughout, and what is no plain
    tensor.
    """
    tensors = [tensor for tensor in row if tensor is not None]
    if (
        not all(type(tensor) in PLAIN for tensor in tensors)
        or row.param.numel() <= _PIECE
        or row.param.device.type != "cpu"
        or torch.is_grad_enabled()
        or not all(tensor.is_contiguous() for tensor in tensors)
    ):
        return [row]
    count = len(row.param.view(-1).split(_PIECE))
    columns = (
        [None] * count if tensor is None else tensor.detach().view(-1).split(_PIECE)
        for tensor in row
    )
    return itertools.starmap(Operands, zip(*columns, strict=True))


def _joinable(rows: list[Operands]) -> bool:
    """Whether tensors are better joined to one than calculated with as a list: on a CPU."""
    tensors = itertools.chain.from_iterable(rows)
    return rows[0].param.device.type == "cpu" and all(
        tensor is None or type(tensor) in PLAIN for tensor in tensors
    )


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _batches(rows: list[Operands]) -> Iterable[list[Operands]]:
    """Part rows so that the temporaries of the tensors that they make stay in cache."""
    batches: list[list[Operands]] = []
    room = 0
    for piece in itertools.chain.from_iterable(map(_pieces, rows)):
        size = piece.param.numel()
        if not batches or size > room:
            batches.append([])
            room = _PIECE
        batches[-1].append(piece)
        room -= size
    return batches


def _map(function: Callable[[Tensor], Tensor], row: Operands) -> Operands:
    mapped: list[Any] = [None if tensor is None else function(tensor) for tensor in row]
    return Operands(*mapped)
