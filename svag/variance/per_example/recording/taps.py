"""Taps: autograd functions behind every operation that uses a parameter.

A tap gets the gradient of the output, and makes the contributions of the examples from that and the
inputs. It either *observes*, and the parameter's gradient is autograd's own; or it *replaces* it:
the operation runs with the parameter detached, and the sum of the contributions is the gradient.
Only closed forms replace, because their sum is autograd's product in another order, even if rows
were assigned to the wrong examples. They compute mean and variance from the same products. In
verified passes all taps observe.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svag.errors import PerExampleError
from svag.variance.per_example.checks.verification import Verification
from svag.variance.per_example.contributions.base import Contributions
from svag.variance.per_example.owners.placement import Packed, Placed, Scattered
from svag.variance.per_example.recording.sources import Source

Factory = Callable[..., Contributions]


@dataclass
class Use:
    """One parameter in one operation.

    Attributes:
        source: the parameter, or a tensor computed from parameters.
        make: maps (gradient of the output, data of the operation) to contributions.
        replaces: whether the sum of the contributions is the parameter's gradient.
    """

    source: Source
    make: Factory
    replaces: bool


class Collector(Protocol):
    """Who takes the contributions, as :class:`~.recorder.Recorder` does."""

    calls: int
    uses: Counter[int]
    inside: bool
    used_outside: bool
    silent: bool
    verification: Verification | None

    def refuse_reentrant(self, site: "Site") -> None:
        """Raise if the operation ran in a reentrant checkpoint."""

    def label_of(self, site: "Site") -> str:
        """Return the names of the operation's parameters, for messages."""

    def note_terms(self, site: "Site", use: Use, delta: Tensor, data: Sequence[Tensor]) -> None:
        """Note what the parameters' gradients are sums of products of, to bound rounding errors."""

    def take(self, site: "Site", use: Use, contributions: Contributions) -> Iterator[Tensor]:
        """Take the contributions in, and yield the gradients of parameters that are replaced."""


@dataclass
class Site:
    """One operation that uses parameters.

    Attributes:
        recorder: collects the contributions.
        uses: one for each parameter of the operation.
        where: mark of the output.
        counts: number of uses of each parameter in the same forward passes, by id.
        task: id of the backward pass in which the operation ran, -1 for a forward pass.
        call: number of the call of the model that it belongs to.
    """

    recorder: Collector
    uses: Sequence[Use]
    where: "Placed | Packed"
    counts: Counter[int] = field(init=False)
    task: int = field(init=False)
    call: int = field(init=False)

    def __post_init__(self) -> None:
        self.task, self.call = torch._C._current_graph_task_id(), self.recorder.calls
        self.counts = self.recorder.uses if self.task == -1 else Counter()
        if not self.recorder.inside:
            self.recorder.used_outside = True
        self.counts.update(id(p) for use in self.uses for p in use.source.params)

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The parameters whose gradients the tap computes, in order."""
        return [p for use in self.uses if use.replaces for p in use.source.params]

    @property
    def idle(self) -> bool:
        """Whether the tap has no work: in svag's own backward pass, if it replaces no gradient."""
        return self.recorder.silent and not self.replaced

    def gradients(self, delta: Tensor, data: Sequence[Tensor]) -> Iterator[Tensor]:
        """Make the contributions and yield the sums of those that replace."""
        recorder = self.recorder
        recorder.refuse_reentrant(self)
        if isinstance(self.where, Scattered) and not self.where.complete(delta):
            raise PerExampleError(
                f"{recorder.label_of(self)} was used on rows that belong to no example, such as "
                "unused rows of a buffer, and their gradient is not 0; give the layer only rows "
                "that belong to examples, or use svag.micro_batch_variance"
            )
        for use in self.uses:
            dtype = torch.promote_types(use.source.dtype, torch.float32)
            values = [t.to(dtype) if t.is_floating_point() else t for t in data]
            contributions = use.make(delta.to(dtype), *values)
            recorder.note_terms(self, use, delta, data)
            yield from recorder.take(self, use, contributions)


class Once(torch.autograd.Function):
    """Pass a gradient on, and raise if something computed from it is differentiated again."""

    @staticmethod
    def forward(ctx: Any, site: Site, gradient: Tensor, anchor: Tensor) -> Tensor:
        """Return ``gradient``, which then requires a gradient because ``anchor`` does.

        Args:
            ctx: autograd's context.
            site: the operation, for the message.
            gradient: the gradient to pass on.
            anchor: a tensor that requires a gradient.
        """
        ctx.site = site
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, ...]:
        """Raise, since second derivatives are not supported."""
        raise PerExampleError(
            f"a gradient that came through {ctx.site.recorder.label_of(ctx.site)} was made with "
            "create_graph=True and is differentiated again, as in a gradient penalty; svag follows "
            "first derivatives only, so use svag.micro_batch_variance"
        )


Gradients = tuple[Tensor | None, ...]


def as_given(deltas: Sequence[Tensor]) -> AbstractContextManager[object]:
    """Return a context without autocast, for a backward pass that runs under it.

    Args:
        deltas: gradients of outputs.
    """
    kind = deltas[0].device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


_NOTHING = nullcontext()


def once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Decorate a ``backward`` to run without a graph; :class:`Once` raises if one is needed."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *deltas: Tensor) -> Gradients:
        with torch.no_grad(), as_given(deltas):
            grads = backward(ctx, *deltas)
        if not torch.is_grad_enabled():
            return grads
        anchor = torch.empty(0, requires_grad=True)
        return tuple(
            None if g is None else Once.apply(ctx.site, g, anchor)  # type: ignore[no-untyped-call]
            for g in grads
        )

    return wrapped


class Tap(torch.autograd.Function):
    """Pass an output on, and turn its gradient into contributions on the way back."""

    @staticmethod
    def forward(ctx: Any, site: Site, n: int, output: Tensor, *rest: Tensor) -> Tensor:
        """Return ``output`` as a function of itself and of the parameters that are replaced.

        Args:
            ctx: autograd's context.
            site: the operation.
            n: number of tensors of data.
            output: output of the operation.
            rest: the data that the contributions need, then the replaced parameters.
        """
        ctx.site, ctx.n = site, n
        ctx.save_for_backward(*rest[:n])
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once
    def backward(ctx: Any, delta: Tensor) -> Gradients:
        """Return the gradients of the output and of the replaced parameters."""
        data = () if ctx.site.idle else ctx.saved_tensors  # reading may recompute a checkpoint
        with torch._C.DisableTorchFunction():
            grads = () if ctx.site.idle else ctx.site.gradients(delta, data)
            return (None, None, delta, *[None] * ctx.n, *grads)
