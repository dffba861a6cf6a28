"""The class of problems: everything about a training run except the optimizer.

A problem is a small frozen object. The lab uses only its fields, so a user's own problem works in
the same way as the built-in ones.
"""

import hashlib
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import Dataset, default_collate

from svag.errors import InvalidOption
from svag.problems.metric import IGNORED, Metric, accuracy_metric, cross_entropy, loss_metric
from svag.problems.names import check_name
from svag.problems.nested import Nested, mapped, tensors
from svag.problems.schedules import constant
from svag.problems.steps import Loss, Step

Select = Literal["test", "validation"]
AUTOCAST = ("bfloat16", "float16")


@dataclass(frozen=True)
class Split:
    """Examples: tensors, or any nesting of them, whose first dimensions count the examples.

    Attributes:
        inputs: what the model takes.
        targets: what the loss compares its outputs with.

    Example:
        >>> split = Split(torch.zeros(5, 3), torch.arange(5))
        >>> len(split), split.take(slice(2)).targets
        (5, tensor([0, 1]))
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

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return next(tensors(self.inputs))[1].device  # type: ignore[no-any-return]

    @classmethod
    def from_dataset(cls, dataset: "Dataset[Any]") -> "Split":
        """Read a map-style data set of (input, target) pairs into memory, collated.

        Raises:
            InvalidOption: it has no length, no examples or no pairs, or returns different values
                for the same example; random transforms belong in ``Problem.augment``.
        """
        if not isinstance(dataset, Sized):
            raise InvalidOption(
                f"the data set is {type(dataset).__name__}, which has no length; give a map-style "
                "one, with __len__ and __getitem__"
            )
        if not len(dataset):
            raise InvalidOption("the data set is empty; give at least one example")
        if _bits(dataset[0]) != _bits(dataset[0]):
            raise InvalidOption(
                "the data set returns different values for its first example each time; leave "
                "random transforms to Problem.augment, which changes a batch at a time"
            )
        examples = default_collate([dataset[index] for index in range(len(dataset))])
        if not (isinstance(examples, tuple | list) and len(examples) == 2):
            raise InvalidOption(
                "the examples of the data set are no pairs; have it return (input, target), each "
                "a tensor or any nesting of them"
            )
        return cls(*examples)

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
    """A training and a test split, held in memory.

    Example:
        >>> data = Data(train=Split(torch.zeros(8, 3), torch.zeros(8)),
        ...             test=Split(torch.zeros(2, 3), torch.zeros(2)))
        >>> len(data.train), len(data.test)
        (8, 2)
    """

    train: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            split = getattr(self, name)
            if not isinstance(split, Split):
                raise InvalidOption(
                    f"{name} of the data is {type(split).__name__}; give a svag.problems.Split"
                )

    def to(self, device: torch.device) -> "Data":
        """Return both splits on a device."""
        return Data(self.train.to(device), self.test.to(device))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every value in both splits; equal data sets have equal hashes."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for part in (split.inputs, split.targets):
                if not isinstance(part, Tensor):
                    digest.update(repr(mapped(lambda tensor: ..., part)).encode())
                for where, tensor in tensors(part):
                    digest.update(f"{where}{tensor.dtype}{tuple(tensor.shape)}".encode())
                    flat = tensor.detach().cpu().contiguous().view(-1)
                    digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def _bits(example: Any) -> list[tuple[str, Any]]:
    """Return an example's values as bytes, in which NaN equals NaN."""
    collated = tensors(default_collate([example]))
    return [(at, t.numpy().tobytes() if isinstance(t, Tensor) else t) for at, t in collated]


class Make(Protocol):
    """Builds an optimizer of the run's method."""

    def __call__(self, params: Any, *, lr_factor: float = 1.0) -> Optimizer:
        """Build the optimizer for some parameters, with ``lr_factor`` times the run's step size."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A learning task with its model, data and length of training.

    Attributes:
        name: its name in reports, and the name of its folder.
        description: one line for ``svag problems``.
        model: builds a freshly initialised model; all generators are seeded before each call.
        load: reads the data; its argument is the folder given by ``--data-dir``, or None.
        batch_size: examples in a batch.
        steps: steps of a run with ``--budget full``.
        quick_steps: steps of a run with ``--budget quick``.
        loss: mean loss of a batch, from the model's outputs and the targets.
        metric: the metric by which methods are compared. None: the accuracy if the loss is the
            cross-entropy against class indices, else the loss.
        select: which data step sizes are chosen on: ``"validation"``, a tenth of the training data
            that is held out, or ``"test"``, the test data, as in the paper.
        schedule: factor on the step size, from the step (0-based) and the number of steps.
        weight_decay: lambda of the L2 term ``lambda/2 |w|^2`` on parameters of two or more
            dimensions (weights, not biases or normalisation).
        augment: changes the inputs of a training batch, given the run's generator on the device of
            the inputs.
        prepare: converts the inputs of every batch, after ``augment``, to the model's inputs; for
            instance bytes to standardised floats, so that the data on the device are bytes.
        channels_last: whether the model's 4-dimensional parameters, and so the outputs of its
            convolutions, have the channels-last memory format, which is faster on most processors.
        step: the problem's own training step, see :mod:`svag.problems.steps`. A step with state,
            such as a scaler, is copied for every run.
        optimizers: builds several optimizers from the model and ``make``, for instance
            ``lambda model, make: [make(model.g.parameters()), make(model.d.parameters())]``.
            ``make`` applies the problem's weight decay; parameter groups may state their own.
        carry_state: whether ``model.carried_state`` is carried from batch to batch (truncated
            BPTT). Batches are then consecutive rows of the split, so that row ``i + batch_size``
            continues row ``i``. The state is None at the start of every epoch and evaluation.
        autocast: dtype of the forward pass, ``"bfloat16"``; None for the model's own.
        depends_on: files and folders that the problem reads, relative to its own file; when they
            change, the problem has another version.
        version: any text. Change it when earlier records become incomparable for a reason that
            the hash of code and files does not show.
        source: the text by which the user named the problem; set by :func:`svag.problems.get`.

    Raises:
        InvalidOption: a value is outside its set.

    Example:
        >>> split = Split(torch.rand(20, 3), torch.arange(20) % 2)
        >>> problem = Problem(name="coin", description="", model=lambda: nn.Linear(3, 2),
        ...                   load=lambda data_dir: Data(split, split),
        ...                   batch_size=4, steps=100, quick_steps=10)
        >>> problem.judged_by(problem.load(None)).name
        'accuracy'
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
    prepare: Callable[[Nested], Nested] | None = None
    channels_last: bool = False
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
        for field in ("augment", "prepare", "step", "optimizers"):
            value = getattr(self, field)
            if not (value is None or callable(value)):
                raise InvalidOption(f"{field}={value!r}: give a function, or None")
        if not (isinstance(self.metric, Metric) or self.metric is None):
            raise InvalidOption(f"metric={self.metric!r}: give a svag.problems.Metric, or None")
        if self.metric and self.metric.name == "loss" and self.metric.function is not self.loss:
            raise InvalidOption(
                "a metric called 'loss' is not the problem's loss; give it another name, or "
                "metric=loss_metric(loss)"
            )
        if self.select not in get_args(Select):
            raise InvalidOption(f"select={self.select!r}: choose 'validation' or 'test'")
        decay = self.weight_decay
        if not (isinstance(decay, int | float) and 0 <= decay < float("inf")):
            raise InvalidOption(f"weight_decay={decay!r}: give a finite number of at least 0")
        if self.autocast not in (None, *AUTOCAST):
            raise InvalidOption(f"autocast={self.autocast!r}: choose one of {AUTOCAST}, or None")
        if type(self.channels_last) is not bool:
            raise InvalidOption(f"channels_last={self.channels_last!r}: give True or False")
        paths = self.depends_on
        if not (isinstance(paths, tuple | list) and all(isinstance(p, str | Path) for p in paths)):
            raise InvalidOption(f"depends_on={self.depends_on!r}: give a tuple of paths")

    def judged_by(self, data: Data) -> Metric:
        """Return the problem's metric, or the default if it has none."""
        if self.metric is not None:
            return self.metric
        targets = data.train.targets
        indices = isinstance(targets, Tensor) and not targets.is_floating_point()
        whole = partial(self.loss)  # Python flattens a partial of a partial
        if indices and whole.func is cross_entropy:
            return accuracy_metric()
        if indices and whole.func is functional.cross_entropy:
            return accuracy_metric(dim=1, ignored=whole.keywords.get("ignore_index", IGNORED))
        if indices and isinstance(whole.func, nn.CrossEntropyLoss):
            return accuracy_metric(dim=1, ignored=whole.func.ignore_index)
        return loss_metric(self.loss)

    def check(self, data: Data) -> None:
        """Check that the data are dense tensors, and that all their values are finite.

        Raises:
            InvalidOption: a tensor is sparse or has no values, or some value is NaN or infinite.
        """
        for split_name in ("train", "test"):
            split: Split = getattr(data, split_name)
            for name in ("inputs", "targets"):
                for where, tensor in tensors(getattr(split, name)):
                    what = f"the {name}{where} of the {split_name} split of {self.name!r}"
                    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
                        raise InvalidOption(
                            f"{what} are no dense tensor with its values in memory; give one, such "
                            "as tensor.to_dense()"
                        )
                    inexact = tensor.is_floating_point() or tensor.is_complex()
                    if inexact and not tensor.isfinite().all():
                        raise InvalidOption(
                            f"{what} hold NaN or infinite values; fill or leave out these examples"
                        )
