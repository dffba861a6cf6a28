"""Hooks, kept gradients of intermediate tensors and changes in place are those of plain training.

autograd drops the hooks of a view that is changed in place (PyTorch 8874), so a tensor with hooks
must be a view under svag exactly where it is one without.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svag.variance import within_batch_variance
from tests.variance.alone import Case, bent, both, normal, one_by_one, warmed
from tests.variance.attribution import Calls, refused


def assert_as_plain(model: nn.Module, x: Tensor, step: Callable[[Any, Tensor], list[Any]]) -> None:
    """Demand the gradients of plain training, also those that ``step`` returns."""
    plain = copy.deepcopy(model)
    known = step(plain, x)
    with within_batch_variance(model):
        found = step(model, x)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-12)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda h: h.relu_(),
    "inplace=True": lambda h: functional.relu(h, inplace=True),
    "mul_": lambda h: h.mul_(h.detach().sign()),
    "a slice": lambda h: h[..., 0].zero_(),
    "an item": lambda h: h.__setitem__((..., 0), 0.0),
}
LAYERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dense, examples alone": lambda m, x: m.a(x[:, 0]),
    "dense, sequences": lambda m, x: m.a(x),
    "einsum": lambda m, x: torch.einsum("btd,ed->bte", x, m.a.weight),
    "convolution": lambda m, x: m.c(x.mT).mT,
    "norm": lambda m, x: m.n(x),
}


def stack() -> Calls:
    parts = {"a": nn.Linear(4, 4), "c": nn.Conv1d(4, 4, 1), "n": nn.LayerNorm(4)}
    return Calls(lambda m, x: m.head(m.first(m, x)), **parts, head=nn.Linear(4, 2))


@both
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layer", LAYERS)
def test_hook_of_a_layer_that_is_changed_in_place_afterwards(
    layer: str, change: str, verified: bool
) -> None:
    torch.manual_seed(0)
    model, x = stack(), normal(4, 3, 4)
    model.first = LAYERS[layer]
    model = model if verified else warmed(model, x)

    def first(m: Any, x: Tensor) -> Tensor:
        h = LAYERS[layer](m, x)
        h.register_hook(lambda g: 2 * g)
        CHANGES[change](h)
        return h

    model.first = first
    known = one_by_one(Case(model, (x,)))
    assert_as_plain(model, x, lambda m, x: [bent(m(x)).backward()])
    for name, rows in known.items():
        p = model.get_parameter(name)
        if p.grad is not None:
            torch.testing.assert_close(p.grad_var, len(rows) * rows.var(0))


@both
def test_hook_of_a_layer_in_sight_of_a_module_hook(verified: bool) -> None:
    """PyTorch 61446, 61519: backward hooks of modules around a layer."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double(), normal(4, 3, 4)
    model[1].register_full_backward_hook(lambda *_: None)
    model[2].register_full_backward_hook(lambda _, given, __: (given[0] / 2,))
    model[1].register_full_backward_pre_hook(lambda _, given: (given[0] * 3,))
    model = model if verified else warmed(model, x)
    known = one_by_one(Case(model, (x,)))
    assert_as_plain(model, x, lambda m, x: [bent(m(x)).backward()])
    for name, rows in known.items():
        torch.testing.assert_close(model.get_parameter(name).grad_var, len(rows) * rows.var(0))


def test_hook_of_an_output_that_is_changed_in_place_is_refused() -> None:
    """In a verified pass the user gets a view of the output."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    with refused("mul_", "register_hook"), within_batch_variance(model):
        out = model(normal(3, 4))
        out.register_hook(lambda g: 2 * g)
        out[:, 0].mul_(3)


@both
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("first", [True, False])
def test_output_of_a_recurrent_layer_changed_in_place(
    kind: type[nn.RNNBase], first: bool, verified: bool
) -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        out, last = m.r(x if first else x.transpose(0, 1))
        out.mul_(3).add_(0.1)
        (last[0] if kind is nn.LSTM else last).mul_(2)
        return m.head(out if first else out.transpose(0, 1))

    torch.manual_seed(0)
    model, x = Calls(call, r=kind(4, 3, batch_first=first), head=nn.Linear(3, 2)), normal(4, 3, 4)
    model = model if verified else warmed(model, x)
    known = one_by_one(Case(model, (x,)))
    assert_as_plain(model, x, lambda m, x: [bent(m(x)).backward()])
    for name, rows in known.items():
        torch.testing.assert_close(model.get_parameter(name).grad_var, len(rows) * rows.var(0))


def test_hook_of_a_recurrent_layer_that_is_changed_in_place_is_refused() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        out = m.r(x)[0]
        out.register_hook(lambda g: 2 * g)
        return out.mul_(3)

    model = Calls(call, r=nn.LSTM(4, 3, batch_first=True))
    with refused("mul_", "register_hook"), within_batch_variance(model):
        bent(model(normal(3, 2, 4))).backward()


@both
def test_kept_gradients_of_intermediate_tensors(verified: bool) -> None:
    """``retain_grad``, of the output and of what is changed in place, too."""

    def step(m: Any, x: Tensor) -> list[Any]:
        h, out = m[0](x), m(x)
        for tensor in (h, out):
            tensor.retain_grad()
        again = m[2](h.mul_(2))
        again.retain_grad()
        bent([out.mul_(2), again]).backward()
        return [h.grad, out.grad, again.grad]

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double(), normal(4, 3, 4)
    assert_as_plain(model if verified else warmed(model, x), x, step)
