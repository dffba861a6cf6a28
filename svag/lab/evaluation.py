"""Evaluates a model: its loss and metric on each split."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from svag.errors import InvalidOption, ProblemError
from svag.lab.run import Run
from svag.problems import Data, Metric, Problem, Split
from svag.problems.nested import joined, mapped
from svag.quantity import LOSS

Figures: TypeAlias = dict[str, float]

_EVAL_BATCH = 1000
_HELD_OUT = 0.1
_SLACK = 1e-6


class Evaluation:
    """Computes losses and the metric, a batch at a time.

    Args:
        problem: the problem, for its loss.
        metric: the metric by which methods are compared.
        splits: the splits by name; figures are called ``<split>_loss`` and so on.
        batch_size: examples in a batch, for problems that carry state from batch to batch; a
            smaller last batch is left out. None: svag chooses the size, and no example is left out.
        precision: returns the context of the forward pass, such as autocast.
    """

    def __init__(
        self,
        problem: Problem,
        metric: Metric,
        splits: Mapping[str, Split],
        *,
        batch_size: int | None,
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._problem, self._metric, self._splits = problem, metric, splits
        self._batch_size, self._precision = batch_size, precision
        for name, split in splits.items():
            if batch_size and len(split) < batch_size:
                raise InvalidOption(
                    f"the {name} split of {problem.name!r} has {len(split)} rows, fewer than a "
                    f"batch of {batch_size} that state is carried through; choose a smaller batch "
                    "size" + (", or --select test" if name == "validation" else "")
                )

    @torch.no_grad()
    def figures(self, model: nn.Module) -> Figures:
        """Return the loss and the metric on every split; both are NaN if the loss is not finite.

        Args:
            model: in evaluation mode.

        Raises:
            ProblemError: the metric is out of its bounds, or is not finite although the loss is.
        """
        result: Figures = {}
        for name, split in self._splits.items():
            if self._problem.carry_state:
                setattr(model, "carried_state", None)  # noqa: B010
            loss, metric = self._on(model, name, split)
            result[f"{name}_loss"] = loss
            if not self._is_loss:
                result[f"{name}_{self._metric.name}"] = metric
        return result

    def nothing(self) -> Figures:
        """Return NaN for every figure, for a model whose parameters are not finite."""
        measured = [LOSS.name] if self._is_loss else [LOSS.name, self._metric.name]
        return {f"{name}_{each}": math.nan for name in self._splits for each in measured}

    @property
    def _is_loss(self) -> bool:
        return self._metric.name == LOSS.name

    def _on(self, model: nn.Module, name: str, split: Split) -> tuple[float, float]:
        """Return the loss and the metric; a metric may raise where the model has diverged."""
        loss = metric = 0.0
        outputs_of, count = [], 0
        prepare = self._problem.prepare
        for part in self._parts(split):
            inputs = part.inputs if prepare is None else prepare(part.inputs)
            with self._precision():
                outputs = model(inputs)
                value = self._number("loss", self._problem.loss(outputs, part.targets))
            loss += len(part) * value
            count += len(part)
            if self._metric.over == "split":
                outputs_of.append(outputs)
            elif not self._is_loss and math.isfinite(value):
                metric += len(part) * self._measured(outputs, part.targets)
        if self._is_loss or not math.isfinite(loss):
            return loss / count, math.nan
        metric = metric / count
        if self._metric.over == "split":
            targets = _copied(split, slice(0, count)).targets
            metric = self._measured(joined(outputs_of), targets)
        self._check(name, metric)
        return loss / count, metric

    def _measured(self, outputs: Any, targets: Any) -> float:
        return self._number(
            f"metric {self._metric.name!r}", self._metric.function(outputs, targets)
        )

    def _number(self, what: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            found = type(value).__name__
            if isinstance(value, Tensor):
                found = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
            raise ProblemError(
                f"the {what} of {self._problem.name!r} is {found} on a batch; return one real "
                "number, such as the mean"
            ) from None

    def _parts(self, split: Split) -> Iterator[Split]:
        size = self._batch_size or _EVAL_BATCH
        whole = len(split) // size * size if self._batch_size else len(split)
        return (_copied(split, slice(at, at + size)) for at in range(0, whole, size))

    def _check(self, split: str, value: float) -> None:
        quantity, name = self._metric.quantity, self._problem.name
        if not math.isfinite(value):
            shown = "NaN" if math.isnan(value) else "infinite"
            raise ProblemError(
                f"the metric {quantity.name!r} of {name!r} is {shown} on the {split} split while "
                "the loss is finite; have it return a finite number for every outcome"
            )
        low = -math.inf if quantity.low is None else quantity.low
        high = math.inf if quantity.high is None else quantity.high
        slack = _SLACK * max(1.0, *(abs(b) for b in (low, high) if math.isfinite(b)), 1.0)
        if not low - slack <= value <= high + slack:
            raise ProblemError(
                f"the metric {quantity.name!r} of {name!r} is {value:.6g} on the {split} split; it "
                f"is said to lie in [{low:g}, {high:g}]"
            )


def _copied(split: Split, rows: slice) -> Split:
    """Copy rows of a split: a model or a loss may change its batch in place."""
    part = split.take(rows)
    return Split(mapped(Tensor.clone, part.inputs), mapped(Tensor.clone, part.targets))


def splits_of(data: Data, run: Run, *, in_order: bool = False) -> tuple[Split, dict[str, Split]]:
    """Return the split to train on, and the splits to evaluate on, by name.

    With ``select="validation"`` a tenth of the training data is held out.

    Args:
        data: training and test data.
        run: the run; its ``select`` says whether training data are held out.
        in_order: whether to cut at a row, so that the last rows are held out, instead of drawing
            the examples at random.

    Raises:
        ProblemError: there are too few training examples to hold any out.
    """
    training = data.train
    evaluated = {"test": data.test}
    if run.select == "validation":
        count = held_out(len(training))
        if count >= len(training):
            raise ProblemError(
                f"{len(training)} training example is too few to hold any out; choose step sizes "
                "by --select test"
            )
        order = _order(len(training), in_order)
        if in_order:
            order = order.roll(count)
        evaluated["validation"] = training.take(order[:count])
        training = training.take(order[count:])
    return training, {"train": training, **evaluated}


def subset(split: Split, count: int | None, *, in_order: bool = False) -> Split:
    """Return ``count`` examples of a split, the same in every run.

    Args:
        split: the examples.
        count: greatest number of examples; None for all.
        in_order: whether to take the first rows, instead of drawing examples at random.
    """
    if count is None or count >= len(split):
        return split
    return split.take(_order(len(split), in_order)[:count])


def held_out(count: int) -> int:
    """Return the number of training examples to hold out for the choice of step sizes."""
    return max(1, round(_HELD_OUT * count))


def _order(count: int, in_order: bool) -> Tensor:
    if in_order:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
