"""Activations whose shape or memory is changed in place, in a verified and in a later pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.variance.attribution import (
    Calls,
    assert_refused,
    assert_right,
    calling,
    every_size,
    layer,
    sequences,
    table,
    terms,
)

Size = tuple[int, int, int]


def transposed_back(s: Any, x: Tensor) -> Tensor:
    h = s.start(x).transpose_(0, 1)
    return s.end(h.sin()).swapaxes_(0, 1)


def swapped_steps(s: Any, x: Tensor) -> Tensor:
    return s.end(s.start(x).swapdims_(1, 2).cumsum(-1).transpose_(-1, -2))


def in_front(s: Any, x: Tensor) -> Tensor:
    """The examples' dimension becomes the second one."""
    return s.end(s.start(x).unsqueeze_(0).sin()).squeeze_(0)


def behind(s: Any, x: Tensor) -> Tensor:
    h = s.start(x).unsqueeze_(-1) * s.row
    return s.end(h.sum(-2, keepdim=True).squeeze_())


def first_step(s: Any, x: Tensor) -> Tensor:
    return s.end(s.start(x)[:, 0].t_().sin().t_())


def of_the_input(s: Any, x: Tensor) -> Tensor:
    """Nothing that is reshaped needs a gradient."""
    return s.end(x.clone().transpose_(0, 1)).transpose(0, 1)


def alone(s: Any, x: Tensor) -> Tensor:
    """Each example is one row, changed in place."""
    end = s.end
    return torch.cat([end(x[k].clone().unsqueeze_(0)) for k in range(len(x))])


def given_other_data(s: Any, x: Tensor) -> Tensor:
    h = x.clone()
    h.data = x.transpose(0, 1)
    return s.end(h).transpose(0, 1)


def given_data_of_examples(s: Any, x: Tensor) -> Tensor:
    """The buffer held no example's rows before."""
    buffer = torch.zeros_like(x)
    buffer.data = x.transpose(0, 1)
    return s.end(buffer).transpose(0, 1)


USES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    f.__name__: f for f in (transposed_back, swapped_steps, in_front, behind, first_step)
} | {f.__name__: f for f in (of_the_input, alone, given_other_data, given_data_of_examples)}


@every_size
@pytest.mark.parametrize("name", USES)
def test_a_dimension_moved_in_place(name: str, size: Size) -> None:
    torch.manual_seed(0)
    width = size[2]
    model = calling(USES[name], start=layer(width), end=layer(width), row=table(width))
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences(size)))


@every_size
def test_a_layer_on_the_examples_moved_in_place(size: Size) -> None:
    """The last dimension holds the examples: their gradients are no sum over them."""
    torch.manual_seed(0)
    model = Calls(moved_to_the_end, start=layer(size[2]), end=layer(size[0]))
    x = sequences(size)
    assert_refused(model, lambda m: m(x).sin().sum(), "mix")


def moved_to_the_end(s: Any, x: Tensor) -> Tensor:
    return s.end(s.start(x).transpose_(0, 1).transpose_(1, 2))


def test_a_hidden_layer_given_data_of_other_examples() -> None:
    """Its gradient belongs to the examples that it held before."""
    torch.manual_seed(0)
    model = Calls(exchanged, start=layer(3), end=layer(3))
    x = sequences((4, 4, 3))
    assert_refused(model, lambda m: m(x).sin().sum(), "memory of another tensor")


def exchanged(s: Any, x: Tensor) -> Tensor:
    h = s.start(x)
    h.data = x.transpose(0, 1)
    return s.end(h).transpose(0, 1)
