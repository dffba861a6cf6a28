"""Checks that one example's results do not change when all other examples are replaced.

It checks the model's outputs and the loss. The others are replaced by copies of another example,
not permuted, since a mean over the mini-batch does not change under a permutation.
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from svag.errors import PerExampleError
from svag.variance.per_example.checks.kept_attributes import Kept
from svag.variance.per_example.checks.written_parameters import WrittenParameters
from svag.variance.per_example.owners.marks import mark_of
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.owners.placement import (
    IS_PLACED,
    Owners,
    Placed,
    Scattered,
    Single,
    row_selector,
)
from svag.variance.per_example.recording.functions import is_composite, unguarded
from svag.variance.per_example.structures import found_in, replaced, tensors_in

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class Replacement:
    """A call of the model with the other examples replaced, made before the user's call.

    Args:
        model: the model, whose state is restored afterwards.
        module: the module that is called: the model or a part of it.
        example: the example that is not replaced.
        turn: seed for the choice of the example that replaces the others.
        args: positional arguments of the call, marked.
        kwargs: keyword arguments of the call, marked.
        early: whether to make the call now; else :meth:`compare_without_dropout` makes it.
    """

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        example: int,
        turn: int,
        args: Any,
        kwargs: Any,
        *,
        early: bool = True,
    ) -> None:
        self.model, self.module, self.example = model, module, example
        self.args, self.kwargs = args, kwargs
        self._versions = [t._version for t in tensors_in((*args, *kwargs.values()))]
        self._state = Generators()
        self._drawn = torch.empty(0)
        self._moved = self._with_others_replaced(turn)
        self._outputs = None if self._moved is None or not early else self._run(*self._moved)

    def _with_others_replaced(self, turn: int) -> tuple[Any, Any] | None:
        """Return the arguments with all other examples replaced; None if that fails."""
        every = (*self.args, *self.kwargs.values())
        if any(True for _ in found_in(every, PackedSequence)):
            return None
        moved = {}
        for tensor in tensors_in(every):
            where = mark_of(tensor)
            if isinstance(where, IS_PLACED):
                moved[id(tensor)] = others_replaced(tensor, where, self.example, turn)
            else:
                moved[id(tensor)] = tensor.detach().clone()
        return replaced(self.args, moved), replaced(self.kwargs, moved)

    def _run(self, args: Any, kwargs: Any, *, dropout: bool = True) -> list[Tensor] | None:
        """Call the module without side effects; None if it raises."""
        written = WrittenParameters(self.model) if dropout else _NoDropout(self.model)
        with (
            torch._C.DisableTorchFunction(),
            _without_autocast_cache(),
            # Around the model there may be a checkpoint, which counts what it saves.
            torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved),
            nullcontext() if dropout else _without_dropout(self.model),
            torch.enable_grad(),
            undisturbed(self.model, (*args, *kwargs.values())),
            self._state.again(),
        ):
            try:
                with torch._C._EnableTorchFunction(), written:
                    output = self.module(*args, **kwargs)
            except Exception:  # the module may not accept such examples
                return None
            finally:
                written.restore()
            self._drawn = torch.random.get_rng_state()
            return [t.detach() for t in tensors_in((output,))]

    def compare(self, output: Any) -> None:
        """Compare with the output of the original call.

        Raises:
            PerExampleError: the model mixes examples.
        """
        outputs = list(tensors_in((output,)))
        every = tensors_in((*self.args, *self.kwargs.values()))
        if self._outputs is None or len(outputs) != len(self._outputs):
            return
        if self._versions != [t._version for t in every]:
            return  # the model writes into its inputs, so the call cannot be repeated
        found = self._difference(outputs, [t.detach() for t in outputs], self._outputs)
        if found is not None:
            self.compare_without_dropout(output)

    def compare_without_dropout(self, output: Any) -> None:
        """Make the call twice without dropout, and compare.

        Args:
            output: output of the original call, marked.

        Raises:
            PerExampleError: the model mixes examples.
        """
        outputs = list(tensors_in((output,)))
        if self._moved is None:
            return
        plain, drawn = self._run(self.args, self.kwargs, dropout=False), self._drawn
        other = self._run(*self._moved, dropout=False)
        if plain is None or other is None or not len(plain) == len(other) == len(outputs):
            return
        if not torch.equal(drawn, self._drawn):
            return  # more or fewer random numbers were drawn, so this example got others, too
        found = self._difference(outputs, plain, other)
        if found is not None:
            self._refuse_changing(outputs, plain)
            raise PerExampleError(
                f"the model mixes examples: its output for example {self.example} changed by "
                f"{found[0]:.3g} (of {found[1]:.3g}) when the other examples were replaced, so no "
                "example has a gradient of its own. Use svag.micro_batch_variance, whose groups "
                "may be mixed inside"
            )

    def _refuse_changing(self, outputs: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """Raise if the model returns something else for the same inputs."""
        again = self._run(self.args, self.kwargs, dropout=False)
        if again is None or len(again) != len(outputs):
            return
        if self._difference(outputs, before, again) is not None:
            raise PerExampleError(
                f"{type(self.module).__name__} returns something else each time it is called with "
                "the same inputs and random numbers, so that what it keeps of its calls, such as "
                "an iterator, cannot be put back after a second call; keep it in a buffer, or in "
                "an attribute that is a number, a list or a generator of random numbers, or use "
                "svag.micro_batch_variance"
            )

    def _difference(
        self, marked: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> tuple[float, float] | None:
        for tensor, one, two in zip(marked, a, b, strict=True):
            where = mark_of(tensor)
            if not isinstance(where, IS_PLACED) or not tensor.requires_grad:
                continue
            mine = rows_of(one, where, self.example)
            if isinstance(where, Scattered):  # a mask may have moved the rows
                if not _holds(two, mine, where.dim):
                    return _apart(mine, two, where, self.example)
            elif one.shape == two.shape:
                found = differ(mine, rows_of(two, where, self.example))
                if found is not None:
                    return found
        return None


def others_replaced(tensor: Tensor, where: Placed, example: int, turn: int = 0) -> Tensor:
    """Return a copy in which the rows of all other examples are replaced by one of theirs.

    Args:
        tensor: the tensor.
        where: its mark.
        example: the example whose rows stay.
        turn: seed for the choice of the example that replaces the others; consecutive numbers
            choose different ones.
    """
    if isinstance(where, Single):
        return tensor.detach().clone()
    choices = [k for k in range(where.examples) if k != example]
    first = random.Random(turn // 2).randrange(max(1, len(choices)))
    donor = choices[(first + turn % 2) % len(choices)] if len(choices) > 1 else example
    owners = where.owners(tensor.shape[where.dim])
    order = torch.from_numpy(_donors(owners, example, donor))
    return tensor.detach().index_select(where.dim, order.to(tensor.device))


def _donors(owners: Owners, example: int, donor: int) -> Owners:
    """Return indices that replace every row of another example by the donor's row in that place."""
    source = np.flatnonzero(owners == donor)
    order = np.arange(len(owners))
    for other in set(owners.tolist()) - {example} if len(source) else ():
        rows = np.flatnonzero(owners == other)
        order[rows] = source[np.arange(len(rows)) % len(source)]
    return order


def rows_of(tensor: Tensor, where: Placed, example: int) -> Tensor:
    """Return one example's rows.

    Args:
        tensor: the tensor.
        where: its mark.
        example: number of the example.
    """
    if isinstance(where, Single):
        return tensor if where.example == example else tensor[:0]
    return tensor.index_select(where.dim, row_selector(where, tensor, example))


def _holds(tensor: Tensor, rows: Tensor, dim: int) -> bool:
    """Whether a tensor has all these rows, in their order."""
    place = 0
    every = tensor.unbind(dim)
    for row in rows.unbind(dim):
        while place < len(every) and differ(row, every[place]) is not None:
            place += 1
        if place == len(every):
            return False
        place += 1
    return True


def _apart(mine: Tensor, two: Tensor, where: Scattered, example: int) -> tuple[float, float]:
    """Return the norms of the change and of the rows, for the message.

    The change is that of the rows in the same places, or the rows themselves if places are missing.
    """
    if len(where.list) != two.shape[where.dim]:
        return float(mine.norm()), float(mine.norm())
    return differ(mine, rows_of(two, where, example)) or (0.0, float(mine.norm()))


def differ(before: Tensor, after: Tensor) -> tuple[float, float] | None:
    """Return the norms of a difference and of the tensor; None if they differ by rounding only.

    Args:
        before: a tensor.
        after: the tensor to compare.
    """
    if before.shape != after.shape:
        return float("nan"), float(before.norm())
    if not before.is_floating_point() or not bool(before.isfinite().all()):
        return None
    size = float(before.norm())
    missing = float((before - after).norm())
    return None if missing <= _TOLERANCE.get(before.dtype, 5e-2) * size else (missing, size)


class Generators:
    """The states of all generators before a call."""

    def __init__(self) -> None:
        self._cpu = torch.random.get_rng_state()
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        on = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if on else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Set the generators to these states inside the context, and restore them after it."""
        now = Generators()
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.random.set_rng_state(self._cpu)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


@contextmanager
def undisturbed(model: nn.Module, arguments: Iterable[Any] = ()) -> Iterator[None]:
    """Run without the hooks on outputs, and restore attributes and buffers afterwards.

    Args:
        model: the model.
        arguments: those of the call, among which may be generators.
    """
    modules = list(model.modules())
    hooks = [m._forward_hooks for m in modules]
    attributes = Kept(modules, arguments)
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    entries = [dict(m._buffers) for m in modules]
    for module in modules:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, kept, own in zip(modules, hooks, entries, strict=True):
            module._forward_hooks = kept
            module._buffers.clear()
            module._buffers.update(own)
        attributes.restore()
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch recurrent layers' own dropout off, since its masks may differ in a second call."""
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
    before = [m.dropout for m in layers]
    for layer in layers:
        layer.dropout = 0.0
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.dropout = value


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Leave no weights in autocast's cache, which the user's call would take from there."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _NoDropout(WrittenParameters):
    """Runs operations without dropout, and copies parameters that they write into."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, without dropout."""
        kwargs = dict(kwargs or {})
        self.note(func, args, kwargs)
        name = plain_name(func)
        if name == "scaled_dot_product_attention":
            args, kwargs = args[:4], {**kwargs, "dropout_p": 0.0}
        if "dropout" in name:
            return args[0]
        if is_composite(func):
            with self:
                return unguarded(func)(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
