"""The contract of a problem: everything of a training run that is not the optimizer.

A problem is a small frozen object. The lab knows nothing else about a task, so a user's own
problem gets everything that the built-in ones get.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from svag.errors import InvalidOption


@dataclass(frozen=True)
class Split:
    """Examples, the first dimension of both tensors counting them.

    Attributes:
        inputs: shape ``(n, ...)``, what the model takes.
        targets: shape ``(n, ...)``, what the loss compares its outputs with.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            value = getattr(self, name)
            if not (isinstance(value, Tensor) and value.device.type == "cpu"):
                raise InvalidOption(
                    f"the {name} of a split are {type(value).__name__}; give a tensor on the CPU, "
                    "e.g. torch.as_tensor(array)"
                )
        if len(self.inputs) != len(self.targets):
            raise InvalidOption(
                f"a split has {len(self.inputs)} inputs and {len(self.targets)} targets; "
                "give as many of one as of the other"
            )

    def __len__(self) -> int:
        return len(self.inputs)


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
            for tensor in (split.inputs, split.targets):
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ``outputs`` (..., classes) against class indices (...)."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of ``outputs`` (..., classes) whose largest entry is at the target's index."""
    return (outputs.argmax(-1) == targets).double().mean()


def constant(step: int, steps: int) -> float:
    """Leave the step size as it is."""
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A learning task with its model, data and length of training.

    Attributes:
        name: what reports call it.
        description: one line for ``svag problems``.
        model: builds a freshly initialised model; the lab seeds torch before each call.
        load: reads the data; its argument is the folder given by ``--data-dir``, or None.
        batch_size: examples a step.
        steps: steps of one run (``--budget paper``).
        quick_steps: steps of one run where time is short (``--budget quick``).
        loss: mean loss of a batch, from the model's outputs and the targets.
        accuracy: a figure in [0, 1] of a batch, larger is better, from the same two.
        schedule: factor on the step size, from the step (0-based) and the number of steps.
        weight_decay: lambda of the L2 term ``lambda/2 |w|^2`` on parameters of two or more
            dimensions (weights, not biases or normalisation).
        version: raise it when a change makes earlier records incomparable.
        source: what it was asked for by; filled in by :func:`svag.problems.get`.
    """

    name: str
    description: str
    model: Callable[[], nn.Module]
    load: Callable[[Path | None], Data]
    batch_size: int
    steps: int
    quick_steps: int
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    accuracy: Callable[[Tensor, Tensor], Tensor] = accuracy
    schedule: Callable[[int, int], float] = constant
    weight_decay: float = 0.0
    version: str = "1"
    source: str | None = None

    def __post_init__(self) -> None:
        for field in ("batch_size", "steps", "quick_steps"):
            value = getattr(self, field)
            if not (isinstance(value, int) and value > 0):
                raise InvalidOption(f"{field}={value!r}: a problem needs a positive integer")
