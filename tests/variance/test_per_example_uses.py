"""Parameters used by operations rather than by layers, with as many steps as examples."""

from collections.abc import Callable

import pytest
import torch
from measured import assert_within
from torch import Tensor, nn
from torch.nn import functional

from svag.variance import within_batch_variance
from variance.oracle import one_by_one, relative_error, variance_of_sum


class Uses(nn.Module):
    """A function of an input and of parameters ``a`` and ``b``."""

    def __init__(
        self, use: Callable[..., Tensor], a: tuple[int, ...], b: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.use = use
        self.a = nn.Parameter(torch.randn(a))
        self.b = None if b is None else nn.Parameter(torch.randn(b))

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.a) if self.b is None else self.use(x, self.a, self.b)


def added_in_place(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (2 * x).add_(a).mul_(b)


def time_first(x: Tensor, a: Tensor) -> Tensor:
    return (x.transpose(0, 1) + a[: x.shape[1], None]).tanh().transpose(0, 1)


def class_token(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return functional.linear(torch.cat((a.repeat(len(x), 1, 1), x), 1), b)[:, 0]


def time_mean(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return functional.linear(functional.linear(x.transpose(0, 1), a).mean(0), b)


def last_step(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return functional.linear(functional.linear(x.movedim(1, 0), a)[-1], b)


def patches(x: Tensor, a: Tensor) -> Tensor:
    rows = x[:, :4].unflatten(1, (2, 2)).transpose(1, 2).flatten(0, 1)
    return functional.linear(rows, a).unflatten(0, (-1, 2))


def pooled(x: Tensor, a: Tensor) -> Tensor:
    return ((x @ a).softmax(1).unsqueeze(-1) * x).sum(1)


USES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...] | None]] = {
    "positions": (lambda x, a: (x + a[: x.shape[1]]).tanh(), (9, 5), None),
    "positions, time first": (time_first, (5, 5), None),
    "in place": (added_in_place, (5,), (1,)),
    "x @ W": (lambda x, a: x @ a, (5, 3), None),
    "x @ w": (lambda x, a: x @ a, (5,), None),
    "W @ x": (lambda x, a: a @ x, (3, 5), None),
    "experts": (lambda x, a: x.unsqueeze(1) @ a, (3, 5, 2), None),
    "einsum": (lambda x, a: torch.einsum("ij,btj->tib", a, x).permute(2, 0, 1), (5, 5), None),
    "bilinear": (lambda x, a: torch.einsum("bti,ijk,btj->bk", x, a, x), (5, 5, 3), None),
    "tensordot": (lambda x, a: torch.tensordot(x, a, 1), (5, 3), None),
    "baddbmm": (lambda x, a: torch.baddbmm(a, x, x.mT), (1, 5, 5), None),
    "cdist": (lambda x, a: torch.cdist(x, a), (3, 5), None),
    "pooling": (pooled, (5,), None),
    "temperature": (lambda x, a: x * a.exp() / (1 + a**2), (), None),
    "class token": (class_token, (1, 1, 5), (3, 5)),
    "mean over time": (time_mean, (5, 5), (5, 5)),
    "last step": (last_step, (5, 5), (5, 5)),
    "patches": (patches, (4, 5), None),
    "normalised weight": (
        lambda x, a, b: functional.linear(x, functional.normalize(a)) * b,
        (3, 5),
        (),
    ),
    "padded weight": (lambda x, a: functional.linear(x, functional.pad(a, (0, 1))), (3, 4), None),
}


def loss(output: Tensor, weights: Tensor) -> Tensor:
    rows = output.reshape(len(weights), -1)
    return (weights.unsqueeze(1) * (rows + 0.3 * rows.square())).sum()


@pytest.mark.parametrize("name", USES)
def test_use_equals_brute_force(name: str) -> None:
    torch.manual_seed(2)
    model = Uses(*USES[name]).double()
    x = torch.randn(5, 5, 5, dtype=torch.float64)
    weights = torch.rand(5, dtype=torch.float64) + 0.5
    contributions = one_by_one(model, x, weights, loss)
    with within_batch_variance(model):
        loss(model(x), weights).backward()
    for parameter, rows in contributions.items():
        p = model.get_parameter(parameter)
        assert_within("uses, gradient", relative_error(p.grad, rows.sum(0)), 1e-10, name)
        assert_within(
            "uses, variance", relative_error(p.grad_var, variance_of_sum(rows)), 1e-10, name
        )


def test_indexing_a_table_is_an_embedding() -> None:
    torch.manual_seed(0)
    model = Uses(lambda x, a: a[x], (7, 4)).double()
    x, weights = torch.randint(7, (5, 3)), torch.ones(5, dtype=torch.float64)
    rows = one_by_one(model, x, weights, loss)["a"]
    with within_batch_variance(model):
        loss(model(x), weights).backward()
    assert relative_error(model.a.grad_var, variance_of_sum(rows)) < 1e-10
