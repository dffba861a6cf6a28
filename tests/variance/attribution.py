"""Whether each example's contribution is its own: svag against one backward pass an example."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svag import within_batch_variance
from svag.errors import SvagError

Loss = Callable[[nn.Module], Tensor]

SIZES = [(3, 3, 3), (4, 8, 4), (3, 6, 2), (4, 2, 8), (3, 4, 5)]  # examples, steps, width
every_size = pytest.mark.parametrize("size", SIZES)


def sequences(size: tuple[int, int, int]) -> Tensor:
    """Inputs of so many examples, steps and numbers."""
    return torch.randn(size, dtype=torch.float64)


def layer(width: int, out: int | None = None) -> nn.Linear:
    """A dense layer that keeps the width."""
    return nn.Linear(width, out or width)


def terms(*inputs: Any, **named: Any) -> Loss:
    """One term an example, of an output with the examples in front."""
    return lambda model: model(*inputs, **named).sin().flatten(1).sum(1)


def table(*shape: int) -> nn.Parameter:
    """A parameter drawn from the normal distribution."""
    return nn.Parameter(torch.randn(shape))


class Calls(nn.Module):
    """A model from a function of itself and its inputs, and parts by name."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self, *args, **kwargs)


def calling(call: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> Calls:
    """Return a model with those of the parts that the function names."""
    named = call.__code__.co_names
    return Calls(call, **{name: part for name, part in parts.items() if name in named})


def assert_right(
    model: nn.Module, by_example: Loss, loss: Loss | None = None, **options: Any
) -> None:
    """Demand plain training's gradients and the variance of one backward pass an example.

    ``by_example`` gives one entry an example, whose sum is the loss; ``loss`` is how users write
    it.
    """
    plain, rows = copy.deepcopy(model), contributions(model, by_example)
    whole = loss or (lambda m: by_example(m).sum())
    whole(plain).backward()
    with within_batch_variance(model, **options):
        whole(model).backward()
    _compare(model, plain, rows)


def assert_right_or_refused(
    model: nn.Module, by_example: Loss, loss: Loss | None = None, **options: Any
) -> None:
    """Demand what :func:`assert_right` does, or an error of svag's."""
    with suppress(SvagError):
        assert_right(model, by_example, loss, **options)


@contextmanager
def refused(*names: str) -> Iterator[None]:
    """Demand an error of svag's in whose text all names stand."""
    with pytest.raises(SvagError) as caught:
        yield
    message = str(caught.value)
    # Its traceback leads to this frame; until that cycle is collected, torch's contexts of a
    # checkpoint in which it was raised stay open, and other tests run inside them.
    del caught
    for name in names:
        assert name in message


def assert_refused(model: nn.Module, loss: Loss, *names: str, **options: Any) -> None:
    """Demand an error of svag's before anything wrong can be used."""
    with refused(*names), within_batch_variance(model, **options):
        loss(model).backward()


def contributions(model: nn.Module, by_example: Loss) -> list[Tensor]:
    """Return the examples' gradients, ``(B, *shape)`` for each parameter."""
    model = copy.deepcopy(model)
    params = list(model.parameters())
    rows = [
        torch.autograd.grad(t, params, retain_graph=True, allow_unused=True)
        for t in by_example(model)
    ]
    return [
        torch.stack([torch.zeros_like(p) if g is None else g for g in grads])
        for p, grads in zip(params, zip(*rows, strict=True), strict=True)
    ]


def _compare(model: nn.Module, plain: nn.Module, rows: list[Tensor]) -> None:
    pairs = zip(model.named_parameters(), plain.parameters(), rows, strict=True)
    for (name, p), q, c in pairs:
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is None:
            continue
        assert torch.allclose(p.grad, q.grad, rtol=1e-10, atol=1e-12), f"gradient of {name}"
        assert torch.allclose(c.sum(0), q.grad, rtol=1e-9, atol=1e-10), "terms of another loss"
        known = len(c) * c.var(0)  # (B sum c^2 - (sum c)^2) / (B - 1)
        size = float(c.square().max()) * len(c)
        found: Tensor = p.grad_var
        error = float((found - known).abs().max())
        assert error <= 1e-10 * size + 1e-24, f"variance of {name} by {error:.1e} of {size:.1e}"
