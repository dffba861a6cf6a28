"""Parameters written into tables, and tensors computed from parameters that change in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import svag
from tests.variance.attribution import (
    Calls,
    Loss,
    assert_refused,
    assert_right,
    every_size,
    layer,
    sequences,
    table,
    terms,
)

Size = tuple[int, int, int]
Call = Callable[[Any, Tensor], Tensor]


def assert_right_now_and_later(model: nn.Module, loss: Loss) -> None:
    """Demand it of the first pass, which is verified, and of a later one."""
    assert_right(model, loss)
    model.zero_grad()
    assert_right(model, loss)


def lower_triangle(s: Any, x: Tensor) -> Tensor:
    width = x.shape[-1]
    weight = torch.zeros(width, width, dtype=x.dtype)
    rows, columns = torch.tril_indices(width, width)
    weight[rows, columns] = s.entries[: len(rows)]
    return x @ weight


def rotation(s: Any, x: Tensor) -> Tensor:
    turn = torch.zeros(2, 2, dtype=x.dtype)
    turn[0, 0] = turn[1, 1] = s.entries[0].cos()
    turn[0, 1], turn[1, 0] = -s.entries[0].sin(), s.entries[0].sin()
    return x[..., :2] @ turn


def diagonal(s: Any, x: Tensor) -> Tensor:
    weight = torch.zeros(x.shape[-1], x.shape[-1], dtype=x.dtype)
    weight.diagonal().copy_(s.row)
    return x @ weight


def zeroed_row(s: Any, x: Tensor) -> Tensor:
    weight = s.square * 1
    weight[0] = 0
    weight[1].mul_(3)
    return x @ weight


def rectified(s: Any, x: Tensor) -> Tensor:
    return x @ functional.relu(s.square * 2, inplace=True)


def used_before_and_after(s: Any, x: Tensor) -> Tensor:
    weight = s.square.sin() * 1
    before = x @ weight.clone()
    weight.add_(1)
    return before + x @ weight


TABLES: dict[str, Call] = {
    f.__name__: f
    for f in (lower_triangle, rotation, diagonal, zeroed_row, rectified, used_before_and_after)
}


def parts(width: int) -> dict[str, nn.Parameter]:
    return {"entries": table(40), "row": table(width), "square": table(width, width)}


@every_size
@pytest.mark.parametrize("name", TABLES)
def test_a_weight_filled_or_changed_in_place(name: str, size: Size) -> None:
    torch.manual_seed(0)
    used = {"lower_triangle": "entries", "rotation": "entries", "diagonal": "row"}
    own = used.get(name, "square")
    model = Calls(TABLES[name], **{own: parts(size[2])[own]})
    assert_right_now_and_later(model, terms(sequences(size)))


def masked_tokens(s: Any, x: Tensor) -> Tensor:
    h = s.token.expand(*x.shape).clone()
    mask = x[..., 0] > 0
    h[mask] = x[mask]
    return s.end(h)


def same_steps(s: Any, x: Tensor) -> Tensor:
    h = s.token.repeat(len(x), x.shape[1], 1)
    h[:, 1:] = x[:, 1:]
    return s.end(h)


def added_to(s: Any, x: Tensor) -> Tensor:
    h = s.token.expand(*x.shape).clone()
    h += x
    h.mul_(x)
    return s.end(h)


def scattered_into(s: Any, x: Tensor) -> Tensor:
    h = s.token.expand(*x.shape).clone()
    return s.end(h.scatter_(1, torch.zeros_like(x[:, :1]).long(), x[:, :1].sin()))


def put_by_index(s: Any, x: Tensor) -> Tensor:
    mask = x[..., 0] > 0
    h = x.index_put((mask,), s.token.expand(int(mask.sum()), -1))
    return s.end(h)


FILLED: dict[str, Call] = {
    f.__name__: f for f in (masked_tokens, same_steps, added_to, scattered_into, put_by_index)
}


@every_size
@pytest.mark.parametrize("name", FILLED)
def test_rows_of_examples_written_over_copies_of_a_parameter(name: str, size: Size) -> None:
    torch.manual_seed(1)
    model = Calls(FILLED[name], token=table(size[2]), end=layer(size[2]))
    assert_right_now_and_later(model, terms(sequences(size)))


CHANGED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a step": lambda h, p: h[:, 0].add_(p),
    "a step, twice": lambda h, p: h[:, 0].sub_(p).mul_(p),
    "every step": lambda h, p: [h[:, t].add_(p, alpha=t + 1) for t in range(h.shape[1])],
    "a range": lambda h, p: h.narrow(1, 0, 2).div_(p + 3),
    "a transpose": lambda h, p: h.transpose(1, 2)[..., 0].mul_(p),
    "all": lambda h, p: h.mul_(p),
    "power": lambda h, p: h.abs_().add_(1).pow_(p),
    "copied": lambda h, p: h.copy_(p),
    "copied to a step": lambda h, p: h[:, 0].copy_(p, non_blocking=True),
    "a number": lambda h, p: h[:, 0].fill_(p[0]),
    "chosen entries": lambda h, p: h.masked_fill_(h.detach() > 0, p[0]),
    "chosen entries of a step": lambda h, p: h[:, 0].masked_fill_(h[:, 0].detach() > 0, p[1]),
    "by index": lambda h, p: h.index_add_(1, torch.tensor([0]), p.expand(len(h), 1, -1)),
    "by scattering": lambda h, p: h.scatter_add_(
        1, torch.zeros_like(h[:, :1]).long(), p.expand(len(h), 1, -1)
    ),
}


@every_size
@pytest.mark.parametrize("name", CHANGED)
def test_rows_of_examples_changed_in_place_by_a_parameter(name: str, size: Size) -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x).tanh().clone()
        CHANGED[name](h, s.row)
        return s.end(h)

    torch.manual_seed(2)
    model = Calls(call, start=layer(size[2]), row=table(size[2]), end=layer(size[2]))
    assert_right_now_and_later(model, terms(sequences(size)))


def test_a_change_that_is_overwritten_has_variance_zero() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h = x.clone()
        h[:, 0].add_(s.row)
        return s.end(h[:, -1])

    model = Calls(call, row=table(3), end=layer(3))
    with svag.within_batch_variance(model):
        model(torch.randn(4, 2, 3).double()).square().sum().backward()
    assert not model.row.grad.any()
    assert not model.row.grad_var.any()


def test_a_row_that_no_example_wrote_is_refused() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h = s.token.repeat(len(x), 1)
        h[0] = x[0, 0]
        return h.unsqueeze(1) + x

    model, x = Calls(call, token=table(4)), sequences((3, 2, 4))
    assert_refused(model, lambda m: m(x).sin().sum(), "'token'", "no example")


@pytest.mark.parametrize("grad", [True, False])
def test_a_weight_changed_out_of_sight_is_refused(grad: bool) -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        weight = s.square * 1
        row = weight[0]
        with torch.set_grad_enabled(grad):
            weight.mul_(2)
        return x * row if grad else x @ weight

    model, x = Calls(call, square=table(4, 4)), sequences((3, 2, 4))
    assert_refused(model, lambda m: m(x).sin().sum(), "'square'", "changed in place")


@every_size
def test_penalties_added_to_a_loss_in_place(size: Size) -> None:
    torch.manual_seed(2)
    x, width = sequences(size), size[2]
    model = nn.Sequential(layer(width), nn.Tanh(), layer(width)).double()

    def loss(m: nn.Module) -> Tensor:
        total = m(x).sin().sum()
        for p in m.parameters():
            total += 0.1 * p.square().sum()
        return total

    def shares(m: nn.Module) -> Tensor:
        penalty = sum(0.1 * p.square().sum() for p in m.parameters())
        return m(x).sin().flatten(1).sum(1) + penalty / size[0]

    for _ in range(2):
        model.zero_grad()
        assert_right(model, shares, loss)


def test_a_second_view_of_swapped_rows_is_refused() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x) * 1
        flat = h.flatten(0, 1)
        h[0] = h[1].clone()
        return s.end(flat)

    model, x = Calls(call, start=layer(4), end=layer(4)), sequences((3, 2, 4))
    for check in (None, False):
        assert_refused(model, lambda m: m(x).sin().sum(), "through another view", check=check)


def test_a_constant_filled_through_its_data_is_no_constant() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h, mean = s.start(x), torch.zeros(x.shape[1:], dtype=x.dtype)
        mean.data.copy_(h.detach().mean(0))
        return s.end(h - mean)

    model, x = Calls(call, start=layer(4), end=layer(4)), sequences((3, 2, 4))
    assert_refused(model, lambda m: m(x).sin().sum(), "mixed", check=False)
