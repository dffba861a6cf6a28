"""Records the uses of parameters, and computes their variances when their gradients are complete.

The contributions come from the taps (:mod:`~svag.variance.per_example.recording.taps`), one behind
every operation that uses a parameter.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from svag.errors import PerExampleError
from svag.variance.grad_var import attach, is_current
from svag.variance.per_example.checks.verification import REENTRANT, Term, Verification, check_sum
from svag.variance.per_example.contributions.base import Contributions, Estimate, Joint
from svag.variance.per_example.recording.sources import Source, source_of
from svag.variance.per_example.recording.taps import Site, Use

_DERIVED = "_svag_derived"


class Recorder:
    """The state of one context: sources, uses and contributions.

    Args:
        model: the model whose parameters are followed.
        max_bytes: most bytes of per-example gradients at a time.
        kept: names of parameters whose c_k are kept.
        squares: whether to keep sum_k c_k^2 of every parameter.
        check: whether contributions must add up to the gradient in passes that are not verified.

    Attributes:
        silent: whether nothing is recorded, in forward and backward passes that svag itself runs.
        fixed: whether the backward pass starts at functions of parameters alone, as a penalty.
        inside: whether a call of the model is running.
        used_outside: whether a parameter was used after the model, as in a loss.
    """

    def __init__(
        self,
        model: nn.Module,
        max_bytes: int,
        kept: Sequence[str] = (),
        squares: bool = False,
        *,
        check: bool = True,
    ) -> None:
        self.names: dict[int, str] = {}
        self.params: list[nn.Parameter] = []
        self.handles: list[Any] = []
        self._sources: dict[int, Source] = {}
        self.max_bytes = max_bytes
        self.kept = {id(model.get_parameter(name)) for name in kept}
        self.per_example: dict[str, Tensor] = {}
        self.second_moments: dict[str, Tensor] = {}
        self.verification: Verification | None = None
        self.silent = self.fixed = False
        self.inside = self.used_outside = False
        self._squares, self._adds_up = squares, check
        self.uses: Counter[int] = Counter()
        self.backwards = self.examples = self.calls = 0
        self._pending: dict[int, list[Contributions]] = {}
        self._done: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}
        self._incoming: dict[int, Tensor] = {}
        self._terms: dict[int, list[Term]] = {}
        self._earlier: dict[int, Tensor] = {}
        self._first: dict[int, int] = {}  # first backward pass, by number of the call
        self._again: set[int] = set()
        self._pass: int | None = None
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Follow the trainable parameters that are new, as those that were frozen before.

        Args:
            model: the model.
        """
        if all(id(p) in self.names or not p.requires_grad for p in model.parameters()):
            return
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for name, param in named:
            _refuse_kind(name, param)
        for name, param in named:
            if id(param) not in self.names:
                self.names[id(param)] = name
                self.params.append(param)
                self._sources[id(param)] = source_of(param)
                self.handles.append(param.register_hook(self._before(param)))
                self.handles.append(param.register_post_accumulate_grad_hook(self._after))

    def source_of(self, tensor: object) -> Source | None:
        """Return the source of a followed parameter, or of a tensor computed from some."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self.names:
            return self._sources[id(tensor)]
        recorder, source, version = getattr(tensor, _DERIVED, (None, None, 0))
        if recorder is not self or source is None:
            return None
        if tensor._version != version:
            names = " and ".join(repr(self.names[id(p)]) for p in source.params)
            raise PerExampleError(
                f"a tensor computed from {names} was changed in place where svag does not follow "
                "it, as through another view of it or without gradients; write it out of place, "
                "or use svag.micro_batch_variance"
            )
        return cast(Source, source)

    def followed(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return those that are followed parameters or were computed from parameters alone."""
        return [t for t in tensors if self.source_of(t) is not None]

    def replaces(self, source: Source | None) -> bool:
        """Whether a closed form may replace autograd's gradient by its own sum.

        A tap's sum is complete before autograd has read the parameter for the gradient of the
        operation's input. So it cannot replace the gradient of a parameter that a hook of the
        user's may change then, as an optimizer in backward does.
        """
        if source is None or not source.is_parameter or self.verification is not None:
            return False
        return len(source.params[0]._post_accumulate_grad_hooks or ()) <= 1  # svag's own

    def label(self, tensor: Tensor) -> str:
        """Return the name of a parameter, or of the parameters a tensor was computed from."""
        source = self.source_of(tensor)
        params = source.params if source else ()
        return " and ".join(repr(self.names[id(p)]) for p in params) or "a constant"

    def owner_of(self, *tensors: Tensor | None) -> str:
        """Return `` 'name'`` of the module that owns one of the tensors; empty if none does."""
        names = [self.names.get(id(t)) for t in tensors]
        return next((f" {n.rpartition('.')[0] or n!r}" for n in names if n), "")

    def derive(self, tensor: Tensor, source: Source) -> None:
        """Record that ``tensor`` was computed from parameters, as ``source.computed`` was."""
        setattr(tensor, _DERIVED, (self, source, tensor._version))

    def forget(self, tensor: Tensor) -> None:
        """Record that ``tensor`` is no longer computed from parameters alone."""
        tensor.__dict__.pop(_DERIVED, None)

    def refuse_reentrant(self, site: Site) -> None:
        """Raise if an operation ran forward and backward inside another backward pass."""
        if site.task != -1 and not self.silent:
            raise PerExampleError(f"{self.label_of(site)} is used in {REENTRANT}")

    def label_of(self, site: Site) -> str:
        """Return the names of a site's parameters."""
        return ", ".join(repr(self.names[id(p)]) for use in site.uses for p in use.source.params)

    def take(self, site: Site, use: Use, contributions: Contributions) -> Iterator[Tensor]:
        """Record the contributions of one use; yield their sums if they replace gradients.

        If it is the parameter's only use, mean and variance are computed at once, from the same
        products; else the contributions are kept until :meth:`_after` adds them up.

        Args:
            site: the operation.
            use: the use of one parameter, or of a tensor computed from parameters.
            contributions: the examples' contributions through this use.
        """
        if self.silent:
            if use.replaces:
                yield contributions.total(self.max_bytes)
            return
        self.begin_pass()
        source, counts = use.source, site.counts
        first = self._first.setdefault(site.call, self.backwards)
        every = source.pulled_back(contributions)
        for param, mine in zip(source.params, every, strict=True):
            if first != self.backwards:
                self._again.add(id(param))
            if self.verification is not None:
                self.verification.take(param, mine)
            self._refuse_late(param)
            alone = source.is_parameter and counts[id(param)] == 1 and id(param) not in self.kept
            if alone:
                estimate = contributions.estimate(self.max_bytes)
                self._done[id(param)] = estimate.variance
                self._totals[id(param)] = estimate.total
                self._keep_squares(param, estimate, contributions.examples)
            else:
                self._pending.setdefault(id(param), []).append(mine)
            if use.replaces:
                yield estimate.total if alone else mine.total(self.max_bytes)

    def note_terms(self, site: Site, use: Use, delta: Tensor, data: Sequence[Tensor]) -> None:
        """Note what the parameters' gradients are sums of products of, to bound rounding errors.

        Args:
            site: the operation.
            use: the use of one parameter, or of a tensor computed from parameters.
            delta: gradient of the operation's output.
            data: tensors that the contributions are computed from, the input first.
        """
        params = use.source.params
        once = self.verification is None and use.replaces
        if self.silent or (once and all(site.counts[id(p)] == 1 for p in params)):
            return
        self.begin_pass()
        term = delta, next((t for t in data[:1] if t.is_floating_point()), None)
        for param in params:
            if self.verification is not None:
                self.verification.scale(param, term)
            else:
                self._terms.setdefault(id(param), []).append(term)

    def begin_pass(self) -> None:
        """At the first gradient of a backward pass, discard what is left of an earlier one."""
        task = torch._C._current_graph_task_id()
        if task != self._pass:
            self._pass = task
            self.backwards += 1
            self.uses = Counter()
            if self.verification is not None:
                self.verification.begin()
            for left in (self._pending, self._done, self._totals, self._incoming, self._earlier):
                left.clear()
            self._terms.clear()
            self._again.clear()

    def _refuse_late(self, param: Tensor) -> None:
        if id(param) in self._done:
            raise PerExampleError(
                f"{self.names[id(param)]}: a second use came after the variance was computed, from "
                "a graph kept from an earlier backward pass; run the forward pass again instead"
            )

    def _before(self, param: Tensor) -> Callable[[Tensor], None]:
        key = id(param)

        def before(grad: Tensor) -> None:
            if self.silent:
                return
            self.begin_pass()
            self._incoming[key] = grad
            if param.grad is not None and is_current(param):
                self._earlier[key] = param.grad_var  # type: ignore[attr-defined]

        return before

    def _after(self, param: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            variance = self._finish(param)
            earlier = self._earlier.pop(id(param), None)
            if param.grad is None:
                return
            if self.fixed:
                variance = earlier
            else:
                self._check(param, variance)
                if variance is not None and earlier is not None:
                    self._refuse_again(param)
                    variance = variance + earlier
            if variance is None:
                return
            if variance.stride() != param.grad.stride():
                variance = torch.empty_strided(
                    param.grad.shape,
                    param.grad.stride(),
                    dtype=variance.dtype,
                    device=variance.device,
                ).copy_(variance)
            attach(param, variance)

    def _refuse_again(self, param: Tensor) -> None:
        """Raise if gradients of the same examples were added: their variances do not add up."""
        if id(param) in self._again:
            raise PerExampleError(
                f"{self.names[id(param)]}: several backward passes from one forward pass "
                "(retain_graph=True) were added up, and gradients of the same examples are not "
                "independent; add the losses up and run backward once, or call zero_grad between"
            )

    def _finish(self, param: Tensor) -> Tensor | None:
        key = id(param)
        pending = self._pending.pop(key, None)
        if not pending:
            return self._done.pop(key, None)
        self._refuse_unequal(param, pending)
        joint = Joint(pending) if len(pending) > 1 else pending[0]
        estimate = joint.estimate(self.max_bytes)
        self._totals[key], variance = estimate
        self._keep_squares(param, estimate, joint.examples)
        if key in self.kept:
            self.per_example[self.names[key]] = joint.chunk(0, joint.examples)
        return variance

    def _keep_squares(self, param: Tensor, estimate: Estimate, examples: int) -> None:
        """Compute sum_k c_k^2 from the variance, by the formula solved for it."""
        if self._squares:
            squares = estimate.total.square().add_(estimate.variance, alpha=examples - 1)
            self.second_moments[self.names[id(param)]] = squares.div_(examples)

    def _refuse_unequal(self, param: Tensor, uses: Sequence[Contributions]) -> None:
        sizes = sorted({use.examples for use in uses})
        if len(sizes) > 1:
            raise PerExampleError(
                f"{self.names[id(param)]} was used on batches of {sizes} examples in one backward "
                "pass; give every forward pass the same examples, or run backward for each"
            )

    def _check(self, param: Tensor, variance: Tensor | None) -> None:
        """Compare the contributions with the gradient that arrived."""
        total = self._totals.pop(id(param), None)
        grad = self._incoming.pop(id(param), None)
        terms = self._terms.pop(id(param), ())
        if grad is None:
            return
        if self.verification is not None:
            self.verification.check(param, self.names[id(param)], grad, total)
        elif self._adds_up and total is not None and variance is not None:
            if grad.data_ptr() == total.data_ptr():
                return  # the tap's own sum, to which autograd has added nothing
            check_sum(self.names[id(param)], grad, total, variance, terms)


def _refuse_kind(name: str, param: nn.Parameter) -> None:
    """Raise if a parameter's gradient cannot have a variance."""
    if isinstance(param, UninitializedParameter):
        raise PerExampleError(
            f"{name} has no shape yet, since its module is lazy; call the model once before "
            "within_batch_variance is opened"
        )
    if param.is_complex():
        raise PerExampleError(f"{name} is complex; use svag.micro_batch_variance")
