"""The loss of a model as a pure function of its parameters and a mini-batch.

    L_B(theta) = loss of the batch B at theta  (+ 1/2 sum_i lambda_i theta_i^2)

The model is in training mode, as in training, with the random numbers of each batch fixed: dropout
masks and everything else that is drawn are the same at every evaluation of one batch. Buffers, such
as the running statistics of BatchNorm, are restored after every evaluation.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from svag.diagnosis.kept_state import KeptState, gradients_kept
from svag.diagnosis.outputs import separated
from svag.diagnosis.refusals import (
    refuse_functions,
    refuse_others,
    refuse_parameter,
    refuse_unready,
)
from svag.errors import DissectionError, InvalidOption
from svag.problems.nested import Nested, mapped, tensors

Loss: TypeAlias = Callable[[Any, Any], Tensor]
BatchLoss: TypeAlias = Callable[[nn.Module, Any], Tensor]

_AGREES = 1e-4
"""Relative difference of two evaluations up to which it counts as rounding, as on a GPU."""


@dataclass(frozen=True)
class Batch:
    """A mini-batch with what else its loss depends on.

    Attributes:
        content: what the user's loader yielded.
        seed: seeds the generators before every forward pass.
        carried: the state that ``model.carried_state`` has before the batch, if one is carried.
    """

    content: Any
    seed: int
    carried: Nested = None

    @property
    def size(self) -> int | None:
        """Number of examples: length of the first tensor; None if there is none."""
        first = next((t for t in self.tensors() if t.ndim), None)
        return None if first is None else len(first)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """Yield its tensors; a mapping such as Hugging Face's counts as a dictionary."""
        content = dict(self.content) if isinstance(self.content, Mapping) else self.content
        return (t for _, t in tensors(content) if isinstance(t, Tensor))


class Objective:
    """A model's loss at parameters that are set from outside.

    Args:
        model: the model; its trainable parameters are what is dissected.
        loss_fn: mean loss from the model's outputs and the targets; batches are then pairs
            ``(inputs, targets)``.
        batch_loss: instead of ``loss_fn``, the loss from the model and a batch of any kind.
        precision: returns the context of the forward pass, such as autocast.
        weight_decay: lambda of the L2 term of each parameter, by the parameter's name.
        carries: whether ``model.carried_state`` is carried from batch to batch.

    Attributes:
        names: names of the trainable parameters.
        params: the parameters, in the same order, each once.
        decays: lambda of each of them, 0 where it has none.

    Raises:
        InvalidOption: neither or both of the losses are given, nothing is trainable, a parameter is
            neither float32 nor float64, or something else rules a dissection out.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss | None = None,
        *,
        batch_loss: BatchLoss | None = None,
        precision: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        weight_decay: Mapping[str, float] | None = None,
        carries: bool = False,
    ) -> None:
        refuse_functions(loss_fn, batch_loss, precision)
        refuse_unready(model)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel()}
        if not named:
            raise InvalidOption("the model has no trainable parameter, so there is no direction")
        for name, param in named.items():
            refuse_parameter(name, param)
        self.model = model
        self.names, self.params = list(named), list(named.values())
        self.size = sum(p.numel() for p in self.params)
        self.device = self.params[0].device
        self._loss_fn, self._batch_loss = loss_fn, batch_loss
        self._precision, self._carries = precision, carries
        self.decays = [float((weight_decay or {}).get(n, 0.0)) for n in named]
        self._state = KeptState(model)
        self._writes = self._differentiates = False
        self._theta: list[Tensor] = []

    @property
    def has_outputs(self) -> bool:
        """Whether outputs and loss are known apart, which the Gauss-Newton matrix needs."""
        return self._loss_fn is not None

    def graph(self, batch: Batch, *, apart: bool = False) -> tuple[Tensor, Nested]:
        """Return the loss with its graph, and the model's outputs (None for ``batch_loss``).

        Call :meth:`restore` when the graph has been used.

        Args:
            batch: what to evaluate on.
            apart: whether to return the outputs as a list of their real tensors, each a separate
                view from which the loss is computed. Then no returned tensor depends on another, as
                logits do on a hidden layer that the model also returns.

        Raises:
            DissectionError: the loss is no tensor of one element.
        """
        model = self.model
        content = self._placed(batch.content)
        self._seed(batch.seed)
        if self._carries:
            setattr(model, "carried_state", batch.carried)  # noqa: B010
        outputs = None
        with self._precision():
            if self._batch_loss is not None:
                loss = self._batch_loss(model, content)
            else:
                inputs, targets = self._pair(content)
                handed = outputs = model(inputs)
                if apart:
                    handed, outputs = separated(outputs)
                assert self._loss_fn is not None
                loss = self._loss_fn(handed, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            raise DissectionError(
                f"the loss of a batch is {_kind(loss)}, not one number; return the mean over the "
                "batch"
            )
        return self._penalised(loss.reshape(())), outputs

    def loss(self, batch: Batch) -> float:
        """Return the loss of a batch at the parameters as they are; it may be inf or NaN."""
        with torch.set_grad_enabled(self._differentiates):
            value, _ = self.graph(batch)
        self.restore()
        return float(value.detach())

    def gradient(self, batch: Batch) -> float:
        """Leave the gradient of a batch in ``p.grad``, and return the loss."""
        with torch.enable_grad():
            for param in self.params:
                param.grad = None
            value, _ = self.graph(batch)
            refuse_cut_graph(value)
            value.backward()
        self.restore()
        return float(value.detach())

    def restore(self) -> None:
        """Undo what forward passes have written to buffers, unless they are :meth:`writing`."""
        if not self._writes:
            self._state.restore()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Let forward passes write to buffers, as training does, and restore them at the end."""
        self._writes = True
        try:
            yield
        finally:
            self._writes = False
            self.restore()

    @contextlib.contextmanager
    def dissected(self) -> Iterator[None]:
        """Put the model in training mode; at the end restore everything, bit for bit.

        A model that is in training mode keeps the modes of its modules, such as a BatchNorm that is
        frozen by ``eval()``.

        Restored are parameters, ``requires_grad``, gradients, buffers, modes, carried state and the
        generators of Python, NumPy and torch. A nested call does nothing.
        """
        if self._theta:
            yield
            return
        model, params = self.model, self.params
        self._theta = [p.detach().clone() for p in params]
        modes = [(module, module.training) for module in model.modules()]
        flags = [(param, param.requires_grad) for param in model.parameters()]
        carried = getattr(model, "carried_state", None)
        state = random.getstate(), np.random.get_state()  # noqa: NPY002
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            if not model.training:
                model.train()
            with torch.random.fork_rng(devices), gradients_kept(list(model.parameters())):
                yield
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
            with torch.no_grad():
                for param, value in zip(params, self.theta, strict=True):
                    if not torch.equal(param, value):
                        param.copy_(value)
            self._theta = []
            self.restore()
            for module, mode in modes:
                module.training = mode
            for param, flag in flags:
                param.requires_grad_(flag)
            if self._carries:
                setattr(model, "carried_state", carried)  # noqa: B010

    @property
    def theta(self) -> list[Tensor]:
        """The parameters that are dissected: a copy, to come back to. Only within dissected()."""
        if not self._theta:
            raise RuntimeError("no dissection is going on")
        return self._theta

    def check(self, batch: Batch) -> float:
        """Return the loss of a batch, and refuse one that is not finite or not reproducible.

        Frozen parameters that the forward pass changes count as buffers from now on.

        Raises:
            DissectionError: the loss is NaN or infinite, or differs between two evaluations.
            InvalidOption: it depends on trainable parameters that are not the model's.
        """
        with self._state.watching(self.model):
            first = self._first_loss(batch)
        with torch.enable_grad():
            values = []
            for _ in range(2):
                values.append(self.graph(batch)[0])
                self.restore()
        refuse_others(values, self.model.parameters())
        second = float(values[0].detach())
        for name, param, start in zip(self.names, self.params, self._theta, strict=False):
            if not torch.equal(param, start) and start.isfinite().all():
                raise DissectionError(
                    f"the forward pass changes the parameter {name!r} in place; a dissection sets "
                    "the parameters itself, so change them after the optimizer's step instead"
                )
        if not math.isfinite(first):
            raise DissectionError(
                f"the loss is {first} at the current parameters; there is nothing to improve on. "
                "Dissect at parameters where it is finite"
            )
        _agree(first, second)
        return first

    def _first_loss(self, batch: Batch) -> float:
        """Return a loss; if it contains derivatives, later losses are computed with their graph."""
        try:
            return self.loss(batch)
        except RuntimeError:  # torch.autograd.grad has no graph, as of a gradient penalty
            self._differentiates = True
        self.restore()
        return self.loss(batch)

    def check_again(self, batch: Batch, before: float) -> None:
        """Refuse a loss that has drifted since :meth:`check`, at the parameters as they were.

        Raises:
            DissectionError: the loss differs, or a parameter was replaced.
        """
        if name := self._state.replaced():
            raise DissectionError(
                f"the forward pass replaces the parameter {name!r} by another object; a dissection "
                "sets the values of the model's parameters, so keep the same objects"
            )
        _agree(before, self.loss(batch))

    def parameters_kept(self) -> AbstractContextManager[None]:
        """Restore frozen parameters, too; takes a copy of them."""
        return self._state.parameters_kept(self.model)

    def state_after(self) -> Nested:
        """Return the state that the last forward pass has left in ``model.carried_state``."""
        return mapped(Tensor.detach, getattr(self.model, "carried_state", None))

    @property
    def carries(self) -> bool:
        """Whether state is carried from batch to batch."""
        return self._carries

    def _seed(self, seed: int) -> None:
        """Seed the global generators of Python, NumPy and the model's device.

        ``torch.manual_seed`` would format three stacks for devices that are not there: 0.3 ms.
        """
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is meant
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _penalised(self, loss: Tensor) -> Tensor:
        for param, decay in zip(self.params, self.decays, strict=True):
            if decay:
                loss = loss + 0.5 * decay * param.square().sum()
        return loss

    def _placed(self, content: Any) -> Any:
        """Return a batch on the model's device."""
        if hasattr(content, "to") and not isinstance(content, Tensor):
            return content.to(self.device)
        return mapped(self._own, content)

    def _own(self, tensor: Tensor) -> Tensor:
        """Return a copy on the model's device: a model may change its inputs, or fill ``.grad``."""
        given = tensor.detach()
        moved = given.to(self.device, non_blocking=True)
        own = moved.clone() if moved is given else moved
        return own.requires_grad_(tensor.requires_grad)

    @staticmethod
    def _pair(content: Any) -> tuple[Any, Any]:
        if isinstance(content, Sequence) and len(content) == 2:
            return content[0], content[1]
        raise DissectionError(
            f"a batch is {type(content).__name__}, not a pair (inputs, targets); give "
            "batch_loss=lambda model, batch: ... in place of loss_fn"
        )


def _kind(loss: Any) -> str:
    if not isinstance(loss, Tensor):
        return type(loss).__name__
    return str(tuple(loss.shape)) if loss.numel() != 1 else str(loss.dtype)


def _agree(first: float, second: float) -> None:
    if not abs(first - second) <= _AGREES * max(abs(first), abs(second)):
        raise DissectionError(
            f"two evaluations of one batch gave the losses {first:.7g} and {second:.7g}; the loss "
            "must depend on parameters, batch, buffers and the global generators alone. Look for "
            "state that the model keeps outside its buffers, or a generator of its own"
        )


def refuse_cut_graph(loss: Tensor) -> None:
    """Raise DissectionError if a loss has no graph that leads to a parameter."""
    if not loss.requires_grad:
        raise DissectionError(
            "the loss does not depend on any trainable parameter, or its graph was cut "
            "(detach, no_grad, .item()); return the loss as the model's training does"
        )
