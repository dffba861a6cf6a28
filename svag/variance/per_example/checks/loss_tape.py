"""Records the loss's operations, and runs them again with the other examples' outputs replaced."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svag.errors import PerExampleError
from svag.variance.per_example.checks.replacement import (
    Generators,
    differ,
    others_replaced,
    rows_of,
)
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.marks import mark_of
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.owners.placement import IS_PLACED, Lost, Placed
from svag.variance.per_example.recording.functions import is_in_place
from svag.variance.per_example.structures import replaced, tensors_in

_MOST = 10_000  # operations of a loss
_USUAL = frozenset({0.0, 0.5, 1.0, 2.0, -1.0})  # constants of many losses, too

_checked: "weakref.WeakKeyDictionary[nn.Module, set[Hashable]]" = weakref.WeakKeyDictionary()


class LossTape:
    """Records the operations after the model, those of the loss, to run them again.

    Targets, and values that the loss computes from them alone, such as the number of tokens, are
    not replaced. If the loss reads a number from a tensor and passes it to an operation, the run
    passes the number that it reads itself; what Python or NumPy computed from it stays the same.

    Args:
        example: the example that is not replaced.

    Attributes:
        outputs: outputs of the model.
    """

    def __init__(self, example: int) -> None:
        self.example = example
        self.outputs: list[Tensor] = []
        self._tape: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._reads = False  # whether numbers were read from tensors

    def record(self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        """Record an operation after the model.

        Args:
            func: the function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: its result.
        """
        number = type(out) is float and out not in _USUAL
        self._reads |= number
        if any(True for _ in tensors_in((out,))) or out is None or number:
            self._tape.append((func, args, kwargs, out))
        if len(self._tape) > _MOST:
            self._tape.clear()
            self.outputs.clear()

    def is_new(self, model: nn.Module) -> bool:
        """Whether no loss of these operations was checked for the model before.

        Args:
            model: the model whose outputs the loss takes.
        """
        return self._names() not in _checked.get(model, set())

    def approve(self, model: nn.Module) -> None:
        """Record that a loss of these operations was checked for the model.

        Args:
            model: the model whose outputs the loss takes.
        """
        _checked.setdefault(model, set()).add(self._names())

    def _names(self) -> Hashable:
        return tuple(plain_name(func) for func, *_ in self._tape)

    def check(self, loss: Tensor) -> None:
        """Run the loss again on the outputs, and on outputs with the other examples replaced.

        Args:
            loss: the loss.

        Raises:
            PerExampleError: the gradient at this example's output changed, or the loss cannot be
                run again although it came out of an operation that svag does not know.
        """
        where = state_of(loss)
        first = self._compared(loss, self.example, 0)
        if first and (isinstance(where, Lost) or self._reads):
            for example, turn in ((0, 0), (0, 1), (1, 0), (1, 1)):
                self._compared(loss, example, turn)
        if not first and isinstance(where, Lost):
            raise PerExampleError(
                f"whether the loss mixes examples cannot be checked ({where}); write it with "
                "operations that svag follows, or use svag.micro_batch_variance"
            )

    def _compared(self, loss: Tensor, example: int, turn: int) -> bool:
        """Run the loss twice and compare the gradients; whether that was possible."""
        outputs = [t for t in self.outputs if isinstance(mark_of(t), IS_PLACED)]
        if not outputs or not self._tape:
            return False
        state = Generators()
        with torch.enable_grad():
            plain = self._gradients(loss, outputs, [t.detach() for t in outputs], state)
            moved = [others_replaced(t, self._where(t), example, turn) for t in outputs]
            other = self._gradients(loss, outputs, moved, state)
        if plain is None or other is None:
            return False
        for t, a, b in zip(outputs, plain, other, strict=True):
            where = self._where(t)
            found = differ(rows_of(a, where, example), rows_of(b, where, example))
            if found is not None:
                raise PerExampleError(
                    f"the loss mixes examples: the gradient of its output for example "
                    f"{example} changed by {found[0]:.3g} (of {found[1]:.3g}) when the other "
                    "examples were replaced, so no example has a gradient of its own. Use "
                    "svag.micro_batch_variance, whose groups may be mixed inside"
                )
        return True

    def _where(self, tensor: Tensor) -> Placed:
        where = mark_of(tensor)
        assert isinstance(where, IS_PLACED)
        return where

    def _gradients(
        self, loss: Tensor, outputs: Sequence[Tensor], values: Sequence[Tensor], state: Generators
    ) -> Sequence[Tensor] | None:
        """Return the loss's gradients at given outputs; None if some operation was not seen."""
        fresh = [t.clone().requires_grad_() for t in values]
        known = {id(t): f.view_as(f) for t, f in zip(outputs, fresh, strict=True)}
        numbers: dict[float, float] = {}
        with state.again():
            for func, args, kwargs, out in self._tape:
                self._step(func, args, kwargs, out, known, numbers)
        result = known.get(id(loss))
        if result is None or not result.requires_grad:
            return None
        found = torch.autograd.grad(result.sum(), fresh, materialize_grads=True)
        return [g.detach() for g in found]  # torch 2.9's zeros for unused outputs require gradients

    def _step(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        out: Any,
        known: dict[int, Tensor],
        numbers: dict[float, float],
    ) -> None:
        """Run one operation again; it writes into copies."""
        if is_in_place(func) and args and isinstance(args[0], Tensor):
            target = known.get(id(args[0]), args[0])
            known[id(args[0])] = target.clone() if target.requires_grad else target.detach().clone()
        again = func(*_again(args, known, numbers), **_again(kwargs, known, numbers))
        if type(out) is float:
            numbers[out] = again
        for old, new in zip(tensors_in((out,)), tensors_in((again,)), strict=False):
            known[id(old)] = new


def _again(values: Any, known: dict[int, Tensor], numbers: dict[float, float]) -> Any:
    """Return arguments with new tensors, and with new numbers for those read from tensors."""
    if isinstance(values, dict):
        return replaced({k: _number(v, numbers) for k, v in values.items()}, known)
    return replaced(tuple(_number(v, numbers) for v in values), known)


def _number(value: Any, numbers: dict[float, float]) -> Any:
    return numbers.get(value, value) if type(value) is float else value
