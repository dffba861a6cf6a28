"""The default training step as one CUDA graph: captured once, replayed at every further step.

Augmentation, forward and backward pass and the optimizer's update are one launch. Values that
change from step to step are tensors at fixed addresses on the device: the indices of the batch,
the step size, the states of the generators. A graph would freeze Python values, so a model that
counts its calls in Python, or draws random numbers on the CPU, is trained without a graph.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag.lab.batches import Batches
from svag.lab.resuming import plain_attributes
from svag.problems.steps import Step

WARM_UP = 3
"""Steps that are taken without a graph before it is captured."""


class NotCapturable(Exception):
    """A step cannot be replayed; the message says why."""


class Captured:
    """A step that is captured as a graph after its first few calls, then replayed.

    Args:
        step: the step to capture: it takes one batch and returns the loss, a tensor.
        device: where it runs. On a CPU, which has no graphs, the step is called every time.
        digests: returns hashes of the objects that the step uses, except tensors and numbers, by
            name; None for an object that cannot be hashed.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        digests: Callable[[], Mapping[str, str | None]] = lambda: {},
    ) -> None:
        self._step, self._device, self._digests = step, device, digests
        self._graph: torch.cuda.CUDAGraph | None = None
        self._indices: Tensor | None = None
        self._loss: Tensor | float = 0.0
        self._calls = 0

    def __call__(
        self, model: nn.Module, batches: Iterator[tuple[Any, Any]], optimizers: Sequence[Optimizer]
    ) -> Tensor | float:
        """Take a step.

        Raises:
            NotCapturable: the step changes state in Python, which a graph would not repeat, or CUDA
                cannot capture it.
        """
        assert isinstance(batches, Batches)
        chosen = batches.choose()
        if self._indices is None:
            self._indices = torch.empty_like(chosen, device=self._device)
        self._indices.copy_(chosen)
        fixed = _Fixed(batches, self._indices)
        if self._calls < WARM_UP:
            self._loss = self._warmed(model, fixed, optimizers)
        elif self._device.type != "cuda":
            self._loss = self._step(model, fixed, optimizers)
        else:
            if self._graph is None:
                self._graph = self._captured(model, fixed, optimizers)
            self._graph.replay()
        self._calls += 1
        return self._loss

    def _warmed(
        self, model: nn.Module, batches: "_Fixed", optimizers: Sequence[Optimizer]
    ) -> Tensor | float:
        """Take a step without a graph, and raise if it changed state in Python."""
        before, digests = self._python_state(model), self._digests()
        if self._device.type == "cuda":
            aside = torch.cuda.Stream(self._device)
            aside.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(aside):
                loss = self._step(model, batches, optimizers)
            torch.cuda.current_stream(self._device).wait_stream(aside)
        else:
            loss = self._step(model, batches, optimizers)
        for what, value in self._python_state(model).items():
            if not _same(before.get(what), value):
                raise NotCapturable(f"{what} changes from step to step")
        after = self._digests()
        for what in [*after, *digests]:
            if after.get(what) is None or after[what] != digests.get(what):
                raise NotCapturable(f"{what} may change from step to step")
        return loss

    def _python_state(self, model: nn.Module) -> dict[str, Any]:
        """Return the state on the host that a step may change, by name."""
        state: dict[str, Any] = {
            f"{name!r} of {type(module).__name__} {at}".strip(): value
            for at, module in model.named_modules()
            for name, value in plain_attributes(module)
        }
        state["the generator of Python"] = random.getstate()
        state["the generator of NumPy"] = tuple(np.random.get_state())  # noqa: NPY002
        if self._device.type != "cpu":
            state["torch's generator on the CPU"] = torch.get_rng_state()
        return state

    def _captured(
        self, model: nn.Module, batches: "_Fixed", optimizers: Sequence[Optimizer]
    ) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in batches.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                self._loss = self._step(model, batches, optimizers)
        except Exception as error:  # CUDA, or any code that waits for the device
            self._end_capture()
            raise NotCapturable(f"{type(error).__name__}: {error}") from error
        return graph

    def _end_capture(self) -> None:
        """Capture a trivial graph: a failed capture leaves torch's generators in capture mode."""
        with suppress(RuntimeError):
            torch.cuda.synchronize(self._device)
            nothing = torch.cuda.CUDAGraph()
            with torch.cuda.graph(nothing):
                torch.zeros((), device=self._device)


class Finite:
    """Tells on the device whether all losses so far were finite, and counts the finite ones.

    Reading a loss makes the host wait for the device, so it is done only every few steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._all = torch.ones((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.long, device=device)

    def observe(self, loss: Tensor) -> None:
        """Update with the loss of a step."""
        self._all.logical_and_(loss.detach().isfinite().all())
        self._count.add_(self._all)

    def __bool__(self) -> bool:
        return bool(self._all.item())

    @property
    def count(self) -> int:
        """How many losses were finite before the first that was not."""
        return int(self._count.item())


class _Fixed:
    """Batches that read their indices from one tensor, whose address a graph keeps."""

    def __init__(self, batches: Batches, indices: Tensor) -> None:
        self._batches, self._indices = batches, indices

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self

    def __next__(self) -> tuple[Any, Any]:
        return self._batches.take(self._indices)

    @property
    def generators(self) -> list[torch.Generator]:
        return self._batches.generators


def _same(before: Any, after: Any) -> bool:
    """Whether a value is unchanged; for tensors on a device, whether it is the same object."""
    if isinstance(after, Tensor) and after.device.type != "cpu":
        return before is after
    if isinstance(after, Tensor | np.ndarray):
        return bool(isinstance(before, type(after)) and np.array_equal(before, after))
    if isinstance(after, list | tuple):
        return (
            type(before) is type(after)
            and len(before) == len(after)
            and all(map(_same, before, after))
        )
    return bool(before == after)
