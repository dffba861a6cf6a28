"""Metrics, by which methods are compared: a quantity and the function that computes it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from svag.errors import InvalidOption
from svag.quantity import ACCURACY, LOSS, Quantity

Over = Literal["examples", "split"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure that step sizes are chosen by and methods are compared by.

    Attributes:
        name: one word in lower case; records call the figure ``test_<name>``.
        function: computes it from the model's outputs and the targets; a number or a tensor of
            one element.
        larger_is_better: whether larger values are better.
        unit: printed after values; ``"%"`` for fractions, which are printed times 100.
        low: least possible value; None if unbounded.
        high: greatest possible value; None if unbounded.
        over: ``"examples"``: a mean over examples, so that batches can be averaged;
            ``"split"``: a function of all outputs of a split at once, such as F1 or R^2.

    Raises:
        InvalidOption: a value is outside its set.

    Example:
        >>> error = Metric(name="mae", larger_is_better=False, low=0.0,
        ...                function=lambda outputs, targets: (outputs - targets).abs().mean())
        >>> error.quantity.title
        'mae'
    """

    name: str
    function: Callable[[Any, Any], Tensor | float]
    larger_is_better: bool
    unit: str = ""
    low: float | None = None
    high: float | None = None
    over: Over = "examples"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidOption(
                f"function={self.function!r} of metric {self.name!r}: give a function of outputs "
                "and targets"
            )
        if self.over not in ("examples", "split"):
            raise InvalidOption(f"over={self.over!r}: choose 'examples' or 'split'")
        self.quantity  # noqa: B018 - raises if name or bounds are invalid

    @property
    def quantity(self) -> Quantity:
        """The metric's name, unit, direction and bounds, without its function."""
        return Quantity(self.name, self.larger_is_better, self.unit, self.low, self.high)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ``outputs`` (..., classes) against class indices (...).

    Example:
        >>> import torch
        >>> targets = torch.tensor([3, 1, 4, 1])
        >>> round(float(cross_entropy(torch.zeros(4, 10), targets)), 4)  # log 10
        2.3026
    """
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


IGNORED = -100
"""The target that torch's cross-entropy ignores by default."""


def accuracy(outputs: Tensor, targets: Tensor, dim: int = -1, ignored: int = IGNORED) -> Tensor:
    """Fraction of ``outputs`` (..., classes) whose largest entry is at the target's index.

    Args:
        outputs: scores, with the classes along ``dim``.
        targets: class indices, of the same shape without ``dim``.
        dim: dimension of the classes in ``outputs``.
        ignored: target of examples that do not count, as in torch's cross-entropy.

    Raises:
        InvalidOption: the shapes do not fit.

    Example:
        >>> import torch
        >>> float(accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])))
        0.5
    """
    found = outputs.argmax(dim)
    if found.shape != targets.shape:
        raise InvalidOption(
            f"outputs of shape {tuple(outputs.shape)} have no class for each of the targets of "
            f"shape {tuple(targets.shape)}; give the problem a metric of its own"
        )
    return (found == targets)[targets != ignored].double().mean()


def r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets' variance that the outputs explain; both (n,) or (n, k).

    1 is perfect, 0 is as good as predicting the mean of the targets; it is unbounded below. It has
    to be computed on a whole split.

    Example:
        >>> import torch
        >>> targets = torch.tensor([1.0, 2.0, 3.0])
        >>> float(r_squared(targets, targets)), float(r_squared(torch.full((3,), 2.0), targets))
        (1.0, 0.0)
    """
    outputs, targets = outputs.double().reshape(targets.shape), targets.double()
    unexplained = (targets - outputs).square().sum()
    return 1 - unexplained / (targets - targets.mean(0)).square().sum()


def _of(quantity: Quantity, function: Callable[[Any, Any], Tensor | float], over: Over) -> Metric:
    return Metric(
        name=quantity.name,
        function=function,
        larger_is_better=quantity.larger_is_better,
        unit=quantity.unit,
        low=quantity.low,
        high=quantity.high,
        over=over,
    )


def accuracy_metric(dim: int = -1, ignored: int = IGNORED) -> Metric:
    """Return the metric of :func:`accuracy`, with the classes along ``dim`` of the outputs.

    Example:
        >>> metric = accuracy_metric()
        >>> metric.name, metric.unit, metric.larger_is_better
        ('accuracy', '%', True)
    """
    return _of(ACCURACY, partial(accuracy, dim=dim, ignored=ignored), "examples")


def r_squared_metric() -> Metric:
    """Return the metric of :func:`r_squared`.

    Example:
        >>> r_squared_metric().over
        'split'
    """
    return _of(Quantity("r2", larger_is_better=True, high=1.0), r_squared, "split")


def loss_metric(loss: Callable[[Any, Any], Tensor]) -> Metric:
    """Return the loss as a metric, of which smaller values are better.

    Example:
        >>> loss_metric(cross_entropy).larger_is_better
        False
    """
    return _of(LOSS, loss, "examples")
