"""Training steps: the default step of a problem, and its variants.

A step draws one or more batches, does forward and backward passes and updates, and returns the
loss:

    step(model, batches, optimizers) -> loss

Copy :func:`supervised` to write your own; ``batches`` yields ``(inputs, targets)`` without end.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from types import CellType, FunctionType
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from svag.errors import ProblemError
from svag.problems.nested import mapped, tensors
from svag.variance.micro_batches import micro_batch_variance

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Batches: TypeAlias = Iterator[tuple[Any, Any]]
Step: TypeAlias = Callable[[nn.Module, Batches, Sequence[Optimizer]], Tensor | float]
Context: TypeAlias = Callable[[], AbstractContextManager[object]]

MICRO_BATCHES = 8


def plain() -> AbstractContextManager[object]:
    """Return a context that changes nothing."""
    return nullcontext()


def supervised(loss: Loss, precision: Context = plain, variance: Context = plain) -> Step:
    """Return the usual step: one batch, one backward pass, one step of one optimizer.

    Args:
        loss: function of the model's outputs and the targets.
        precision: returns a context for the forward pass, such as autocast.
        variance: returns a context for the forward and the backward pass, such as
            ``within_batch_variance``.

    Example:
        >>> import torch
        >>> model, loss = torch.nn.Linear(2, 1), torch.nn.functional.mse_loss
        >>> batches = iter([(torch.ones(4, 2), torch.ones(4, 1))])
        >>> step = supervised(loss)
        >>> bool(step(model, batches, [torch.optim.SGD(model.parameters(), 0.1)]) >= 0)
        True
    """

    def step(model: nn.Module, batches: Batches, optimizers: Sequence[Optimizer]) -> Tensor:
        inputs, targets = next(batches)
        (optimizer,) = optimizers
        optimizer.zero_grad()
        with variance():
            with precision():
                value = _differentiable(loss(model(inputs), targets))
            value.backward()
        optimizer.step()
        return value.detach()

    return step


def micro_batched(loss: Loss, precision: Context = plain) -> Step:
    """Return the usual step with the variance of the gradient estimated from micro-batches.

    It is for models without per-example gradients, as with BatchNorm in training mode. A batch is
    cut into :data:`MICRO_BATCHES` parts, or fewer if they would have less than two examples.

    Args:
        loss: function of the model's outputs and the targets.
        precision: returns a context for the forward pass, such as autocast.
    """

    def step(model: nn.Module, batches: Batches, optimizers: Sequence[Optimizer]) -> Tensor:
        inputs, targets = next(batches)
        (optimizer,) = optimizers
        optimizer.zero_grad()
        size = len(next(tensors(inputs))[1])
        total: Any = 0.0
        with micro_batch_variance(model.parameters()) as micro_batches:
            for part in _cut(size):
                with precision():
                    outputs = model(mapped(itemgetter(part), inputs))
                    value = _differentiable(loss(outputs, mapped(itemgetter(part), targets)))
                share = (part.stop - part.start) / size
                (value * share).backward()
                micro_batches.micro_step()
                total = total + share * value.detach()
        optimizer.step()
        return total  # type: ignore[no-any-return]

    return step


def _differentiable(value: Any) -> Tensor:
    """Return the loss of a batch.

    Raises:
        ProblemError: it is no tensor, or has no gradient.
    """
    if not isinstance(value, Tensor):
        raise ProblemError(f"the loss of a batch is {type(value).__name__}; return a tensor")
    if not value.requires_grad:
        raise ProblemError(
            "the loss of a batch depends on no parameter that requires a gradient; do not detach "
            "it, and leave some parameters of the model unfrozen"
        )
    return value


def afresh(step: Step) -> Step:
    """Return a copy of a step and all its state, so that runs do not share state.

    State is the attributes of an object or of a bound method's object, and the closure and defaults
    of a function.

    Raises:
        ProblemError: some of its state cannot be copied.
    """
    try:
        return _afresh(step, {})  # type: ignore[no-any-return]
    except Exception as error:  # a user's __deepcopy__ may raise anything
        raise ProblemError(
            f"the state of the step {getattr(step, '__name__', step)!r} cannot be copied for a run "
            f"({type(error).__name__}: {error}); keep in it what copy.deepcopy can copy"
        ) from error


def _afresh(value: Any, memo: dict[int, Any]) -> Any:
    """Copy a value and the closures of functions in it; what they share is copied once."""
    if not (isinstance(value, FunctionType) and (value.__closure__ or value.__defaults__)):
        return copy.deepcopy(value, memo)
    if id(value) in memo:
        return memo[id(value)]
    cells = value.__closure__ or ()
    new = [cell for cell in cells if id(cell) not in memo]
    memo.update({id(cell): CellType() for cell in new})
    fresh = FunctionType(
        value.__code__,
        value.__globals__,
        value.__name__,
        copy.deepcopy(value.__defaults__, memo),
        tuple(memo[id(cell)] for cell in cells),
    )
    fresh.__kwdefaults__ = copy.deepcopy(value.__kwdefaults__, memo)
    memo[id(value)] = fresh
    for cell in new:
        memo[id(cell)].cell_contents = _afresh(cell.cell_contents, memo)
    return fresh


def _cut(size: int) -> list[slice]:
    """Cut a batch into parts whose sizes differ by at most one example."""
    count = max(2, min(MICRO_BATCHES, size // 2))
    bounds = [round(size * n / count) for n in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
