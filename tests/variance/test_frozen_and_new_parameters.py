"""Parameters that are frozen, trained, replaced or added while the context is open."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svag.variance import within_batch_variance
from tests.variance.alone import Case, bent, both, normal, one_by_one, warmed
from tests.variance.attribution import refused


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def assert_own(model: nn.Module, x: Tensor) -> None:
    """Demand the gradients and variances of all trained parameters after a pass."""
    for name, rows in one_by_one(Case(model, (x,))).items():
        p = model.get_parameter(name)
        torch.testing.assert_close(p.grad, rows.sum(0))
        torch.testing.assert_close(p.grad_var, len(rows) * rows.var(0))


def _train(m: Any) -> None:
    m[0].requires_grad_(True)


def _replace(m: Any) -> None:
    m[0].weight = nn.Parameter(2 * m[0].weight.detach())


def _replace_module(m: Any) -> None:
    m[2] = nn.Linear(4, 2).double()


def _append(m: Any) -> None:
    m.append(nn.Linear(2, 3).double())


@both
@pytest.mark.parametrize("change", [_train, _replace, _replace_module, _append])
def test_parameters_that_are_new_in_the_context(
    change: Callable[[Any], None], verified: bool
) -> None:
    torch.manual_seed(0)
    model, x = dense(), normal(4, 4)
    model = model if verified else warmed(model, x)
    if change is _train:
        model[0].requires_grad_(False)
    with within_batch_variance(model):
        change(model)
        bent(model(x)).backward()
    assert_own(model, x)


@both
@pytest.mark.parametrize("late", [False, True])
def test_parameters_that_are_frozen_in_the_context(late: bool, verified: bool) -> None:
    """Before the forward pass, or between forward and backward."""
    torch.manual_seed(0)
    model, x = dense(), normal(4, 4)
    known = one_by_one(Case(model, (x,)))
    model = model if verified else warmed(model, x)
    with within_batch_variance(model):
        if not late:
            model[0].requires_grad_(False)
        loss = bent(model(x))
        model[0].requires_grad_(False)
        loss.backward()
    for name, rows in known.items():
        p = model.get_parameter(name)
        if name.startswith("2"):
            torch.testing.assert_close(p.grad, rows.sum(0))
            torch.testing.assert_close(p.grad_var, len(rows) * rows.var(0))
        else:
            assert p.grad is None


def test_lazy_modules_are_refused_until_they_have_a_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2)).double()
    x = normal(4, 4)
    with refused("1.weight", "call the model once"), within_batch_variance(model):
        model(x)
    assert not model[0].weight._backward_hooks
    model(x)
    with within_batch_variance(model):
        bent(model(x)).backward()
    assert_own(model, x)
