"""Small models in float64 with a loss and a batch, whose curvature tests compare with an oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class Case:
    """A model, its loss, and a batch (inputs, targets)."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any


def last_step(outputs: Any) -> Tensor:
    return outputs[0][:, -1]


class Then(nn.Module):
    """A module, a function of its outputs, and a linear head."""

    def __init__(self, body: nn.Module, pick: Callable[[Any], Tensor], width: int, classes: int):
        super().__init__()
        self.body, self.pick, self.head = body, pick, nn.Linear(width, classes)

    def forward(self, x: Any) -> Tensor:
        return self.head(self.pick(self.body(x)))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, tokens: int = 6, width: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(x))))


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        values, padding = x
        mask = nn.Transformer.generate_square_subsequent_mask(values.shape[1], dtype=values.dtype)
        away = torch.zeros(padding.shape, dtype=values.dtype).masked_fill(padding, -torch.inf)
        found, _ = self.attention(
            values, values, values, attn_mask=mask, key_padding_mask=away, need_weights=False
        )
        return self.head(found[:, 0])


class ScaledDotProduct(nn.Module):
    """The call that Hugging Face's models make with ``attn_implementation="sdpa"``."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head(found.transpose(1, 2).flatten(2)[:, -1])


class Unrolled(nn.Module):
    """Cells, called step by step."""

    def __init__(self, cell: type[nn.Module]):
        super().__init__()
        self.cell, self.head = cell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Twice(nn.Module):
    """A module of two inputs, both the same."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, x)


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


@dataclass
class Named:
    logits: Tensor
    size: int


class Several(nn.Module):
    """Returns its logits and the hidden layer from which they come, in a container."""

    def __init__(self, contain: Callable[[Tensor, Tensor], Any]):
        super().__init__()
        self.first, self.second, self.contain = nn.Linear(3, 4), nn.Linear(4, 2), contain

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.first(x))
        return self.contain(self.second(hidden), hidden)


class Scalars(nn.Module):
    """Parameters without dimensions, and one that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(0.3))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.scale * x + self.shift)


class Spectrum(nn.Module):
    """Complex outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(torch.tanh(self.layer(x)))


def classes(count: int, size: int = 6) -> Tensor:
    return torch.arange(size) % count


def images() -> Tensor:
    return torch.randn(6, 1, 6, 6)


def encoder(dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True)
    body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return Then(body, lambda z: z.mean(1), 4, 3)


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 3)),
    )


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = torch.full((outputs.shape[1],), len(outputs))
    return functional.ctc_loss(
        outputs.log_softmax(2), targets, lengths, torch.full_like(lengths, 2)
    )


MAKERS: dict[str, Callable[[], Case]] = {
    "mlp": lambda: Case(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        functional.cross_entropy, torch.randn(6, 4), classes(3),
    ),
    "regression": lambda: Case(
        nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)),
        functional.mse_loss, torch.randn(6, 4), torch.randn(6, 2),
    ),
    "batch norm": lambda: Case(convolutional(), functional.cross_entropy, images(), classes(3)),
    "transformer": lambda: Case(
        encoder(), functional.cross_entropy, torch.randn(6, 5, 4), classes(3)
    ),
    "transformer, dropout": lambda: Case(
        encoder(0.3), functional.cross_entropy, torch.randn(6, 5, 4), classes(3)
    ),
    "lstm": lambda: Case(
        Then(nn.LSTM(3, 3, 2, batch_first=True, dropout=0.2), last_step, 3, 2),
        functional.cross_entropy, torch.randn(6, 4, 3), classes(2),
    ),
    "dropout": lambda: Case(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)),
        functional.cross_entropy, torch.randn(6, 4), classes(3),
    ),
    "tied": lambda: Case(
        Tied(), lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten()),
        torch.randint(0, 6, (3, 4)), torch.randint(0, 6, (3, 4)),
    ),
    "gru": lambda: Case(
        Then(nn.GRU(3, 3, batch_first=True, bidirectional=True), last_step, 6, 2),
        functional.cross_entropy, torch.randn(6, 4, 3), classes(2),
    ),
    "rnn cell": lambda: Case(
        Unrolled(nn.RNNCell), functional.cross_entropy, torch.randn(6, 3, 3), classes(2)
    ),
    "lstm cell": lambda: Case(
        Unrolled(nn.LSTMCell), functional.cross_entropy, torch.randn(6, 3, 3), classes(2)
    ),
    "group norm": lambda: Case(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        ),
        functional.cross_entropy, images(), classes(3),
    ),
    "layer norm, gelu": lambda: Case(
        nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        functional.cross_entropy, torch.randn(6, 4), classes(3),
    ),
    "instance and local norm": lambda: Case(
        nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.ELU()),
            *(nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(48, 2)),
        ),
        functional.cross_entropy, images(), classes(2),
    ),
    "rms norm, softplus": lambda: Case(
        nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Softplus(), nn.Linear(5, 1)),
        lambda z, y: functional.binary_cross_entropy_with_logits(z[:, 0], y),
        torch.randn(6, 4), torch.tensor([0.0, 1, 1, 0, 1, 0]),
    ),
    "attention with masks": lambda: Case(
        Attention(0.2), functional.cross_entropy,
        (torch.randn(6, 4, 4), torch.tensor([[False] * 3 + [True]] * 6)), classes(3),
    ),
    "scaled dot product": lambda: Case(
        ScaledDotProduct(), functional.cross_entropy, torch.randn(6, 5, 4), classes(3)
    ),
    "weight norm": lambda: Case(
        nn.Sequential(weight_norm(nn.Linear(4, 5)), nn.Tanh(), old_norm(nn.Linear(5, 3))),
        functional.cross_entropy, torch.randn(6, 4), classes(3),
    ),
    "transposed convolution": lambda: Case(
        nn.Sequential(
            *(nn.Conv2d(1, 2, 3, stride=2), nn.MaxPool2d(2, 1), nn.Mish()),
            *(nn.ConvTranspose2d(2, 1, 4, stride=2, dilation=1, output_padding=1),),
        ),
        lambda z, y: functional.huber_loss(z[..., :3, :3], y, delta=0.4),
        images(), torch.randn(6, 1, 3, 3),
    ),
    "depthwise and bilinear": lambda: Case(
        nn.Sequential(
            *(nn.Conv1d(2, 4, 3, groups=2, padding_mode="circular", padding=1), nn.PReLU(4)),
            *(nn.PixelShuffle(1), nn.Upsample(scale_factor=2, mode="linear"), nn.Flatten()),
            *(nn.Linear(40, 2), nn.LogSoftmax(dim=1)),
        ),
        functional.nll_loss, torch.randn(6, 2, 5), classes(2),
    ),
    "softmax head": lambda: Case(
        nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1)),
        lambda z, y: functional.kl_div(z.log(), y, reduction="batchmean"),
        torch.randn(6, 4), torch.rand(6, 3).softmax(1),
    ),
    "label smoothing, weights": lambda: Case(
        nn.Sequential(nn.Linear(4, 3)),
        lambda z, y: functional.cross_entropy(
            z, y, weight=z.new_tensor([1.0, 2, 0.5]), label_smoothing=0.1, ignore_index=1
        ),
        torch.randn(6, 4), classes(3),
    ),
    "triplet": lambda: Case(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        lambda z, y: functional.triplet_margin_loss(z[:2], z[2:4], z[4:], margin=3.0),
        torch.randn(6, 4), None,
    ),
    "gaussian likelihood": lambda: Case(
        nn.Sequential(nn.Linear(4, 2)),
        lambda z, y: functional.gaussian_nll_loss(z[:, 0], y, functional.softplus(z[:, 1])),
        torch.randn(6, 4), torch.randn(6),
    ),
    "named tuple": lambda: Case(
        Several(Pair),
        lambda z, y: functional.cross_entropy(z.logits, y) + 0.1 * z.hidden.pow(4).mean(),
        torch.randn(6, 3), classes(2),
    ),
    "dictionary": lambda: Case(
        Several(lambda logits, hidden: {"z": logits, "more": [hidden, None, 3]}),
        lambda z, y: functional.cross_entropy(z["z"], y) + 0.1 * z["more"][0].pow(4).mean(),
        torch.randn(6, 3), classes(2),
    ),
    "dataclass": lambda: Case(
        Several(lambda logits, hidden: Named(logits, 2)),
        lambda z, y: functional.cross_entropy(z.logits, y), torch.randn(6, 3), classes(2),
    ),
    "complex outputs": lambda: Case(
        Spectrum(), lambda z, y: (z.abs().square() - y).square().mean(),
        torch.randn(6, 4), torch.rand(6, 3),
    ),
    "scalars": lambda: Case(Scalars(), functional.mse_loss, torch.randn(6), torch.randn(6)),
    "one parameter": lambda: Case(
        nn.Linear(1, 1, bias=False), functional.mse_loss, torch.randn(6, 1), torch.randn(6, 1)
    ),
    "linear loss": lambda: Case(nn.Linear(3, 1), lambda z, y: z.mean(), torch.randn(6, 3), None),
    "bilinear": lambda: Case(
        Twice(nn.Bilinear(3, 3, 1)), lambda z, y: z.exp().mean(), torch.randn(6, 3), None
    ),
}  # fmt: skip


def old_norm(module: nn.Module) -> nn.Module:
    """torch's deprecated weight norm, which computes the weight in a hook."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return old_weight_norm(module)


def case(name: str) -> Case:
    """Make a case in float64, the same each time."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return MAKERS[name]()
    finally:
        torch.set_default_dtype(default)
