"""What tests of the optimizers step with: parameters of all shapes, gradients, and a reference."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from svag.variance.grad_var import attach

from .cases import Case, give

# 0-dimensional, empty, no multiple of a vector, one element more than a chunk of 8192
SHAPES = ((), (0,), (1,), (3, 4), (2, 0, 3), (5, 6, 7), (3, 2731))
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [parameter(*shape, seed=n, dtype=dtype) for n, shape in enumerate(SHAPES)]


def copies(params: Iterable[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def held(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def drawn(params: Iterable[Tensor], seed: int) -> list[Tensor]:
    """A gradient in each tensor's dtype, the same whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [torch.complex64 if p.is_complex() else torch.float32 for p in params]
    return [
        torch.randn(p.shape, generator=generator, dtype=kind).to(p.dtype)
        for p, kind in zip(params, kinds, strict=True)
    ]


def give_gradients(params: Iterable[Any], seed: int, *, variances: bool = False) -> list[Tensor]:
    """Copies of what has been drawn, and variances made of it."""
    params = list(params)
    gradients = drawn(params, seed)
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient.clone()
        if variances:
            real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
            variance = 0.1 + real.square()
            attach(p, torch.view_as_complex(variance) if gradient.is_complex() else variance)
    return gradients


def step(optimizer: torch.optim.Optimizer, *gradients: Any, variance: Any = None) -> None:
    """Take a step along a gradient for each parameter, or one for all; None is no gradient."""
    params = held(optimizer)
    each = gradients * len(params) if len(gradients) == 1 else gradients
    for p, gradient in zip(params, each, strict=True):
        p.grad = None
        if gradient is not None:
            give(p, gradient, variance)
    optimizer.step()


def train(*optimizers: torch.optim.Optimizer, steps: int = 4, seed: int = 1) -> None:
    """Step all of them along the same gradients, with variances where they need them."""
    for n in range(steps):
        for optimizer in optimizers:
            anatomy = getattr(optimizer, "anatomy", None)
            within = anatomy is not None and anatomy.variance == "within-batch"
            give_gradients(held(optimizer), 100 * seed + n, variances=within)
            optimizer.step()


def assert_all_close(ours: Iterable[Tensor], theirs: Iterable[Tensor], **bounds: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), **(bounds or CLOSE))


def assert_all_equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def assert_same_state(optimizer: torch.optim.Optimizer, other: Any) -> None:
    """To the bit, as far as there is any; the other may be what was saved of one."""
    saved = other if isinstance(other, dict) else other.state_dict()
    ours, theirs = (
        {index: state for index, state in described["state"].items() if state}
        for described in (optimizer.state_dict(), saved)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def anew(tensor: Tensor) -> Tensor:
    """The same values in new contiguous memory."""
    values = tensor.detach().resolve_conj().resolve_neg()
    return values.clone(memory_format=torch.contiguous_format)


class FreshLoop:
    """The same method in a for-loop that never sees the same tensor twice.

    Before each step it moves its own parameters, gradients and state into new contiguous
    tensors of a new optimizer, so whatever an engine remembers of addresses is of no use to it.
    """

    def __init__(self, case: Case, params: Iterable[Tensor], **options: Any) -> None:
        self.case, self.options = case, {**options, "foreach": False}
        self.params = [anew(p) for p in params]
        self.states: list[dict[str, Tensor]] = [{} for _ in self.params]

    def step(self, gradients: Iterable[Tensor | None]) -> None:
        leaves = [nn.Parameter(p.clone()) for p in self.params]
        optimizer = self.case.build(leaves, **self.options)
        for leaf, gradient, state in zip(leaves, gradients, self.states, strict=True):
            leaf.grad = None if gradient is None else anew(gradient)
            if state:
                optimizer.state[leaf] = {name: anew(value) for name, value in state.items()}
        optimizer.step()
        self.params = [leaf.detach() for leaf in leaves]
        self.states = [dict(optimizer.state[leaf]) for leaf in leaves]
