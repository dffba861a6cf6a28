"""The contract of a problem: everything of a training run that is not the optimizer.

A problem is a small frozen object. The lab knows nothing else about a task, so a user's own
problem gets everything that the built-in ones get.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import Dataset, default_collate

from svag.errors import InvalidOption
from svag.problems.metric import Metric, accuracy_metric, cross_entropy, loss_metric
from svag.problems.names import check_name
from svag.problems.nested import Nested, mapped, tensors
from svag.problems.steps import Loss, Step

Select = Literal["test", "validation"]
AUTOCAST = ("bfloat16", "float16")


@dataclass(frozen=True)
class Split:
    """Examples: tensors, or any nesting of them, whose first dimensions count the examples.

    Attributes:
        inputs: what the model takes.
        targets: what the loss compares its outputs with.
    """

    inputs: Nested
    targets: Nested

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            for where, value in tensors(getattr(self, name)):
                if not (isinstance(value, Tensor) and value.ndim):
                    raise InvalidOption(
                        f"the {name}{where} of a split are {type(value).__name__}; give tensors "
                        "with a dimension for the examples, e.g. torch.as_tensor(array), in any "
                        "nesting of tuples, lists and dictionaries"
                    )
        lengths = {
            f"{name}{where}": len(value)
            for name in ("inputs", "targets")
            for where, value in tensors(getattr(self, name))
        }
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise InvalidOption(f"a split has {found}; give as many of one as of the other")
        if not any(tensors(self.inputs)) or not next(iter(lengths.values())):
            raise InvalidOption("a split is empty; give at least one example")

    def __len__(self) -> int:
        return len(next(tensors(self.inputs))[1])

    @classmethod
    def from_dataset(cls, dataset: "Dataset[Any]") -> "Split":
        """Hold a map-style data set of (input, target) pairs in memory, collated.

        Raises:
            InvalidOption: it answers differently when asked again; random transforms of a batch
                belong into ``Problem.augment``.
        """
        count = len(dataset)  # type: ignore[arg-type]
        if not count:
            raise InvalidOption("the data set is empty; give at least one example")
        once, again = (default_collate([dataset[0]]) for _ in range(2))
        pairs = zip(tensors(once), tensors(again), strict=True)
        if not all(torch.equal(a, b) for (_, a), (_, b) in pairs):
            raise InvalidOption(
                "the data set answers differently when asked for its first example again; leave "
                "random transforms to Problem.augment, which changes a batch at a time"
            )
        inputs, targets = default_collate([dataset[index] for index in range(count)])
        return cls(inputs, targets)

    def take(self, chosen: Tensor | slice) -> "Split":
        """Return some of the examples."""
        return Split(
            mapped(lambda t: t[chosen], self.inputs), mapped(lambda t: t[chosen], self.targets)
        )

    def to(self, device: torch.device) -> "Split":
        """Return the examples on a device."""
        return Split(
            mapped(lambda t: t.to(device), self.inputs),
            mapped(lambda t: t.to(device), self.targets),
        )


@dataclass(frozen=True)
class Data:
    """A training and a test split, held in memory."""

    train: Split
    test: Split

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every value in both splits: two data sets are the same where it is."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for part in (split.inputs, split.targets):
                for where, tensor in tensors(part):
                    digest.update(f"{where}{tensor.dtype}{tuple(tensor.shape)}".encode())
                    flat = tensor.detach().cpu().contiguous().view(-1)
                    digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def constant(step: int, steps: int) -> float:
    """Leave the step size as it is."""
    return 1.0


class Make(Protocol):
    """Builds an optimizer of the method that is being tried."""

    def __call__(self, params: Any, *, lr_factor: float = 1.0) -> Optimizer:
        """Build it for some parameters, with ``lr_factor`` times the run's step size."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A learning task with its model, data and length of training.

    Attributes:
        name: what reports call it, and its folder.
        description: one line for ``svag problems``.
        model: builds a freshly initialised model; all generators are seeded before each call.
        load: reads the data; its argument is the folder given by ``--data-dir``, or None.
        batch_size: examples a step.
        steps: steps of one run (``--budget full``).
        quick_steps: steps of one run where time is short (``--budget quick``).
        loss: mean loss of a batch, from the model's outputs and the targets.
        metric: what methods are judged by; None: the accuracy where the loss is the cross-entropy
            against class indices, else the loss.
        select: what step sizes are chosen by: a tenth of the training data held out, or, as in the
            paper, the test data.
        schedule: factor on the step size, from the step (0-based) and the number of steps.
        weight_decay: lambda of the L2 term ``lambda/2 |w|^2`` on parameters of two or more
            dimensions (weights, not biases or normalisation).
        augment: changes the inputs of a batch, given a generator of the run's own.
        step: a training step of one's own, see :mod:`svag.problems.steps`. One with state (a
            scaler) is copied for every run.
        optimizers: builds the optimizers from the model and ``make``, where one is not enough:
            ``lambda model, make: [make(model.g.parameters()), make(model.d.parameters())]``.
        carry_state: whether ``model.carried_state`` goes from batch to batch (truncated BPTT).
            Batches are then consecutive rows of the split, and it is None at the start of every
            epoch and of every evaluation.
        autocast: dtype of the forward pass, ``"bfloat16"``; None for the model's own.
        depends_on: files and folders that it reads, relative to its own file; a change of theirs
            makes another version of it.
        version: raise it when a change that nothing else shows makes earlier records incomparable.
        source: what it was asked for by; filled in by :func:`svag.problems.get`.

    Raises:
        InvalidOption: a value is outside its set.
    """

    name: str
    description: str
    model: Callable[[], nn.Module]
    load: Callable[[Path | None], Data]
    batch_size: int
    steps: int
    quick_steps: int
    loss: Loss = cross_entropy
    metric: Metric | None = None
    select: Select = "validation"
    schedule: Callable[[int, int], float] = constant
    weight_decay: float = 0.0
    augment: Callable[[Nested, torch.Generator], Nested] | None = None
    step: Step | None = None
    optimizers: Callable[[nn.Module, Make], Sequence[Optimizer]] | None = None
    carry_state: bool = False
    autocast: str | None = None
    depends_on: tuple[str | Path, ...] = ()
    version: str = "1"
    source: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for field in ("batch_size", "steps", "quick_steps"):
            value = getattr(self, field)
            if not (type(value) is int and value > 0):
                raise InvalidOption(f"{field}={value!r}: a problem needs a positive integer")
        for field in ("model", "load", "loss", "schedule"):
            if not callable(getattr(self, field)):
                raise InvalidOption(f"{field}={getattr(self, field)!r}: give a function")
        for field in ("augment", "step", "optimizers"):
            value = getattr(self, field)
            if not (value is None or callable(value)):
                raise InvalidOption(f"{field}={value!r}: give a function, or None")
        if not (isinstance(self.metric, Metric) or self.metric is None):
            raise InvalidOption(f"metric={self.metric!r}: give a svag.problems.Metric, or None")
        if self.select not in get_args(Select):
            raise InvalidOption(f"select={self.select!r}: choose 'validation' or 'test'")
        decay = self.weight_decay
        if not (isinstance(decay, int | float) and 0 <= decay < float("inf")):
            raise InvalidOption(f"weight_decay={decay!r}: give a finite number of at least 0")
        if self.autocast not in (None, *AUTOCAST):
            raise InvalidOption(f"autocast={self.autocast!r}: choose one of {AUTOCAST}, or None")
        if isinstance(self.depends_on, str | Path):
            raise InvalidOption(f"depends_on={self.depends_on!r}: give a tuple of paths")

    def judged_by(self, data: Data) -> Metric:
        """Return the metric, the default one where the problem names none."""
        if self.metric is not None:
            return self.metric
        targets = data.train.targets
        indices = isinstance(targets, Tensor) and not targets.is_floating_point()
        if indices and self.loss is cross_entropy:
            return accuracy_metric()
        if indices and self.loss is functional.cross_entropy:
            return accuracy_metric(dim=1)
        if indices and isinstance(self.loss, nn.CrossEntropyLoss):
            return accuracy_metric(dim=1, ignored=self.loss.ignore_index)
        return loss_metric(self.loss)

    def check(self, data: Data) -> None:
        """Refuse data that cannot be trained on.

        Raises:
            InvalidOption: values that are not finite, or fewer examples than a batch has.
        """
        for split_name in ("train", "test"):
            split: Split = getattr(data, split_name)
            for name in ("inputs", "targets"):
                for where, tensor in tensors(getattr(split, name)):
                    if tensor.is_floating_point() and not tensor.isfinite().all():
                        raise InvalidOption(
                            f"the {name}{where} of the {split_name} split of {self.name!r} hold "
                            "NaN or infinite values; fill or leave out these examples"
                        )
