"""Who used which parameter, and what to do when its gradient arrives.

A *tap* stands behind every operation that uses a parameter. The operation itself runs with the
parameter detached, so that autograd computes no gradient of it; the tap sees the gradient of the
output, and from that and the input it makes the contributions of the examples, whose sum is the
gradient. One product of per-example gradients so serves mean and variance.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from svag.errors import PerExampleError
from svag.variance.attachment import attach, is_current
from svag.variance.contributions import (
    Contributions,
    Estimate,
    Joint,
    PulledBack,
    pull_back,
)
from svag.variance.layout import Layout, Mark, in_order

_DERIVED = "_svag_derived"
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True)
class Source:
    """Where a tensor that parameters were turned into comes from.

    Attributes:
        params: the parameters.
        leaves: stand-ins for them, at which the graph of ``computed`` ends.
        computed: the tensor in that graph.
    """

    params: tuple[nn.Parameter, ...]
    leaves: tuple[Tensor, ...]
    computed: Tensor

    @property
    def is_parameter(self) -> bool:
        """Whether nothing was computed yet."""
        return self.computed is self.leaves[0]


Factory = Callable[[Tensor, Tensor], Contributions]


@dataclass
class Site:
    """One operation that uses parameters: their sources, and how contributions are made.

    Attributes:
        recorder: that takes the contributions.
        sources: one a parameter of the operation.
        factories: likewise; each maps (gradient of the output, input) to contributions.
        places: likewise, where an operation makes them another way: which weight it is.
        where: the examples are in the output.
        uses: number of uses of each parameter in the same forward passes, by id.
    """

    recorder: "Recorder"
    sources: Sequence[Source]
    factories: Sequence[Factory] = ()
    places: Sequence[int] = ()
    where: Layout | Mark | None = None
    uses: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        self.uses = self.recorder.uses
        self.uses.update(id(p) for source in self.sources for p in source.params)

    @property
    def params(self) -> list[nn.Parameter]:
        """Every parameter behind the sources, in order."""
        return [p for source in self.sources for p in source.params]

    def gradients(self, delta: Tensor, data: Tensor) -> Iterator[Tensor]:
        """Make the contributions and yield their sums, one a parameter."""
        for source, factory in zip(self.sources, self.factories, strict=True):
            dtype = torch.promote_types(source.computed.dtype, torch.float32)
            values = data.to(dtype) if data.is_floating_point() else data
            yield from self.take(source, factory(delta.to(dtype), values))

    def take(self, source: Source, contributions: Contributions) -> Iterator[Tensor]:
        """Hand contributions to the recorder and yield their sums, one a parameter."""
        contributions.in_order = in_order(self.where)
        return self.recorder.take(source, contributions, self.uses)


class Tap(torch.autograd.Function):
    """Pass an output on, and turn its gradient into contributions on the way back."""

    @staticmethod
    def forward(ctx: Any, site: Site, output: Tensor, data: Tensor, *params: Tensor) -> Tensor:
        """Return ``output`` itself, now with the parameters behind it."""
        ctx.site = site
        ctx.save_for_backward(data)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the output and of the parameters."""
        (data,) = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            return (None, delta, None, *ctx.site.gradients(delta, data))


class Recorder:
    """The state of one context: sources, uses and contributions.

    Args:
        model: whose parameters are followed.
        max_bytes: for per-example gradients held at once.
        check: compare contributions and gradients of each parameter's first backward pass.
        kept: names of parameters whose contributions are kept whole.
        squares: keep sum_k c_k^2 of every parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        max_bytes: int,
        check: bool,
        kept: Sequence[str] = (),
        squares: bool = False,
    ) -> None:
        named = dict(model.named_parameters())
        self.names = {id(p): name for name, p in named.items() if p.requires_grad}
        self.params = [p for p in named.values() if p.requires_grad]
        for name in (self.names[id(p)] for p in self.params if p.is_complex()):
            raise PerExampleError(f"{name} is complex; use svag.micro_batch_variance")
        self.max_bytes = max_bytes
        self.kept = {id(named[name]) for name in kept}
        self.per_example: dict[str, Tensor] = {}
        self.second_moments: dict[str, Tensor] = {}
        self._squares = squares
        self.uses: Counter[int] = Counter()
        self.forwards = self.backwards = self.examples = 0
        self._unchecked = {id(p) for p in self.params} if check else set()
        self._sources: dict[int, Source] = {}
        self._pending: dict[int, list[Contributions]] = {}
        self._done: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}
        self._incoming: dict[int, Tensor] = {}
        self._earlier: dict[int, Tensor] = {}
        self._pass: int | None = None

    def hooks(self) -> Iterator[Any]:
        """Register a hook before and one after each parameter's gradient, and yield the handles."""
        for param in self.params:
            yield param.register_hook(self._before(param))
            yield param.register_post_accumulate_grad_hook(self._after)

    def source_of(self, tensor: object) -> Source | None:
        """Return the source of a followed parameter, or of a tensor computed from some."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self.names:
            return self._sources.get(id(tensor)) or self._new_source(tensor)
        recorder, source = getattr(tensor, _DERIVED, (None, None))
        return source if recorder is self else None

    def _new_source(self, param: Any) -> Source:
        leaf = param.detach().requires_grad_()
        source = self._sources[id(param)] = Source((param,), (leaf,), leaf)
        return source

    def label(self, tensor: Tensor) -> str:
        """Return the name of a parameter, or of what a tensor was computed from."""
        source = self.source_of(tensor)
        params = source.params if source else ()
        return " and ".join(repr(self.names[id(p)]) for p in params) or "a constant"

    def owner_of(self, *tensors: Tensor | None) -> str:
        """Return `` 'name'`` of the module that owns one of the tensors, or nothing."""
        names = [self.names.get(id(t)) for t in tensors]
        return next((f" {n.rpartition('.')[0] or n!r}" for n in names if n), "")

    def derive(self, tensor: Tensor, source: Source) -> None:
        """Note that ``tensor`` is ``source.computed`` in the user's graph."""
        setattr(tensor, _DERIVED, (self, source))

    def take(
        self, source: Source, contributions: Contributions, uses: Counter[int]
    ) -> Iterator[Tensor]:
        """Take the contributions of one use and yield their sum, one a parameter of the source.

        Where it is the parameter's only use, mean and variance come from the same products now;
        else the contributions wait until :meth:`_after` can add them up.
        """
        self._begin_pass()
        for param, leaf in zip(source.params, source.leaves, strict=True):
            if source.is_parameter and uses[id(param)] == 1 and id(param) not in self.kept:
                estimate = contributions.estimate(self.max_bytes)
                self._refuse_late(param)
                self._done[id(param)] = estimate.variance
                self._keep_squares(param, estimate, contributions.examples)
                if id(param) in self._unchecked:
                    self._totals[id(param)] = estimate.total
                yield estimate.total
                continue
            mine = contributions
            if not source.is_parameter:
                mine = PulledBack(contributions, source.computed, leaf)
            self._refuse_late(param)
            self._pending.setdefault(id(param), []).append(mine)
            yield mine.total(self.max_bytes)

    def _begin_pass(self) -> None:
        """Forget what a backward pass left that reached no parameter, as autograd.grad does."""
        task = torch._C._current_graph_task_id()
        if task != self._pass:
            self._pass = task
            self.backwards += 1
            self.uses = Counter()
            for left in (self._pending, self._done, self._totals, self._incoming, self._earlier):
                left.clear()

    def _refuse_late(self, param: Tensor) -> None:
        if id(param) in self._done:
            raise PerExampleError(
                f"{self.names[id(param)]}: a second use came after the variance was computed, from "
                "a graph kept from an earlier backward pass; run the forward pass again instead"
            )

    def _before(self, param: Tensor) -> Callable[[Tensor], None]:
        key = id(param)

        def before(grad: Tensor) -> None:
            self._begin_pass()
            if key in self._unchecked:
                self._incoming[key] = grad
            if param.grad is not None and is_current(param):
                self._earlier[key] = param.grad_var  # type: ignore[attr-defined]

        return before

    def _after(self, param: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            variance = self._finish(param)
            self._check(param)
            if variance is None or param.grad is None:
                return
            earlier = self._earlier.pop(id(param), None)
            if earlier is not None:
                variance = variance + earlier
            if variance.stride() != param.grad.stride():
                variance = torch.empty_like(param.grad).copy_(variance)
            attach(param, variance)

    def _finish(self, param: Tensor) -> Tensor | None:
        key = id(param)
        pending = self._pending.pop(key, None)
        if not pending:
            return self._done.pop(key, None)
        self._refuse_unequal(param, pending)
        joint = Joint(pending)
        estimate = joint.estimate(self.max_bytes)
        self._totals[key], variance = estimate
        self._keep_squares(param, estimate, joint.examples)
        if key in self.kept:
            self.per_example[self.names[key]] = joint.chunk(0, joint.examples)
        return variance

    def _keep_squares(self, param: Tensor, estimate: Estimate, examples: int) -> None:
        """Solve the formula of the variance for sum_k c_k^2."""
        if self._squares:
            squares = estimate.total.square().add_(estimate.variance, alpha=examples - 1)
            self.second_moments[self.names[id(param)]] = squares.div_(examples)

    def _refuse_unequal(self, param: Tensor, uses: Sequence[Contributions]) -> None:
        needed = len(uses) > 1 or id(param) in self.kept
        if needed and not all(use.in_order for use in uses):
            raise PerExampleError(
                f"{self.names[id(param)]} was used more than once, or its contributions are to be "
                "kept, and it was used on examples that indices put into another order, so which "
                "is which is not clear; leave the sorting to torch (pack_padded_sequence with "
                "enforce_sorted=False), or use svag.micro_batch_variance"
            )
        sizes = sorted({use.examples for use in uses})
        if len(sizes) > 1:
            raise PerExampleError(
                f"{self.names[id(param)]} was used on batches of {sizes} examples in one backward "
                "pass; give every forward pass the same examples, or run backward for each"
            )

    def _check(self, param: Tensor) -> None:
        """Compare what was seen with what arrived, once for each parameter."""
        key = id(param)
        total = self._totals.pop(key, None)
        if key not in self._unchecked or key not in self._incoming:
            return
        self._unchecked.discard(key)
        grad = self._incoming.pop(key)
        total = torch.zeros_like(grad) if total is None else total
        bound = _TOLERANCE.get(grad.dtype, 5e-2) * max(float(grad.norm()), float(total.norm()))
        missing = float((grad - total).norm())
        if missing > bound:
            raise PerExampleError(
                f"{self.names[key]}: the examples' contributions do not add up to its gradient (a "
                f"norm of {missing:.3g} of {float(grad.norm()):.3g} is missing), so it is used "
                "where no operation shows it: in a custom autograd.Function, compiled or scripted "
                "code, a reentrant checkpoint, an assignment x[...] = p, or on inputs that did not "
                "come in by calling the model or a submodule. Write it with torch operations, or "
                "use svag.micro_batch_variance, which needs none of this"
            )


class Link(torch.autograd.Function):
    """Tie a tensor computed from stand-ins to the parameters they stand for.

    Operations that svag sees bypass it; for any other use it keeps ``p.grad`` right.
    """

    @staticmethod
    def forward(ctx: Any, source: Source, *params: Tensor) -> Tensor:
        """Return the tensor."""
        ctx.source = source
        return source.computed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters."""
        source: Source = ctx.source
        with torch._C.DisableTorchFunction():
            pulled = (
                pull_back(delta, source.computed, leaf, batched=False) for leaf in source.leaves
            )
            return (None, *pulled)
