"""Examples coupled by statistics of what was learned, and by numbers that are read from tensors."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svag import within_batch_variance
from tests.variance.attribution import (
    Calls,
    assert_refused,
    assert_right,
    layer,
    refused,
    sequences,
    terms,
)

SIZE = (4, 3, 5)


def step(model: nn.Module, loss: Callable[[], Tensor], **options: Any) -> None:
    model.zero_grad()
    with within_batch_variance(model, **options):
        loss().backward()


def balanced(s: Any, x: Tensor) -> Tensor:
    """A mixture of experts with the loss that balances their loads."""
    shares = s.end(x).softmax(-1).flatten(0, 1)
    chosen = functional.one_hot(shares.argmax(-1), shares.shape[1]).to(x.dtype).mean(0)
    return (shares.mean(0) * chosen).sum()


def test_a_load_balancing_loss_of_experts_is_refused() -> None:
    model, x = Calls(balanced, end=layer(5)), sequences(SIZE)
    assert_refused(model, lambda m: m(x), "mixes the examples", check=False)


LOSSES: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "ratio of a sum and its value": lambda h, _: h.square().sum() / h.detach().square().sum(),
    "sum times its value": lambda h, _: h.sum() * h.sum().detach(),
    "normalised advantage": lambda h, _: ((h.detach() - h.detach().mean(0)) * h).sum(),
    "weight from gradients": lambda h, m: _weighed(h, m),
    "weights of all outputs": lambda h, _: (h.square() * h.detach().mean((0, 1))).sum(),
}


def _weighed(h: Tensor, model: nn.Module) -> Tensor:
    one, two = h.square().mean(), h.sin().mean()
    last = list(model.parameters())[-2]
    grads = [torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (one, two)]
    return one + (grads[0] / grads[1]).detach() * two


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_statistics_of_the_outputs_is_refused(name: str, later: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer(5), layer(5)).double(), sequences(SIZE)
    if later:
        for _ in range(2):
            step(model, lambda: model(x).square().sum())
    with refused("mixes"):
        step(model, lambda: LOSSES[name](model(x), model))
    with refused("mixes"):
        step(model, lambda: LOSSES[name](model(x), model))


def test_counts_of_targets_and_inputs_may_divide_a_loss() -> None:
    torch.manual_seed(0)
    x, kept = sequences(SIZE), torch.rand(SIZE[:2]) < 0.7

    def masked(s: Any, x: Tensor, kept: Tensor) -> Tensor:
        return (s.end(x).square().mean(-1) * kept).sum() / kept.sum()

    model = Calls(masked, end=layer(5))
    assert_right(
        model,
        lambda m: (m.end(x).square().mean(-1) * kept).sum(1) / kept.sum(),
        lambda m: m(x, kept),
    )


UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "covariance": lambda h: (h * torch.cov(h.detach().T)[0]).sum(),
    "correlation": lambda h: torch.corrcoef(h.T).square().sum(),
    "number": lambda h: h.sum() * h.mean().item(),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_loss_first_used_in_a_later_pass_is_compared(name: str) -> None:
    torch.manual_seed(0)
    model, x = layer(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(2):
        step(model, lambda: model(x).square().sum())
    for _ in range(2):
        with refused("mixes"):
            step(model, lambda: UNSEEN[name](model(x)))


def squared_sums(h: Tensor) -> Tensor:
    return (h.sum(0) * h.sum(0)).sum()


def test_a_loss_out_of_sight_is_refused() -> None:
    model, x = layer(5, 3), torch.randn(4, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit")  # deprecated; a FutureWarning since 2.15
        scripted = torch.jit.script(squared_sums)
    with refused("cannot be checked"):
        step(model, lambda: scripted(model(x)))


def maximum(h: Tensor) -> float:
    return float(np.abs(h.detach().numpy()).max())


READS: dict[str, Callable[[Tensor], Any]] = {
    "numpy": maximum,
    "item": lambda h: h.detach().max().item(),
    "float": lambda h: float(h.max()),
    "list": lambda h: max(h.detach().flatten().tolist()),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", READS)
def test_a_maximum_read_from_a_tensor_is_found(name: str, later: bool, seed: int) -> None:
    torch.manual_seed(seed)
    reads = {"on": not later}

    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x)
        return s.end(h * READS[name](h) if reads["on"] else h)

    model, x = Calls(call, start=layer(5), end=layer(5)), sequences(SIZE)
    if later:
        for _ in range(2):
            step(model, lambda: model(x).sin().sum())
    reads["on"] = True
    with refused("the model mixes examples"):
        step(model, lambda: model(x).sin().sum())


def test_numbers_that_couple_nothing_may_be_read() -> None:
    torch.manual_seed(0)

    def call(s: Any, x: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        kept = torch.arange(longest) < lengths.unsqueeze(1)
        h = s.end(s.start(x[:, :longest])) * kept.unsqueeze(-1)
        return h.sum(1) if bool(kept.any()) else x.sum(1)

    model, lengths = Calls(call, start=layer(5), end=layer(5)), torch.tensor([2, 3, 1, 2])
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences(SIZE), lengths))


def test_a_perturbation_by_its_gradient_belongs_to_its_example() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(layer(5), nn.Tanh(), layer(5)).double(), sequences(SIZE)

    def virtual(m: nn.Module) -> Tensor:
        with torch.no_grad():
            known = m(x).softmax(-1)
        moved = torch.full_like(x, 1e-2).requires_grad_()
        apart = functional.kl_div(m(x + moved).log_softmax(-1), known, reduction="sum")
        (direction,) = torch.autograd.grad(apart, moved)
        found = m(x + 0.1 * direction).log_softmax(-1)
        return functional.kl_div(found, known, reduction="none").sum((1, 2))

    for _ in range(2):
        model.zero_grad()
        assert_right(model, virtual)


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda h: h.topk(4).indices,
    "topk of lists": lambda h: torch.stack([h.topk(2)[1], h.topk(2, largest=False)[1]]).flatten(),
    "argmax": lambda h: h.argmax(0, keepdim=True),
    "argmin": lambda h: h.detach().argmin().view(1),
    "multinomial": lambda h: torch.multinomial(h.detach().exp(), 3),
}


@pytest.mark.parametrize("by", CHOICES)
@pytest.mark.parametrize("seed", range(4))
def test_rows_chosen_among_those_of_all_examples_are_refused(by: str, seed: int) -> None:
    """Whether or not the choice changes with the examples that the check puts in."""

    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x).flatten(0, 1)
        chosen = CHOICES[by](h[:, 0])
        return h.index_add(0, chosen, s.end(h[chosen])).view(x.shape)

    torch.manual_seed(seed)
    model, x = Calls(call, start=layer(5), end=layer(5)), sequences(SIZE)
    assert_refused(model, lambda m: terms(x)(m).sum(), "chooses among the examples", by.split()[0])


def test_all_rows_in_the_order_of_their_values_are_followed() -> None:
    """Every row is taken once, so the order changes nothing."""

    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x).flatten(0, 1)
        order = h[:, 0].topk(len(h)).indices
        return torch.zeros_like(h).index_add(0, order, s.end(h[order])).view(x.shape)

    torch.manual_seed(0)
    model, x = Calls(call, start=layer(5), end=layer(5)), sequences(SIZE)
    assert_right(model, terms(x))


def test_the_best_step_of_each_example_is_followed() -> None:
    def call(s: Any, x: Tensor) -> Tensor:
        h = s.start(x)
        best = h[..., 0].topk(2, dim=1).indices
        return s.end(h.take_along_dim(best.unsqueeze(-1), 1))

    torch.manual_seed(0)
    model, x = Calls(call, start=layer(5), end=layer(5)), sequences(SIZE)
    assert_right(model, terms(x))
