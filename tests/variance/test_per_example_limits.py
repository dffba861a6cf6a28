"""Errors as a new user meets them, and what they leave behind: nothing."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from measured import assert_within
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_sequence
from torch.utils.checkpoint import checkpoint

from svag.errors import InvalidOption, PerExampleError, SparseGradient, SvagError, TooFewSamples
from svag.variance import micro_batch_variance, within_batch_variance
from variance.oracle import one_by_one, relative_error, variance_of_sum


class Hidden(torch.autograd.Function):
    """A product that no torch operation shows."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: object, delta: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return delta @ weight.T, x.T @ delta


hidden = Hidden.apply  # not looked up inside the context


class Custom(nn.Module):
    """A weight used where svag sees it, and where it does not."""

    def __init__(self, seen: bool) -> None:
        super().__init__()
        self.seen = seen
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        out = hidden(x, self.weight)
        return out + x @ self.weight if self.seen else out


class Mixing(nn.Module):
    """Subtracts the mean over the mini-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second((h - h.mean(0)).tanh())


class Split(nn.Module):
    """Loses track of the examples by sorting them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x[x > -9].unflatten(0, (3, -1, 2)))


def x(*shape: int) -> Tensor:
    return torch.randn(shape)


def run(
    model: nn.Module, data: Tensor, loss: Callable[[Tensor], Tensor], **options: object
) -> None:
    with within_batch_variance(model, **options):
        loss(model(data)).backward()


class Repacked(nn.Module):
    """Calls its input's rows the steps of two sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.inner = nn.Linear(3, 3), nn.LSTM(3, 4)

    def forward(self, rows: Tensor) -> Tensor:
        steps = PackedSequence(self.dense(rows), torch.tensor([2, 2, 1]))
        return self.inner(steps)[0].data


class Reordered(nn.Module):
    """Looks at its examples in another order, and at first in theirs."""

    def __init__(self, reorder: Callable[[Tensor], Tensor], once: bool = False) -> None:
        super().__init__()
        self.dense, self.reorder, self.once = nn.Linear(3, 3), reorder, once

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows if self.once else self.dense(rows)
        return self.dense(self.reorder(rows))


ORDER = [4, 2, 0, 1, 3]
REORDERINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "tensor": lambda rows: rows[torch.tensor(ORDER)],
    "list": lambda rows: rows[ORDER],
    "array": lambda rows: rows[np.array(ORDER)],
    "tuple": lambda rows: rows[torch.tensor(ORDER), :2],
    "index_select": lambda rows: rows.index_select(0, torch.tensor(ORDER)),
    "flip": lambda rows: rows.flip(0),
    "flip of two": lambda rows: torch.flip(rows, dims=(1, 0)),
    "roll": lambda rows: rows.roll(1, 0),
    "roll of all": lambda rows: torch.roll(rows, 12),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "own order": lambda rows: rows[torch.arange(len(rows))],
    "other dimension": lambda rows: rows[:, torch.tensor([3, 0, 1, 2])],
    "steps flipped": lambda rows: rows.flip(1),
    "steps rolled": lambda rows: torch.roll(rows, 1, dims=1),
}


@pytest.mark.parametrize("name", REORDERINGS)
def test_a_weight_used_on_two_orders_of_the_examples_is_told_apart(name: str) -> None:
    """The rows say whose they are, and the loss does not care in which order they come."""
    torch.manual_seed(0)
    model, data = Reordered(REORDERINGS[name]).double(), x(5, 4, 3).double()
    in_order = {"tuple": lambda rows: rows[:, :2]}.get(name, lambda rows: rows)
    kept = Reordered(in_order).double()
    kept.load_state_dict(model.state_dict())
    rows = one_by_one(kept, data, torch.ones(5), lambda out, _: out.square().sum())
    with within_batch_variance(model, per_example=["dense.weight"]) as seen:
        model(data).square().sum().backward()
    torch.testing.assert_close(seen.per_example["dense.weight"], rows["dense.weight"])
    error = relative_error(model.dense.weight.grad_var, variance_of_sum(rows["dense.weight"]))
    assert_within("layers, variance", error, 1e-10)


@pytest.mark.parametrize("name", KEPT)
def test_what_leaves_the_examples_in_their_order_is_not_refused(name: str) -> None:
    model, data = Reordered(KEPT[name]).double(), x(5, 4, 3).double()
    rows = one_by_one(model, data, torch.ones(5), lambda out, _: out.square().sum())
    with within_batch_variance(model):
        model(data).square().sum().backward()
    error = relative_error(model.dense.weight.grad_var, variance_of_sum(rows["dense.weight"]))
    assert_within("layers, variance", error, 1e-10)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)

    def forward(self, sequences: list[Tensor]) -> Tensor:
        return self.dense(pad_sequence(sequences, batch_first=True))


class Offsets(nn.Module):
    """Bags of 2, 1 and 2 words in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.bag(words, torch.tensor([0, 2, 3]))


def square(out: Tensor) -> Tensor:
    return out.square().mean()


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return checkpoint(self.second, self.first(rows), use_reentrant=True)


BATCH_NORM = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
CASES: dict[str, tuple[Callable[[], object], type[SvagError], str]] = {
    "batch normalisation": (
        lambda: run(BATCH_NORM, x(5, 3), square),
        PerExampleError,
        r"batch normalisation '1' in training mode.*micro_batch_variance.*model\.eval\(\)",
    ),
    "reentrant checkpoint": (
        lambda: run(Reentrant(), x(5, 3), square),
        PerExampleError,
        r"a reentrant checkpoint.*gradient_checkpointing_kwargs=\{'use_reentrant': False\}",
    ),
    "reentrant checkpoint, not verified": (
        lambda: run(Reentrant(), x(5, 3), square, check=False),
        PerExampleError,
        r"'second.* is used in a reentrant checkpoint.*use_reentrant=False",
    ),
    "parameters for a model": (
        lambda: within_batch_variance(nn.Linear(3, 4).parameters()),
        InvalidOption,
        "torch.nn.Module, not a generator; svag.micro_batch_variance takes parameters",
    ),
    "a model for parameters": (
        lambda: micro_batch_variance(nn.Linear(3, 4)),
        InvalidOption,
        r"Linear is no tensor and no iterable of tensors; give model\.parameters\(\)",
    ),
    "frozen batch normalisation": (
        lambda: run(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False)), x(5, 3), square
        ),
        PerExampleError,
        "batch normalisation in training mode",
    ),
    "one example": (
        lambda: run(nn.Linear(3, 4), x(1, 3), square),
        TooFewSamples,
        "the mini-batch has 1 example: one gradient has no spread; give two or more",
    ),
    "no example": (
        lambda: run(nn.Linear(3, 4), x(0, 3), square),
        TooFewSamples,
        "the mini-batch has 0 examples",
    ),
    "complex": (
        lambda: run(nn.Linear(3, 4, dtype=torch.complex64), x(5, 3), square),
        PerExampleError,
        "bias is complex|weight is complex",
    ),
    "one sequence": (
        lambda: run(nn.Linear(3, 4), x(1, 6, 3), square),
        TooFewSamples,
        "micro_batch_variance",
    ),
    "no backward": (
        lambda: run(nn.Linear(3, 4), x(5, 3), lambda out: nn.Parameter(out.detach().sum())),
        PerExampleError,
        r"no backward pass did; call loss\.backward\(\) before the context closes",
    ),
    "hidden use": (
        lambda: run(Custom(False), x(5, 3), square),
        PerExampleError,
        "weight: the examples' contributions do not add up to its gradient",
    ),
    "one hidden use of two": (
        lambda: run(Custom(True), x(5, 3), square),
        PerExampleError,
        r"custom autograd\.Function.*micro_batch_variance",
    ),
    "lost examples": (
        lambda: run(Split(), x(4, 3, 2).abs(), square),
        PerExampleError,
        r"linear was given a tensor of shape \(3, 4, 2\).*unflatten puts the examples along",
    ),
    "time first, undeclared": (
        lambda: run(nn.GRU(3, 4), x(6, 5, 3), lambda out: square(out[0])),
        PerExampleError,
        "batch_first=False was given the examples along dimension 0; pass batch_dim=1",
    ),
    "batch first, declared second": (
        lambda: run(
            nn.GRU(3, 4, batch_first=True), x(5, 6, 3), lambda o: square(o[0]), batch_dim=1
        ),
        PerExampleError,
        "pass batch_dim=0",
    ),
    "convolution of one image": (
        lambda: run(nn.Conv2d(3, 4, 3), x(3, 6, 6), square),
        PerExampleError,
        r"conv2d was given an input of shape \(3, 6, 6\).*give \(batch, channels, ...\)",
    ),
    "normalised over the batch": (
        lambda: run(nn.LayerNorm((5, 3)), x(5, 3), square),
        PerExampleError,
        "mixes them",
    ),
    "no such dimension": (
        lambda: run(nn.Linear(3, 4), x(5, 3), square, batch_dim=2),
        InvalidOption,
        r"batch_dim=2: Linear was given tensors of shape \(5, 3\)",
    ),
    "negative dimension": (
        lambda: within_batch_variance(nn.Linear(3, 4), batch_dim=-1),
        InvalidOption,
        "batch_dim=-1: count from the front",
    ),
    "no memory": (
        lambda: within_batch_variance(nn.Linear(3, 4), max_bytes=0),
        InvalidOption,
        "max_bytes=0: give at least 1",
    ),
    "unknown name": (
        lambda: within_batch_variance(nn.Linear(3, 4), per_example=["wieght"]),
        InvalidOption,
        "'wieght' is no trainable parameter of the model; there are bias, weight",
    ),
    "sparse embedding": (
        lambda: run(nn.Embedding(5, 3, sparse=True), torch.arange(4), square),
        SparseGradient,
        "give sparse=False",
    ),
    "scaled embedding": (
        lambda: run(nn.Embedding(5, 3, scale_grad_by_freq=True), torch.arange(4), square),
        PerExampleError,
        "counts over the whole mini-batch",
    ),
    "bags by offsets": (
        lambda: run(Offsets(), torch.arange(5), square),
        PerExampleError,
        "tell the examples apart; give \\(batch, bag\\) indices",
    ),
    "packed sequence of unknown examples": (
        lambda: run(Repacked(), x(5, 3), square),
        PerExampleError,
        "packed sequence.*pack inside the model with torch.nn.utils.rnn",
    ),
    "a list of sequences": (
        lambda: run(Listed(), [x(5, 3), x(4, 3)], square),
        InvalidOption,
        r"a list of tensors of shapes \(5, 3\), \(4, 3\).*examples=0.*PackedSequence",
    ),
    "mixing loss": (
        lambda: run(nn.Linear(3, 4), x(5, 3), contrastive),
        PerExampleError,
        "the loss mixes the examples of the mini-batch .matmul mixes",
    ),
    "mixing model": (
        lambda: run(Mixing(), x(5, 3), square),
        PerExampleError,
        "in which the examples of the mini-batch are mixed .sub mixes the examples",
    ),
}


def contrastive(out: Tensor) -> Tensor:
    return functional.cross_entropy(out @ out.T, torch.arange(len(out)))


@pytest.mark.parametrize("name", CASES)
def test_error_names_the_remedy_and_leaves_nothing(name: str) -> None:
    call, kind, message = CASES[name]
    torch.manual_seed(0)
    with pytest.raises(kind) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    model = nn.Linear(3, 4)
    run(model, x(5, 3), square)
    assert bool(model.weight.grad_var.ge(0).all())


def hooks_of(model: nn.Module) -> int:
    parameters = sum(len(p._backward_hooks or ()) for p in model.parameters())
    after = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    modules = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    return parameters + after + modules


def test_an_exception_inside_removes_every_hook() -> None:
    model, data = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), x(5, 3)
    context = within_batch_variance(model)

    def fail() -> None:
        assert hooks_of(model) > 0
        model(data)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), context:
        fail()
    assert hooks_of(model) == 0
    square(model(data)).backward()
    assert not hasattr(model[0].weight, "grad_var")


def test_contexts_cannot_be_nested() -> None:
    model = nn.Linear(3, 4)
    with within_batch_variance(model):
        with pytest.raises(PerExampleError, match="already open"):
            within_batch_variance(nn.Linear(3, 4)).start()
        square(model(x(5, 3))).backward()
    assert hooks_of(model) == 0


def test_gradients_switched_off() -> None:
    model = nn.Linear(3, 4)
    with torch.no_grad(), pytest.raises(PerExampleError, match=r"switched off \(torch\.no_grad"):
        within_batch_variance(model).start()


def test_evaluation_inside_is_left_alone() -> None:
    model, data = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), x(5, 3)
    model[1].eval()
    with within_batch_variance(model):
        with torch.no_grad():
            model.train()
            model(x(7, 3))
            model[1].eval()
        square(model(data)).backward()
    assert model[0].weight.grad_var.shape == (4, 3)


def test_start_and_stop_may_be_repeated() -> None:
    model, data = nn.Linear(3, 4), x(5, 3)
    variance = within_batch_variance(model)
    for _ in range(2):
        variance.start()
        model.zero_grad()
        square(model(data)).backward()
        variance.stop()
        variance.stop()
    assert hooks_of(model) == 0
    assert model.weight.grad_var.shape == (4, 3)


def test_independence_holds_for_a_loss_with_dropout_and_a_mean_over_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Dropout(0.5), nn.Linear(4, 5))
    tokens, targets = torch.randint(5, (6, 7)), torch.randint(5, (6, 7))
    targets[2, 3:] = -100
    with within_batch_variance(model):
        logits = model(tokens).flatten(0, 1)
        functional.cross_entropy(logits, targets.flatten()).backward()
    assert model[2].weight.grad_var.shape == (5, 4)


def test_the_gradient_is_right_even_where_a_use_is_hidden() -> None:
    torch.manual_seed(0)
    model, data = Custom(True), x(5, 3)
    square(model(data)).backward()
    expected = model.weight.grad.clone()
    model.zero_grad()
    with within_batch_variance(model, check=False):
        square(model(data)).backward()
    torch.testing.assert_close(model.weight.grad, expected)


def test_gradients_taken_without_backward_are_not_counted() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(3, 4), x(5, 3)
    with within_batch_variance(model):
        square(model(data)).backward()
        expected = model.weight.grad_var.clone()
        model.zero_grad()
        torch.autograd.grad(square(model(3 * data)), list(model.parameters()))
        square(model(data)).backward()
    torch.testing.assert_close(model.weight.grad_var, expected)
