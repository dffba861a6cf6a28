"""Which argument holds the examples, what mixes them, and what must not be refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svag import within_batch_variance
from tests.variance.attribution import (
    SIZES,
    Calls,
    Loss,
    assert_refused,
    assert_right,
    assert_right_or_refused,
    contributions,
    every_size,
    layer,
    sequences,
    table,
    terms,
)


def again(model: nn.Module) -> nn.Module:
    """Return the model without its gradients."""
    model.zero_grad()
    return model


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Which argument holds the examples


def first_argument(width: int) -> nn.Module:
    return Calls(lambda m, i, x: m.b(m.a(x) * m.c(i)), **{n: layer(width) for n in "abc"})


@every_size
def test_another_argument_first(size: tuple[int, int, int]) -> None:
    """By default refused, or right; told where the examples are, right."""
    x, places = sequences(size), torch.randn(size[1:]).double()
    assert_right_or_refused(first_argument(size[2]), terms(places, x))
    for examples in (1, [1], lambda key, tensor: tensor.dim() == 3):
        assert_right(first_argument(size[2]), terms(places, x), examples=examples)
    named = Calls(lambda m, *, i, x: m.b(m.a(x) * m.c(i)), **{n: layer(size[2]) for n in "abc"})
    assert_right(named, terms(i=places, x=x), examples="x")


def test_inputs_that_disagree_are_refused() -> None:
    x, places = torch.randn(3, 4, 2).double(), torch.randn(4, 2).double()
    loss = lambda model: model(places, x).sum()  # noqa: E731
    assert_refused(first_argument(2), loss, "3", "4")


@every_size
def test_positions_given_as_an_input(size: tuple[int, int, int]) -> None:
    x, (_, steps, width) = sequences(size), size
    model = Calls(
        lambda m, x, i: m.a(x) * m.embed(i), a=layer(width), embed=nn.Embedding(steps, width)
    )
    assert_right_or_refused(model, terms(x, torch.arange(steps)))
    assert_right(again(model), terms(x, torch.arange(steps)), examples=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_hidden_state_with_as_many_layers_as_examples(layers: int) -> None:
    x, state = torch.randn(3, 4, 2).double(), torch.randn(layers, 3, 2).double()
    model = Calls(
        lambda m, x, s: m.gru(x, s)[0],
        gru=nn.GRU(2, 2, layers, batch_first=True),
    )
    assert_right_or_refused(model, terms(x, state))


@pytest.mark.parametrize("length", [3, 5])
def test_a_list_of_equally_long_examples(length: int) -> None:
    x = list(torch.randn(3, length, 2).double())
    model = Calls(lambda m, us: torch.stack([m.a(u).sum(0) for u in us]), a=layer(2))
    assert_right_or_refused(model, terms(x))


# What mixes examples is refused, with options at their defaults


def encoder(width: int) -> nn.TransformerEncoder:
    one = nn.TransformerEncoderLayer(width, 1, 8, dropout=0.0)
    return nn.TransformerEncoder(one, 2, enable_nested_tensor=False)


def nearest(h: Tensor) -> Tensor:
    """Who is next to whom; of two examples each is the other's neighbour."""
    return (torch.cdist(h, h) + 1e3 * torch.eye(len(h))).argmin(1)


MIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "graph": lambda m, h: (torch.ones(len(h), len(h)).tril().double() / 3) @ h,
    "graph by einsum": lambda m, h: torch.einsum("ij,jd->id", torch.ones(len(h), len(h)).to(h), h),
    "attention": lambda m, h: (h @ h.T).softmax(1) @ h,
    "neighbour": lambda m, h: h + h[nearest(h.detach())],
    "mean": lambda m, h: h - h.mean(0),
    "mean by sum": lambda m, h: h - h.sum(0, keepdim=True) / len(h),
    "detached mean": lambda m, h: h - h.detach().mean(0),
    "softmax": lambda m, h: h.softmax(0),
    "sort": lambda m, h: h.sort(0).values,
    "running sum": lambda m, h: h.cumsum(0),
    "mixup": lambda m, h: 0.6 * h + 0.4 * h.flip(0),
    "mixup by index": lambda m, h: torch.lerp(h, h[torch.arange(len(h)).roll(1)], 0.3),
    "norm": lambda m, h: h / h.norm(),
    "layer norm": lambda m, h: functional.layer_norm(h, h.shape),
    "convolution": lambda m, h: m.c(h.T[None])[0].T,
    "sequence": lambda m, h: m.g(h[:, None])[0][:, 0],
    "scatter": lambda m, h: h.index_add(0, torch.arange(len(h)).roll(1), h.sin()),
    "gate": lambda m, h: h * h[:1].sigmoid(),
}


@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("name", MIXED)
def test_models_that_mix_examples_are_refused(name: str, batch: int) -> None:
    x, width = torch.randn(batch, 3).double(), 3
    model = Calls(
        lambda m, x: m.b(MIXED[name](m, m.a(x))),
        a=layer(width),
        b=layer(width),
        c=nn.Conv1d(width, width, 3, padding=1),
        g=nn.GRU(width, width),
    )
    assert_refused(model, lambda m: terms(x)(m).sum())


@every_size
def test_an_encoder_with_its_batch_dimension_forgotten(size: tuple[int, int, int]) -> None:
    x, model = sequences(size), encoder(size[2]).double()
    assert_refused(model, lambda m: m(x).sin().sum())
    assert_right(again(model), lambda m: m(x).sin().sum((0, 2)), batch_dim=1)


def _apart(out: Tensor) -> Tensor:
    return functional.cross_entropy(out @ out.T, torch.arange(len(out)))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "contrast": _apart,
    "cosine contrast": lambda out: _apart(functional.normalize(out)),
    "distances": lambda out: torch.cdist(out, out).square().sum(),
    "variance": lambda out: out.var(0).sum(),
    "square of the mean": lambda out: out.mean().square(),
    "hardest": lambda out: out.square().sum(1).max(),
    "soft maximum": lambda out: out.square().sum(1).logsumexp(0),
    "normalised": lambda out: (out / out.detach().std()).square().sum(),
    "pairs": lambda out: (out[1:] - out[:-1]).square().sum(),
    "ranking": lambda out: (out[:1] - out[1:]).relu().sum() + out.sum(),
    "cross-correlation": lambda out: (out.T @ out - torch.eye(out.shape[1])).square().sum(),
}


@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_mix_examples_are_refused(name: str, batch: int) -> None:
    x, model = torch.randn(batch, 3).double(), Calls(lambda m, x: m.a(x), a=layer(3))
    assert_refused(model, lambda m: LOSSES[name](m(x)))
    inside = Calls(lambda m, x: LOSSES[name](m.a(x)), a=layer(3))
    assert_refused(inside, lambda m: m(x))


# What must not be refused


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_siamese_and_triplet_losses(dtype: torch.dtype, batch: int, bias: bool) -> None:
    """The last bias cancels in every difference: its gradient is zero but for rounding."""
    a, b, c = torch.randn(3, batch, 4, dtype=dtype)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias)).to(dtype)
    loss, rows = (nn.TripletMarginLoss(10.0, reduction=how) for how in ("mean", "none"))
    check = assert_right if dtype == torch.float64 else assert_close
    check(net, lambda m: rows(m(a), m(b), m(c)) / batch, lambda m: loss(m(a), m(b), m(c)))
    net.zero_grad()
    check(net, lambda m: (m(a) - m(b)).square().sum(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gradient_that_is_zero_but_for_rounding_in_every_pass(dtype: torch.dtype) -> None:
    """The keys' bias adds one number to all scores of a query, which softmax takes away."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 4))
            self.key, self.query, self.end = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(self.table).t() * 1e-3
            return self.end(scores.softmax(-1) @ self.table)

    torch.manual_seed(0)
    model = Looks().to(dtype)
    for _ in range(4):  # the first is verified
        model.zero_grad()
        with within_batch_variance(model):
            model(torch.randn(6, 3, 4, dtype=dtype)).square().mean().backward()
    assert model.key.bias.grad.norm() < 1e-3 * model.end.bias.grad.norm()


def assert_close(model: nn.Module, by_example: Loss, loss: Loss | None = None) -> None:
    """Demand the variance to float32's digits, and no refusal."""
    rows = contributions(model, by_example)
    with within_batch_variance(model):
        (loss or (lambda m: by_example(m).sum()))(model).backward()
    largest = max(len(c) * float(c.square().max()) for c in rows)
    for (name, p), c in zip(model.named_parameters(), rows, strict=True):
        size = len(c) * float(c.square().max())
        apart = float((p.grad_var - len(c) * c.var(0)).abs().max())
        assert apart <= 1e-4 * size + 1e-12 * largest, name


def test_models_that_upcast_inside() -> None:
    x = torch.randn(4, 3, 5)

    class Upcasts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(5, 5), nn.RMSNorm(5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).double()
            h = (h * h.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).to(x.dtype)
            return self.b(self.norm(h.softmax(-1, dtype=torch.float64).float() + h))

    assert_close(Upcasts(), terms(x))


VIEWS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "None behind": lambda m, h: m.b((h[..., None] * m.p).sum(-1)),
    "None in front": lambda m, h: m.b(h[None]).squeeze(0),
    "None in front and an index": lambda m, h: m.b(h[None, ..., :])[0],
    "None between": lambda m, h: m.b(h[:, None, :])[:, 0],
    "einsum": lambda m, h: torch.einsum("...d,de->...e", h, m.p) + m.b(h),
    "einsum of two": lambda m, h: torch.einsum("b...d,b...d->b...", h, m.b(h))[..., None] * m.p[0],
    "two views": lambda m, h: m.b(torch.cat([h, h.sin()])).tanh().view(2, *h.shape).prod(0),
    "two views in halves": lambda m, h: torch.mul(*m.b(torch.cat([h, h.sin()])).chunk(2)) * m.p[0],
    "views in turn": lambda m, h: m.b(torch.stack([h, h.sin()], 1).flatten(0, 1))[::2] + m.p[0],
    "loop": lambda m, h: torch.stack([m.b(u) @ m.p for u in h]),
    "loop over rows": lambda m, h: torch.cat([m.b(h[k : k + 1]) @ m.p for k in range(len(h))]),
    "loop over numbers": lambda m, h: torch.stack([m.b(h[k]) * m.p[0] for k in range(len(h))]),
}


@every_size
@pytest.mark.parametrize("name", VIEWS)
def test_views_joins_and_loops(name: str, size: tuple[int, int, int]) -> None:
    x, width = sequences(size), size[2]
    model = Calls(
        lambda m, x: VIEWS[name](m, m.a(x)), a=layer(width), b=layer(width), p=table(width, width)
    )
    assert_right(model, terms(x))
    assert_right(again(model), terms(x.sum(1)))


@every_size
@pytest.mark.parametrize("how", ["index_add_", "index_add", "mask", "sorted", "where"])
def test_experts_that_select_tokens(how: str, size: tuple[int, int, int]) -> None:
    x, width = sequences(size), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).flatten(0, 1)
        weights = m.gate(h).softmax(-1)
        return mixed(m, h, *weights.topk(1), how).view(size)

    model = Calls(
        call,
        a=layer(width),
        gate=layer(width, 3),
        experts=nn.ModuleList([layer(width) for _ in range(3)]),
    )
    assert_right(model, terms(x))


def mixed(m: Any, h: Tensor, weight: Tensor, choice: Tensor, how: str) -> Tensor:
    out, choice = torch.zeros_like(h), choice.squeeze(1)
    if how == "sorted":
        order = choice.argsort(stable=True)
        parts = (h * weight)[order].split(choice.bincount(minlength=3).tolist())
        fed = [f(u) for f, u in zip(m.experts, parts, strict=True)]
        return out.index_copy(0, order, torch.cat(fed))
    for number, expert in enumerate(m.experts):
        if how == "where":
            (rows,) = torch.where(choice == number)
        else:
            rows = (choice == number).nonzero().squeeze(1)
        if how == "mask":
            mask = choice == number
            out[mask] = expert(h[mask]) * weight[mask]
        elif how == "index_add":
            out = out.index_add(0, rows, expert(h[rows]) * weight[rows])
        else:
            out.index_add_(0, rows, expert(h[rows]) * weight[rows])
    return out


@every_size
def test_vmap_inside_the_model(size: tuple[int, int, int]) -> None:
    model = Calls(lambda m, x: torch.vmap(m.b)(m.a(x)), a=layer(size[2]), b=layer(size[2]))
    assert_right_or_refused(model, terms(sequences(size)))


def test_a_compiled_model_is_refused_by_name() -> None:
    compiled = torch.compile(nn.Linear(3, 2), backend="eager")
    assert_refused(compiled, lambda m: m(torch.randn(4, 3)).sum(), "compile")


def test_sizes_coincide_on_purpose() -> None:
    assert any(b == t for b, t, _ in SIZES)
    assert any(t % b == 0 and t != b for b, t, _ in SIZES)
    assert any(b == d for b, _, d in SIZES)
