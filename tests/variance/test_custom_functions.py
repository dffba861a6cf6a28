"""Custom autograd functions that take parameters, and copies of models."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svag import within_batch_variance
from tests.variance.attribution import (
    Calls,
    assert_refused,
    assert_right,
    every_size,
    layer,
    sequences,
    table,
    terms,
)


class Rounded(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        return delta


class Scaled(torch.autograd.Function):
    """Multiplies the last dimension by a vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return delta * scale, (delta * x).flatten(0, -2).sum(0)


class Both(torch.autograd.Function):
    """Has two results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        return x * scale, x + scale

    @staticmethod
    def backward(ctx: Any, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return one * scale + two, (one * x + two).flatten(0, -2).sum(0)


class Centred(torch.autograd.Function):
    """Is the identity, with a gradient that mixes rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        return delta - delta.mean(0)


def quantised(s: Any, x: Tensor) -> Tensor:
    h = Rounded.apply(s.start(x) * 3)
    return h @ (Rounded.apply(s.weight * 4) / 4)


def scaled(s: Any, x: Tensor) -> Tensor:
    return s.start(Scaled.apply(Scaled.apply(s.start(x), s.scale), s.scale.sin()))


@every_size
def test_straight_through_estimators(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    width = size[2]
    model = Calls(quantised, start=layer(width), weight=table(width, width))
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences(size)))


@every_size
def test_a_custom_function_of_examples_and_parameters(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = Calls(scaled, start=layer(size[2]), scale=table(size[2]))
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences(size)))


def test_a_custom_function_with_two_results_is_refused_by_name() -> None:
    model = Calls(lambda s, x: sum(Both.apply(x, s.scale)), scale=table(4))
    x = sequences((3, 2, 4))
    for check in (None, False):
        assert_refused(model, lambda m: m(x).sin().sum(), "Both", "'scale'", check=check)


@pytest.mark.parametrize("inside", [False, True])
def test_a_custom_gradient_that_mixes_examples_is_refused(inside: bool) -> None:
    torch.manual_seed(0)
    x = sequences((4, 3, 5))
    model = Calls(lambda s, x: Centred.apply(s.end(x)) if inside else s.end(x), end=layer(5))
    loss = lambda m: (m(x) if inside else Centred.apply(m(x))).sin().sum()  # noqa: E731
    assert_refused(model, loss, "example")


def test_functions_run_as_ever_outside() -> None:
    weight = torch.randn(3, requires_grad=True)
    with within_batch_variance(nn.Linear(3, 3)):
        Scaled.apply(torch.ones(2, 3), weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 2.0))
    weight.grad = None
    Scaled.apply(torch.ones(2, 3), weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 2.0))


def test_a_copy_of_the_model_made_inside_teaches_it() -> None:
    torch.manual_seed(0)
    model, x, y = layer(5).double(), sequences((4, 3, 5)), sequences((4, 3, 5))

    def taught(m: nn.Module) -> Tensor:
        teacher = copy.deepcopy(m).requires_grad_(False)
        return (m(x) - teacher(y)).square().sum((1, 2))

    for _ in range(2):
        model.zero_grad()
        assert_right(model, taught)
    with within_batch_variance(model):
        model(x).sum().backward()
        other = pickle.loads(pickle.dumps(model))
    assert other(x).shape == x.shape
