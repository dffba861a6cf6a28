"""Every layer type against one backward pass for each example, in float64."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from measured import assert_within
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from svag.variance import within_batch_variance
from variance.oracle import one_by_one, relative_error, variance_of_sum


class Only(nn.Module):
    """The first of several outputs."""

    def __init__(self, inner: nn.Module, *rest: object) -> None:
        super().__init__()
        self.inner, self.rest = inner, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, *self.rest)[0]


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool, need_weights: bool, **options: object) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.inner = nn.MultiheadAttention(6, 2, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=self.need_weights)[0]


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(6, 6)
        self.inner = nn.MultiheadAttention(6, 3, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.query(x), x, x)[0]


class OtherKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(6, 4, bias=False)
        self.inner = nn.MultiheadAttention(6, 3, kdim=4, vdim=6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, self.keys(x), x)[0]


class Dot(nn.Module):
    """Scaled dot-product attention of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Cell(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = kind(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class LastState(nn.Module):
    """A dense layer on the last states of both directions, from learned initial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
        self.start = nn.Parameter(torch.randn(2, 4, 1, 4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, c = (s.expand(-1, len(x), -1).contiguous() for s in self.start)
        _, (h, c) = self.rnn(x, (h, c))
        return self.head(torch.cat((h[-1], c[-2]), -1))


class Lengths(nn.Module):
    """Sequences of lengths that the data say, packed for a recurrent layer."""

    def __init__(self, inner: nn.Module, sorted_first: bool = False) -> None:
        super().__init__()
        self.before, self.inner, self.between = nn.Linear(3, 3), inner, nn.Linear(3, 3)
        self.sorted_first = sorted_first

    def packed(self, x: Tensor) -> PackedSequence:
        lengths = 1 + x[:, 0, 0].abs().mul(1000).long() % x.shape[1]
        x = self.before(x).tanh()
        if self.sorted_first:
            lengths = torch.full_like(lengths, x.shape[1] - 1)
        packed = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=self.sorted_first
        )
        # A dense layer on all steps, wherever they lie.
        return packed._replace(data=self.between(packed.data).tanh())

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.inner(self.packed(x))
        padded, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        states = state if isinstance(state, tuple) else (state,)
        last = torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1)
        return torch.cat((padded.flatten(1), last), 1)


class Siamese(nn.Module):
    """One recurrent layer on two sequences of an example, of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Lengths(nn.GRU(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.one(x.flip(1).sin())


class Flattened(nn.Module):
    """A recurrent layer on the sentences of documents: several rows an example."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(3, 4, batch_first=batch_first), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        out, (h, _) = self.inner(rows if self.inner.batch_first else rows.transpose(0, 1))
        last = out[:, -1] if self.inner.batch_first else out[-1]
        return self.head(torch.cat((last, h[0]), -1)).unflatten(0, x.shape[:2])


class FrozenEncoder(nn.Module):
    """A trainable head on what an encoder says that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Lengths(nn.LSTM(3, 4)), nn.Linear(28, 2)
        self.encoder.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class WeightedBag(nn.Module):
    """A bag whose entries count by weights that are learned, one for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.weights = nn.EmbeddingBag(7, 3, mode="sum"), nn.Embedding(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x).squeeze(-1)
        return self.bag(x, per_sample_weights=weights)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dim: int = 0
    classes: int | None = None


IMAGE, SERIES, STEPS = (5, 4, 7, 6), (5, 4, 9), (5, 6, 3)
CASES = {
    "Linear": Case(lambda: nn.Linear(3, 4), (5, 3)),
    "Linear, no bias": Case(lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "Linear, one inner": Case(lambda: nn.Linear(3, 4), (5, 6, 3)),
    "Linear, two inner": Case(lambda: nn.Linear(3, 4), (5, 2, 6, 3)),
    "Linear, square": Case(lambda: nn.Linear(5, 5), (5, 5, 5)),
    "Linear, second": Case(lambda: nn.Linear(3, 4), (6, 5, 3), dim=1),
    "Linear, flattened": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten(0, 1), nn.Linear(4, 4)), (5, 6, 3)
    ),
    "Bilinear": Case(lambda: Twice(nn.Bilinear(3, 3, 4)), (5, 3)),
    "PReLU": Case(lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4)), (5, 3)),
    "Conv1d": Case(lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2), SERIES),
    "Conv1d, circular": Case(
        lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), SERIES
    ),
    "Conv2d": Case(lambda: nn.Conv2d(4, 3, (3, 2), (2, 1), (1, 0), (1, 2)), IMAGE),
    "Conv2d, same": Case(lambda: nn.Conv2d(4, 3, (4, 3), padding="same"), IMAGE),
    "Conv2d, valid": Case(lambda: nn.Conv2d(4, 3, 2, padding="valid", bias=False), IMAGE),
    "Conv2d, reflect": Case(lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE),
    "Conv2d, replicate": Case(
        lambda: nn.Conv2d(4, 3, 3, padding="same", padding_mode="replicate"), IMAGE
    ),
    "Conv2d, depthwise": Case(lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    "Conv3d": Case(lambda: nn.Conv3d(2, 4, 2, 2, 1, 1, 2), (4, 2, 5, 4, 3)),
    "ConvTranspose1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), SERIES),
    "ConvTranspose2d": Case(
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, dilation=(1, 3)), IMAGE
    ),
    "ConvTranspose3d": Case(lambda: nn.ConvTranspose3d(2, 4, 2, 2, bias=False), (4, 2, 3, 2, 3)),
    "Embedding": Case(lambda: nn.Embedding(7, 3), (5, 8), classes=7),
    "Embedding, padding": Case(lambda: nn.Embedding(7, 3, padding_idx=-2), (5, 4, 3), classes=7),
    "EmbeddingBag": Case(lambda: nn.EmbeddingBag(7, 3), (5, 8), classes=7),
    "EmbeddingBag, padding": Case(
        lambda: nn.EmbeddingBag(2, 3, padding_idx=-2), (16, 2), classes=2
    ),
    "EmbeddingBag, sum": Case(
        lambda: nn.EmbeddingBag(7, 3, mode="sum", padding_idx=1), (5, 4), classes=7
    ),
    "EmbeddingBag, weighted": Case(WeightedBag, (5, 4), classes=7),
    "EmbeddingBag, max": Case(
        lambda: nn.EmbeddingBag(2, 3, mode="max", padding_idx=0), (16, 2), classes=2
    ),
    "LayerNorm": Case(lambda: nn.LayerNorm(3), STEPS),
    "LayerNorm, two": Case(lambda: nn.LayerNorm((6, 3)), (5, 2, 6, 3)),
    "LayerNorm, no bias": Case(lambda: nn.LayerNorm(3, bias=False), (5, 3)),
    "LayerNorm, second": Case(lambda: nn.LayerNorm(3), (6, 5, 3), dim=1),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, 4), IMAGE),
    "RMSNorm": Case(lambda: nn.RMSNorm(3), STEPS),
    "BatchNorm1d": Case(lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
    "BatchNorm2d": Case(lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "BatchNorm3d": Case(lambda: nn.BatchNorm3d(2).eval(), (4, 2, 3, 2, 3)),
    "InstanceNorm2d": Case(lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm1d, eval": Case(
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True).eval(), SERIES
    ),
    "LSTM": Case(lambda: Only(nn.LSTM(3, 4, batch_first=True)), STEPS),
    "LSTM, time first": Case(lambda: Only(nn.LSTM(3, 4, 2)), (5, 5, 3), dim=1),
    "LSTM, both": Case(lambda: Only(nn.LSTM(3, 4, 3, True, True, 0.0, True)), STEPS),
    "LSTM, no bias": Case(lambda: Only(nn.LSTM(3, 4, 2, False, True)), STEPS),
    "LSTM, projected": Case(
        lambda: Only(nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)), STEPS
    ),
    "LSTM, states": Case(LastState, STEPS),
    "GRU": Case(lambda: Only(nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)), STEPS),
    "GRU, no bias": Case(lambda: Only(nn.GRU(3, 4, bias=False)), (6, 5, 3), dim=1),
    "RNN, tanh": Case(lambda: Only(nn.RNN(3, 4, 2, batch_first=True, bidirectional=True)), STEPS),
    "RNN, relu": Case(lambda: Only(nn.RNN(3, 4, 2, "relu", batch_first=True)), STEPS),
    "LSTM, packed": Case(lambda: Lengths(nn.LSTM(3, 4, 2, bidirectional=True)), (7, 5, 3)),
    "LSTM, packed, projected": Case(
        lambda: Lengths(nn.LSTM(3, 4, 2, bias=False, proj_size=2)), (7, 5, 3)
    ),
    "LSTM, packed, equal": Case(lambda: Lengths(nn.LSTM(3, 4), True), (7, 5, 3)),
    "GRU, packed": Case(lambda: Lengths(nn.GRU(3, 4, 2, bidirectional=True)), (7, 5, 3)),
    "GRU, packed twice": Case(Siamese, (7, 5, 3)),
    "LSTM, packed, frozen": Case(FrozenEncoder, (7, 5, 3)),
    "LSTM, flattened": Case(lambda: Flattened(True), (5, 3, 4, 3)),
    "LSTM, flattened, time first": Case(lambda: Flattened(False), (5, 3, 4, 3)),
    "RNN, packed": Case(lambda: Lengths(nn.RNN(3, 4, 2, "relu", bidirectional=True)), (7, 5, 3)),
    "LSTMCell": Case(lambda: Cell(nn.LSTMCell), STEPS),
    "GRUCell": Case(lambda: Cell(nn.GRUCell), STEPS),
    "RNNCell": Case(lambda: Cell(nn.RNNCell), STEPS),
    "attention": Case(lambda: SelfAttention(True, False), (5, 5, 6)),
    "attention, weights": Case(lambda: SelfAttention(True, True), (5, 4, 6)),
    "attention, time first": Case(lambda: SelfAttention(False, False), (5, 5, 6), dim=1),
    "attention, own biases": Case(
        lambda: SelfAttention(True, True, add_bias_kv=True, add_zero_attn=True), (5, 4, 6)
    ),
    "attention, cross": Case(CrossAttention, (5, 4, 6)),
    "attention, other keys": Case(OtherKeys, (5, 4, 6)),
    "dot-product attention": Case(Dot, (5, 4, 6)),
    "Transformer layers": Case(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        ),
        (5, 5, 6),
    ),
    "Transformer decoder": Case(
        lambda: Memory(nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True)), (5, 4, 6)
    ),
}


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.cos())


class Memory(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.sin())


def weighted(output: Tensor, weights: Tensor) -> Tensor:
    """A loss that is nonlinear in the output and has another weight for each example."""
    shaped = weights.reshape(weights.shape + (1,) * (output.dim() - weights.dim()))
    return (shaped * (output + 0.3 * output.square())).sum() / 7


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("max_bytes", [None, 1])
def test_layer_equals_brute_force(name: str, max_bytes: int | None) -> None:
    case = CASES[name]
    torch.manual_seed(len(name))
    model = case.make().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(case.shape, dtype=torch.float64)
    if case.classes:
        x = torch.randint(case.classes, case.shape)
    size = [1] * case.dim + [case.shape[case.dim]]
    flat = x.shape[case.dim] != len(model(x)) and case.dim == 0
    weights = torch.rand(size, dtype=torch.float64) + 0.5
    loss = flattened if flat else weighted
    contributions = one_by_one(model, x, weights, loss, case.dim)
    with within_batch_variance(model, batch_dim=case.dim, max_bytes=max_bytes):
        loss(model(x), weights).backward()
    assert contributions
    for parameter, rows in contributions.items():
        p = model.get_parameter(parameter)
        if not p.requires_grad:
            assert not hasattr(p, "grad_var")
            continue
        assert_within("layers, gradient", relative_error(p.grad, rows.sum(0)), 1e-10, parameter)
        error = relative_error(p.grad_var, variance_of_sum(rows))
        assert_within("layers, variance", error, 1e-10, parameter)
        assert p.grad_var.stride() == p.grad.stride()


class Given(nn.Module):
    """Takes packed sequences, and a row of features for each, in a dictionary or beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.features = nn.LSTM(3, 4, 2, bidirectional=True), nn.Linear(2, 3)

    def forward(self, packed: Any, features: Tensor) -> tuple[Tensor, ...]:
        packed = packed["packed"] if isinstance(packed, dict) else packed
        out, (h, c) = self.inner(packed)
        return out.data, h, c, self.features(features)


@pytest.mark.parametrize("wrap", [lambda packed: packed, lambda packed: {"packed": packed}])
def test_packed_sequences_are_told_apart_where_they_are_the_input(wrap) -> None:
    torch.manual_seed(0)
    model = Given().double()
    sequences = [torch.randn(length, 3, dtype=torch.float64) for length in (2, 5, 1, 5)]
    features = torch.randn(4, 2, dtype=torch.float64)

    def loss(of: list[Tensor], beside: Tensor) -> Tensor:
        parts = model(wrap(pack_sequence(of, enforce_sorted=False)), beside)
        return sum(part.square().sum() + part.sin().sum() for part in parts)

    rows = []
    for k, sequence in enumerate(sequences):
        model.zero_grad()
        loss([sequence], features[k : k + 1]).backward()
        rows.append([p.grad for p in model.parameters()])
    model.zero_grad()
    with within_batch_variance(model, per_example=["inner.weight_hh_l0"]) as seen:
        loss(sequences, features).backward()
    kept = seen.per_example["inner.weight_hh_l0"]
    torch.testing.assert_close(kept, torch.stack([row[1] for row in rows]))
    for p, *own in zip(model.parameters(), *rows, strict=True):
        error = relative_error(p.grad_var, variance_of_sum(torch.stack(own)))
        assert_within("layers, variance", error, 1e-10)


def test_dropout_between_packed_layers_draws_what_it_draws_in_plain_training() -> None:
    model = Lengths(nn.LSTM(3, 4, 2, dropout=0.5)).double()
    x, ends = torch.randn(7, 5, 3, dtype=torch.float64), []
    for context in (nullcontext(), within_batch_variance(model)):
        torch.manual_seed(0)
        with context:
            model(x).sum().backward()
        ends.append(model.inner.weight_ih_l0.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"mode": "mean"}, {"per_sample_weights": torch.ones(4, 2)}),
        ({"mode": "sum"}, {"per_sample_weights": torch.ones(4, 1)}),
        ({"mode": "middle"}, {}),
        ({}, {"offsets": torch.tensor([0, 1])}),
    ],
)
def test_bags_refuse_what_torch_refuses(options: dict[str, Any], given: dict[str, Any]) -> None:
    bag = nn.EmbeddingBag(5, 3, **options)
    with pytest.raises((ValueError, NotImplementedError)) as plain:
        bag(torch.ones(4, 2, dtype=torch.long), **given)
    with pytest.raises(plain.type), within_batch_variance(bag):
        bag(torch.ones(4, 2, dtype=torch.long), **given)


def flattened(output: Tensor, weights: Tensor) -> Tensor:
    return weighted(output.unflatten(0, (len(weights), -1)), weights)
