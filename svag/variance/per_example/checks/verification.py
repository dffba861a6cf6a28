"""Verifies a pass against autograd: a backward pass of one example alone through the same graph.

autograd does not use svag's marks. At the point where the loss sums over the examples, the gradient
is set to 0 for all but one example, and autograd runs the backward pass from there through the same
graph; no second forward pass is needed. The gradient of a parameter is then that example's
contribution. In a verified pass no tap replaces a gradient, so that the graph is autograd's own.
"""

import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from svag.errors import PerExampleError, SvagError
from svag.variance.per_example.contributions.base import Contributions, Shared
from svag.variance.per_example.owners.placement import Placed, others_zero

Term: TypeAlias = tuple[Tensor, Tensor | None]
"""Gradient of an operation's output, and its input: what a gradient is a sum of products of."""

_RELATIVE = {torch.float64: 1e-8, torch.float32: 1e-3}
_ROUNDING = {torch.float64: 1e-14, torch.float32: 3e-6}


def example_of(turn: int, examples: int) -> int:
    """Return the example that is compared in a pass: another one in each.

    Args:
        turn: number of passes before.
        examples: B, the number of examples.
    """
    return random.Random(turn).randrange(examples) if examples else 0


def size_of(term: Term) -> float:
    """Return a bound on the sum of the products' sizes."""
    delta, x = term
    return float(delta.norm()) * (1.0 if x is None else max(1.0, float(x.norm())))


def check_sum(
    name: str, grad: Tensor, total: Tensor, variance: Tensor, terms: Sequence[Term] = ()
) -> None:
    """Compare the sum of the contributions with the gradient, in a pass that is not verified.

    Args:
        name: name of the parameter.
        grad: its gradient in this backward pass.
        total: sum of svag's contributions.
        variance: the variance of the sum, from which follows how large rounding errors may be.
        terms: what the gradient is a sum of, which may cancel in every example.

    Raises:
        PerExampleError: they differ by more than rounding.
    """
    wide = torch.promote_types(torch.float32, grad.dtype)
    a, b = grad.to(wide), total.to(wide)
    missing, size = float((a - b).norm()), float(a.norm())
    narrow = grad.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cpu")
    share = 0.2 if narrow or torch.is_autocast_enabled("cuda") else 0.01
    if missing <= share * size or not bool(grad.isfinite().all()):
        return
    bound = share * (size + float(variance.to(wide).sum().sqrt()))
    if not missing <= bound:
        dtype = max((grad.dtype, *(d.dtype for d, _ in terms)), key=lambda d: torch.finfo(d).eps)
        bound += _ROUNDING.get(dtype, 1e-2) * sum(map(size_of, terms))
    if not missing <= bound:
        raise PerExampleError(_incomplete(name, missing, size))


def _incomplete(name: str, missing: float, size: float) -> str:
    return (
        f"{name}: the examples' contributions do not add up to its gradient (a norm of "
        f"{missing:.3g} of {size:.3g} is missing), so it is used where no operation shows it: in a "
        "custom autograd.Function, compiled or scripted code, a reentrant checkpoint, or on inputs "
        "that did not come in by calling the model or a submodule; or a hook changes its gradient. "
        "Write it with torch operations, or use svag.micro_batch_variance, which needs none of this"
    )


REENTRANT = (
    "a reentrant checkpoint, whose backward pass runs inside another, so that one mini-batch would "
    "count as several; give checkpoint(..., use_reentrant=False), in a Trainer of transformers "
    "gradient_checkpointing_kwargs={'use_reentrant': False}"
)


class Grad(Protocol):
    """Runs autograd with the interception on, so that recomputed checkpoints are followed."""

    def grad(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Run ``torch.autograd.grad``."""


class Silenced(Protocol):
    """The part of the recorder that verification needs."""

    silent: bool
    used_outside: bool

    @property
    def params(self) -> Sequence[nn.Parameter]:
        """The followed parameters."""


class Verification:
    """The data of one verified forward and backward pass.

    Args:
        examples: B, the number of examples.
        turn: number of passes of this kind before, which chooses the example.

    Attributes:
        example: the example whose contributions are compared.
        outputs: outputs of the model, whose gradients are used if the loss is not seen.
    """

    def __init__(self, examples: int, turn: int) -> None:
        self.examples = examples
        self.example = example_of(turn, examples)
        self._cut: list[tuple[Tensor | GradientEdge, Placed]] = []
        self._alone: dict[int, Tensor] = {}
        self._asked: set[int] = set()  # parameters that were trainable when autograd ran for one
        self._mine: dict[int, Tensor] = {}
        self._scales: dict[int, float] = {}
        self._dtypes: dict[int, torch.dtype] = {}
        self._computed_in: set[torch.dtype] = set()
        self._ran = False
        self.outputs: list[tuple[Tensor, Placed]] = []

    def note_precision(self, tensors: Sequence[Tensor]) -> None:
        """Note what the model computes in, which may be narrower than its parameters are."""
        for tensor in tensors:
            if tensor.requires_grad and tensor.is_floating_point():
                self._computed_in.add(tensor.dtype)

    def cut_at(self, tensor: Tensor | GradientEdge, where: Placed) -> None:
        """Record a tensor at which the gradient of all other examples can be set to 0.

        Only one operation may use the tensor, so that its gradient is complete.
        """
        self._cut.append((tensor, where))

    def before_backward(
        self,
        roots: Sequence[Tensor],
        gradients: Sequence[Tensor | None] | None,
        autograd: Grad,
        recorder: Silenced,
        *,
        seen: bool,
    ) -> None:
        """Run a backward pass with one example's gradient alone, before the user's.

        Args:
            roots: tensors that the user's backward pass starts from.
            gradients: their gradients, as given to ``backward``.
            autograd: runs the backward pass.
            recorder: the recorder, which ignores this backward pass.
            seen: whether all operations of the loss are known.
        """
        cut: Sequence[tuple[Tensor | GradientEdge, Placed]] = self._cut if seen else self.outputs
        self._alone.clear()
        self._asked = {id(p) for p in recorder.params}
        self._ran = bool(cut) and (seen or not recorder.used_outside)
        if not self._ran:
            return
        recorder.silent = True
        try:
            tensors = [t for t, _ in cut]
            grads = autograd.grad(roots, tensors, gradients, retain_graph=True, allow_unused=True)
            found = [(t, g, w) for (t, w), g in zip(cut, grads, strict=True) if g is not None]
            if found:
                kept = [others_zero(where, g, self.example) for _, g, where in found]
                self._go_back(autograd, [t for t, _, _ in found], kept, recorder.params)
        except RuntimeError as error:  # of torch, which does not run reentrant checkpoints in grad
            if isinstance(error, SvagError) or "use_reentrant" not in str(error):
                raise
            raise PerExampleError(f"the model has {REENTRANT}") from error
        finally:
            recorder.silent = False

    def _go_back(
        self,
        autograd: Grad,
        tensors: list[Tensor | GradientEdge],
        grads: list[Tensor],
        params: Sequence[nn.Parameter],
    ) -> None:
        """Run autograd from some tensors and keep the gradients of the parameters."""
        trained = [p for p in params if p.requires_grad]
        self._asked = {id(p) for p in trained}
        if not trained:
            return
        found = autograd.grad(tensors, trained, grads, retain_graph=True, allow_unused=True)
        for param, grad in zip(trained, found, strict=True):
            if grad is not None:
                self._alone[id(param)] = grad

    def begin(self) -> None:
        """Clear the sums, at the start of a backward pass."""
        self._mine.clear()
        self._scales.clear()

    def scale(self, param: Tensor, term: Term) -> None:
        """Record the size of a term of a parameter's gradient, for a bound on rounding errors.

        Args:
            param: the parameter.
            term: gradient of an operation's output, and its input.
        """
        self._scales[id(param)] = self._scales.get(id(param), 0.0) + size_of(term)
        narrow = [self._dtypes.get(id(param), param.dtype), term[0].dtype]
        self._dtypes[id(param)] = min(narrow, key=lambda d: -torch.finfo(d).eps)

    def take(self, param: Tensor, contributions: Contributions) -> None:
        """Add svag's contribution of the example to a parameter's gradient."""
        if isinstance(contributions.innermost, Shared):
            return
        mine = contributions.chunk(self.example, self.example + 1)[0]
        before = self._mine.get(id(param))
        self._mine[id(param)] = mine if before is None else before + mine

    def check(self, param: Tensor, name: str, grad: Tensor, total: Tensor | None) -> None:
        """Compare all contributions with the gradient, and one example's with autograd's.

        Args:
            param: the parameter.
            name: its name, for messages.
            grad: its gradient in this backward pass.
            total: sum of svag's contributions; None if there are none.

        Raises:
            PerExampleError: they differ by more than rounding.
        """
        total = torch.zeros_like(grad) if total is None else total
        missing, bound = self._difference(param, grad, total)
        if not missing <= bound and bool(grad.isfinite().all()):
            raise PerExampleError(_incomplete(name, missing, float(grad.norm())))
        alone = self._alone.pop(id(param), None)
        mine = self._mine.pop(id(param), None)
        if not self._ran or id(param) not in self._asked:
            return
        alone = torch.zeros_like(grad) if alone is None else alone
        mine = torch.zeros_like(grad) if mine is None else mine
        missing, bound = self._difference(param, alone, mine)
        if not missing <= bound and bool(alone.isfinite().all()):
            raise PerExampleError(
                f"{name}: what svag attributes to example {self.example} differs from what "
                f"autograd gives for it alone (by a norm of {missing:.3g}, of "
                f"{float(alone.norm()):.3g}), so svag is wrong about where the examples are: "
                "name the arguments that hold them (examples=...) and their dimension (batch_dim), "
                "or use svag.micro_batch_variance, which needs none of this"
            )

    def _difference(self, param: Tensor, a: Tensor, b: Tensor) -> tuple[float, float]:
        """Return the norm of a difference, and a bound on it from rounding errors."""
        dtypes = {self._dtypes.get(id(param), param.dtype), *self._computed_in}
        dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        wide = torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))
        a, b = a.to(wide), b.to(wide)
        size = max(float(a.norm()), float(b.norm()))
        rounding = _ROUNDING.get(dtype, 1e-2) * self._scales.get(id(param), 0.0)
        return float((a - b).norm()), _RELATIVE.get(dtype, 5e-2) * size + rounding
