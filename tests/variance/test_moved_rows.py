"""Outputs of the model whose rows lie elsewhere when the other examples are replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svag.variance import within_batch_variance
from tests.variance.alone import bent, normal
from tests.variance.attribution import Calls, refused


def _time_major_mask(m: Any, x: Tensor) -> Tensor:
    return m.a(m.a(x).transpose(0, 1)[(x[..., 0] > 0).T])


def _sorted(m: Any, x: Tensor) -> Tensor:
    return m.a(x)[x[..., 0].sum(1).argsort()]


def _by_expert(m: Any, x: Tensor) -> Tensor:
    h = x.flatten(0, 1)
    first = h[:, 0] > 0
    return torch.cat((m.a(h[first]), m.b(h[~first])))


CALLS: list[Callable[[Any, Tensor], Tensor]] = [_time_major_mask, _sorted, _by_expert]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("call", CALLS)
def test_rows_that_move_are_no_mixing(call: Callable[[Any, Tensor], Tensor], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Calls(call, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), normal(3, 5, 4)

    def terms(m: Any) -> Tensor:
        """The rows' terms, as if each were an example; their sum is the loss."""
        return m(x).sin().flatten(1).sum(1)

    rows = _owned(model, x)
    with within_batch_variance(model):
        terms(model).sum().backward()
    for p, c in zip(model.parameters(), rows, strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad_var, len(c) * c.var(0))


def _owned(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the examples' gradients, from how the loss depends on each example's input."""
    marked = x.clone().requires_grad_()
    params = list(model.parameters())
    found = [torch.zeros(len(x), *p.shape, dtype=p.dtype) for p in params]
    out = model(marked).sin().flatten(1).sum(1)
    for term in out:
        (by,) = torch.autograd.grad(term, marked, retain_graph=True)
        owner = int(by.flatten(1).norm(dim=1).argmax())
        grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
        for total, grad in zip(found, grads, strict=True):
            if grad is not None:
                total[owner] += grad
    return found


@pytest.mark.parametrize("seed", range(6))
def test_mixing_in_rows_that_move_is_found(seed: int) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).transpose(0, 1)[(x[..., 0] > 0).T]
        return h - float(h.detach().mean())

    torch.manual_seed(seed)
    model = Calls(call, a=nn.Linear(4, 4))
    with refused("mixes examples"), within_batch_variance(model):
        bent(model(normal(3, 5, 4))).backward()
