"""Contributions by one vector-Jacobian product for each example, for operations without a rule.

The gradient of the output is set to 0 for all rows but one example's. What the operation's own
backward pass then gives a parameter is that example's contribution.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions
from svag.variance.per_example.owners.following import follow, state_of
from svag.variance.per_example.owners.marks import mark_of
from svag.variance.per_example.owners.placement import IS_PLACED, Placed, others_zero
from svag.variance.per_example.recording.derived import run_again
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.taps import Factory
from svag.variance.per_example.structures import tensors_in


class Masked(Contributions):
    """c_k by the operation's backward pass with the gradient of example k's rows alone.

    Args:
        output: output of the operation, in a retained graph that starts at ``leaf``.
        leaf: a copy of the parameter.
        delta: gradient of the output.
        where: mark of the output.
    """

    def __init__(self, output: Tensor, leaf: Tensor, delta: Tensor, where: Placed) -> None:
        self.output, self.leaf, self.delta, self.where = output, leaf, delta, where
        self.like, self.shape, self.examples = leaf, leaf.shape, where.examples
        self.example_bytes = (2 * leaf.numel() + delta.numel()) * leaf.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k by one backward pass each."""
        alone = (others_zero(self.where, self.delta, k) for k in range(low, high))
        return torch.stack([self._pulled(delta) for delta in alone])

    def total(self, max_bytes: int) -> Tensor:
        """Return sum_k c_k by one backward pass."""
        return self._pulled(self.delta).clone()

    def _pulled(self, delta: Tensor) -> Tensor:
        delta = delta.to(self.output.dtype)
        (found,) = torch.autograd.grad(
            self.output, self.leaf, delta, retain_graph=True, materialize_grads=True
        )
        return found.detach().contiguous()  # torch 2.9 makes zeros that require gradients


def by_masks(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    """Put a tap with :class:`Masked` behind an operation that has run.

    Args:
        mode: the open context's interception.
        func: the operation, which takes parameters and tensors of the mini-batch.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: its output.

    Returns:
        The output.

    Raises:
        PerExampleError: it is not clear which of the output's rows belong to which example.
    """
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = {id(t): t for t in mode.recorder.followed(tensors)}
    if mark_of(out) is None:
        follow(func, args, kwargs, tensors, [out])
    where = state_of(out)
    if not isinstance(where, IS_PLACED):
        raise PerExampleError(
            f"{name_of(func)} takes {', '.join(map(mode.recorder.label, followed.values()))}, and "
            f"which rows of its result belong to which example is not clear ({where}); write it "
            "with operations that svag follows, or use svag.micro_batch_variance"
        )
    again, leaves = _again(func, args, kwargs, followed, out)

    def factory(leaf: Tensor) -> Factory:
        def masked(delta: Tensor) -> Contributions:
            return Masked(again, leaf, delta, where)

        return masked

    uses = [(t, factory(leaves[key])) for key, t in followed.items()]
    return mode.tap(out, [], uses, where, observe=True, copy=True)


def _again(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    followed: dict[int, Tensor],
    out: Tensor,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the operation on copies of the parameters; return its output and the copies."""
    leaves = {key: t.detach().requires_grad_() for key, t in followed.items()}
    given = {id(t): t.detach() for t in tensors_in((*args, *kwargs.values()))} | leaves
    with torch._C.DisableTorchFunction(), torch.enable_grad():
        again = run_again(func, args, kwargs, given)
    if not isinstance(again, Tensor) or again.shape != out.shape or not again.requires_grad:
        raise PerExampleError(f"{name_of(func)} gives another result when it runs again")
    if not torch.allclose(again.detach(), out.detach(), rtol=1e-3, atol=1e-5, equal_nan=True):
        raise PerExampleError(f"{name_of(func)} gives another result when it runs again")
    return again, leaves
