"""Whole models and unusual uses of parameters, against one backward pass for each example."""

from collections.abc import Callable, Mapping

import pytest
import torch
from measured import assert_within
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from svag.problems import models
from svag.variance import within_batch_variance
from variance.oracle import one_by_one, relative_error, variance_of_sum

Gradients = Mapping[str, tuple[Tensor, Tensor]]


class LanguageModel(nn.Module):
    """Two LSTM layers between an embedding and a dense layer that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.lstm = nn.LSTM(6, 6, 2)
        self.dense = nn.Linear(6, 9)
        self.dense.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.lstm(self.embedding(x.t()))[0]).transpose(0, 1)


class Encoder(nn.Module):
    """Learned positions, a class token, attention and tied embeddings by ``@``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.positions = nn.Embedding(12, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.scale = nn.Parameter(torch.ones(()))
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.positions(torch.arange(x.shape[1]))
        h = torch.cat((self.token.expand(len(x), -1, -1), h), 1)
        h = self.norm(self.encoder(h))[:, 1:]
        return h.flatten(0, 1) @ self.embedding.weight.T * self.scale


class Odd(nn.Module):
    """Parameters computed from parameters, in einsum, in a custom module and through a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(4, 5))
        self.mix = nn.Parameter(torch.randn(3, 5, 4))
        self.log_scale = nn.Parameter(torch.randn(4))
        self.shift = nn.Parameter(torch.randn(2, 1))
        self.filler = nn.Parameter(torch.randn(4))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x > 1, self.filler * self.mask, x)
        h = functional.linear(x, torch.cat(list(self.mix.unbind()))[:5].softmax(-1))
        h = torch.einsum("btd,hdc->bthc", torch.tanh(self.normed(x) + h), self.mix)
        h = h * self.log_scale.exp()
        return (h.unflatten(-1, (2, 2)) - self.shift).flatten(1) / self.log_scale.norm()


class Queries(nn.Module):
    """Learned queries, one set for each example; steps stacked before the mini-batch, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.step, self.late = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        h = self.attention(queries, x, x)[0]
        h = h + functional.scaled_dot_product_attention(queries, x, x)
        steps = torch.stack([self.step(step).tanh() for step in x.unbind(1)])
        return self.late(steps).mean(0) + self.late(h.amax(1))


class Shared(nn.Module):
    """One layer called twice, once on a part, with in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.dense = nn.Linear(12, 12)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv(self.relu(self.conv(x)))).mean(-1).flatten(1)
        return self.relu(self.dense(h)) + functional.linear(h, self.dense.weight.t())


class DropsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(images(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.dropout(self.weight, 0.5))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda t: self.first(t).tanh(), x, use_reentrant=False)
        return self.second(h)


def weighted(output: Tensor, weights: Tensor) -> Tensor:
    output = output.reshape(len(weights), -1)
    return (weights.unsqueeze(1) * (output + 0.3 * output.square())).sum() / 7


def tokens(batch: int, length: int, classes: int) -> Tensor:
    return torch.randint(classes, (batch, length))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "2c2d": (models.conv_2c2d, lambda: images(3, 1, 28, 28)),
    "3c3d": (models.conv_3c3d, lambda: images(3, 3, 32, 32)),
    "WRN-16-1": (lambda: models.wide_resnet(16, 1, 10).eval(), lambda: images(3, 3, 32, 32)),
    "character LSTM": (lambda: models.CharLSTM(9, 6, 5).eval(), lambda: tokens(4, 7, 9)),
    "language model": (LanguageModel, lambda: tokens(5, 5, 9)),
    "encoder": (Encoder, lambda: tokens(5, 5, 9)),
    "odd": (Odd, lambda: images(4, 4, 4)),
    "queries": (Queries, lambda: images(4, 4, 4)),
    "shared": (Shared, lambda: images(4, 3, 4, 5)),
    "checkpointed": (Checkpointed, lambda: images(4, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_model_equals_brute_force(name: str) -> None:
    torch.manual_seed(1)
    make, data = MODELS[name]
    model, x = make().double(), data()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    weights = torch.rand(len(x), dtype=torch.float64) + 0.5
    contributions = one_by_one(model, x, weights, weighted)
    with within_batch_variance(model):
        weighted(model(x), weights).backward()
    for parameter, rows in contributions.items():
        p = model.get_parameter(parameter)
        assert_within("models, gradient", relative_error(p.grad, rows.sum(0)), 1e-10, parameter)
        error = relative_error(p.grad_var, variance_of_sum(rows))
        assert_within("models, variance", error, 1e-10, parameter)


def estimate(model: nn.Module, loss: Callable[[], Tensor], **options: object) -> Gradients:
    model.zero_grad()
    with within_batch_variance(model, **options):
        loss().backward()
    result = {name: (p.grad.clone(), p.grad_var.clone()) for name, p in model.named_parameters()}
    model.zero_grad()
    return result


def test_sum_loss_has_the_variance_of_b_times_the_mean_loss() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), images(6, 4), torch.randint(3, (6,))
    mean = estimate(model, lambda: functional.cross_entropy(model(x), y))
    whole = estimate(model, lambda: functional.cross_entropy(model(x), y, reduction="sum"))
    for name, (grad, variance) in mean.items():
        torch.testing.assert_close(whole[name][0], 6 * grad)
        torch.testing.assert_close(whole[name][1], 36 * variance)


def test_ignored_tokens_count_in_the_mean_over_tokens() -> None:
    torch.manual_seed(0)
    model = models.CharLSTM(5, 4, 4, dropout=0.0).double()
    x, y = tokens(4, 6, 5), tokens(4, 6, 5)
    y[0, 2:] = -100

    def loss(rows: slice) -> Tensor:
        logits = model(x[rows]).flatten(0, 1)
        return functional.cross_entropy(logits, y[rows].flatten(), reduction="sum")

    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for k in range(4):
        model.zero_grad()
        (loss(slice(k, k + 1)) / 20).backward()
        for name, p in model.named_parameters():
            rows[name].append(p.grad.clone())
    found = estimate(model, lambda: functional.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    for name, (_, variance) in found.items():
        assert relative_error(variance, variance_of_sum(torch.stack(rows[name]))) < 1e-10


def test_a_penalty_shifts_the_gradient_and_not_its_variance() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), images(6, 4)
    plain = estimate(model, lambda: model(x).square().mean())
    held = estimate(
        model, lambda: model(x).square().mean() + sum(p.square().sum() for p in model.parameters())
    )
    for name, p in model.named_parameters():
        torch.testing.assert_close(held[name][0], plain[name][0] + 2 * p.detach())
        torch.testing.assert_close(held[name][1], plain[name][1])


def test_independent_batches_accumulate_their_variances() -> None:
    torch.manual_seed(0)
    model, batches = nn.Linear(4, 3).double(), images(2, 6, 4)
    apart = [estimate(model, lambda x=x: model(x).square().mean()) for x in batches]
    recorder = within_batch_variance(model).start()
    for x in batches:
        model(x).square().mean().backward()
    recorder.stop()
    for n, (name, p) in enumerate(model.named_parameters()):
        torch.testing.assert_close(p.grad, apart[0][name][0] + apart[1][name][0], msg=str(n))
        torch.testing.assert_close(p.grad_var, apart[0][name][1] + apart[1][name][1])


def test_an_earlier_gradient_without_variance_counts_as_fixed() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), images(6, 4)
    alone = estimate(model, lambda: model(x).square().mean())
    model(x + 1).square().mean().backward()
    before = model.weight.grad.clone()
    with within_batch_variance(model):
        model(x).square().mean().backward()
    torch.testing.assert_close(model.weight.grad, before + alone["weight"][0])
    torch.testing.assert_close(model.weight.grad_var, alone["weight"][1])


def test_two_forward_passes_before_two_backward_passes() -> None:
    torch.manual_seed(0)
    model, batches = Shared().double(), images(2, 4, 3, 4, 5)
    apart = [estimate(model, lambda x=x: model(x).square().mean()) for x in batches]
    with within_batch_variance(model):
        losses = [model(x).square().mean() for x in batches]
        for loss, alone in zip(losses, apart, strict=True):
            model.zero_grad()
            loss.backward()
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.grad_var, alone[name][1])


def test_one_backward_pass_through_two_views_of_each_example() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), images(5, 4)
    found = estimate(model, lambda: (model(x) * model(x.sin())).sum())
    rows = []
    for k in range(5):
        model.zero_grad()
        (model(x[k]) * model(x[k].sin())).sum().backward()
        rows.append(model.weight.grad.clone())
    assert relative_error(found["weight"][1], variance_of_sum(torch.stack(rows))) < 1e-10


def test_second_moments_and_single_gradients() -> None:
    torch.manual_seed(0)
    model, x = Shared().double(), images(4, 3, 4, 5)
    weights = torch.ones(4, dtype=torch.float64)
    rows = one_by_one(model, x, weights, weighted)
    names = ["conv.weight", "dense.bias"]
    with within_batch_variance(model, second_moments=True, per_example=names) as variance:
        weighted(model(x), weights).backward()
    assert set(variance.per_example) == set(names)
    for name in names:
        torch.testing.assert_close(variance.per_example[name], rows[name])
    for name, row in rows.items():
        torch.testing.assert_close(variance.second_moments[name], row.square().sum(0))


def test_frozen_parameters_are_left_alone() -> None:
    torch.manual_seed(0)
    model, x = Encoder().double(), tokens(4, 5, 9)
    weights = torch.ones(4, dtype=torch.float64)
    rows = one_by_one(model, x, weights, weighted)
    for name in ("embedding.weight", "encoder.layers.0.linear1.bias", "norm.weight"):
        model.get_parameter(name).requires_grad_(False)
    with within_batch_variance(model):
        weighted(model(x), weights).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert relative_error(p.grad_var, variance_of_sum(rows[name])) < 1e-10
        else:
            assert not hasattr(p, "grad_var")
            assert p.grad is None


def test_parameters_computed_at_random_are_drawn_once() -> None:
    torch.manual_seed(0)
    model, x = DropsWeights(), images(5, 4)
    weight = model.weight
    with within_batch_variance(model):
        out = model(x)
        out.sum().backward()
    kept = weight.grad_var != 0
    assert 0 < int(kept.sum()) < 12
    torch.testing.assert_close(out, functional.linear(x, 2.0 * kept * weight))


def test_autocast_gives_the_variance_of_what_it_computes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 6)
    exact = estimate(model, lambda: model(x).square().mean())

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    for name, (_, variance) in estimate(model, loss).items():
        assert variance.dtype == torch.float32
        torch.testing.assert_close(variance, exact[name][1], rtol=0.1, atol=0.01)


def test_a_method_of_the_model_may_be_called_instead() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).double(), images(6, 4)
    whole = estimate(model, lambda: model(x).square().mean())
    parts = estimate(model, lambda: model[1](model[0](x)).square().mean())
    for name, (_, variance) in whole.items():
        torch.testing.assert_close(parts[name][1], variance)


def test_data_made_inside_the_context_is_the_mini_batch() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), images(6, 4)
    outside = estimate(model, lambda: model(x).square().mean())
    inside = estimate(model, lambda: model(torch.stack(list(x)).clone()).square().mean())
    torch.testing.assert_close(inside["weight"], outside["weight"])


def test_the_same_batch_in_another_context_with_another_batch_dim() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), images(6, 6, 4)
    first = estimate(model, lambda: model(x).square().mean())
    second = estimate(model, lambda: model(x).square().mean(), batch_dim=1)
    rows = one_by_one(model, x, torch.ones(1, 6), lambda out, _: out.square().sum() / 108, 1)
    torch.testing.assert_close(second["weight"][1], variance_of_sum(rows["weight"]))
    assert not torch.allclose(first["weight"][1], second["weight"][1])


def test_backward_over_a_kept_graph() -> None:
    torch.manual_seed(0)
    model, x = Shared().double(), images(4, 3, 4, 5)
    alone = estimate(model, lambda: model(x).square().mean())
    with within_batch_variance(model):
        loss = model(x).square().mean()
        loss.backward(retain_graph=True)
        model.zero_grad()
        loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad_var, alone[name][1])
