"""Uses that public bug reports on per-example gradients are about, each against its own examples.

Every example runs forward and backward alone, in float64, and the mini-batch must give their sum
and variance. Where one example has no gradient of its own, an error must name the operation.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from svag.errors import PerExampleError, SparseGradient, SvagError, TooFewSamples
from svag.variance import within_batch_variance
from tests.variance.alone import (
    SIZES,
    Case,
    Cases,
    Loss,
    Size,
    assert_own,
    bent,
    both,
    normal,
    one_by_one,
    warmed,
    words,
)
from tests.variance.attribution import Calls, refused, table

CASES = Cases()


# --- tables ----------------------------------------------------------------------------------


@CASES.named("positions of one row, broadcast over the examples")  # Opacus 841
def _positions(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).unsqueeze(0)
        return m.head(m.norm(m.words(x) + m.places(places)))

    parts = {"words": nn.Embedding(7, d), "places": nn.Embedding(9, d)}
    return Case(Calls(call, **parts, norm=nn.LayerNorm(d), head=nn.Linear(d, 3)), (words(b, t),))


@CASES.named(
    "positions repeated for each example, with an offset"
)  # transformers 18486, Opacus 685
def _repeated_positions(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).repeat(len(x), 1)
        return m.head(m.words(x) + m.places(places + 2))

    parts = {"words": nn.Embedding(7, d), "places": nn.Embedding(t + 2, d)}
    return Case(Calls(call, **parts, head=nn.Linear(d, 3)), (words(b, t),))


@CASES.named("table tied to the last layer")  # Opacus 413, PyTorch 80951
def _tied(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        return m.head(m.between(m.words(x)))

    model = Calls(call, words=nn.Embedding(7, d), between=nn.Linear(d, d), head=nn.Linear(d, 7))
    model.head.weight = model.words.weight
    return Case(model, (words(b, t),))


@CASES.named("table called with one word, and with several")  # Opacus 58
def _word2vec(b: int, t: int, d: int) -> Case:
    def call(m: Any, word: Tensor, context: Tensor, negative: Tensor) -> Tensor:
        mine, near, far = m.of(word.squeeze(1)), m.other(context), m.other(negative)
        nearness = (near * mine.unsqueeze(1)).sum(-1)
        distance = torch.bmm(far, mine.unsqueeze(2)).squeeze(2)
        return torch.cat((functional.logsigmoid(nearness), functional.logsigmoid(-distance)), 1)

    model = Calls(call, of=nn.Embedding(7, d), other=nn.Embedding(7, d))
    return Case(model, (words(b, 1), words(b, 1), words(b, t)))


@CASES.named(
    "padding counted from the end, whose row is not zero"
)  # PyTorch 93950, private-transformers 3
def _padding(b: int, t: int, d: int) -> Case:
    model = Calls(
        lambda m, x: m.head(m.words(x)),
        words=nn.Embedding(4, d, padding_idx=-1),
        head=nn.Linear(d, 2),
    )
    nn.init.normal_(model.words.weight)
    return Case(model, (words(b, t, 4),))


@CASES.named("table with a largest norm")  # PyTorch 73693
def _max_norm(b: int, t: int, d: int) -> Case:
    model = Calls(
        lambda m, x: m.head(m.words(x)),
        words=nn.Embedding(4, d, max_norm=1.0),
        head=nn.Linear(d, 2),
    )
    return Case(model, (words(b, t, 4),))


@CASES.named("masked recurrence over a table")  # TensorFlow Privacy 127
def _masked_recurrence(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = c = m.words.weight.new_zeros(len(x), d)
        for step in x.unbind(1):
            kept = (step != 0).unsqueeze(1)
            new_h, new_c = m.cell(m.words(step), (h, c))
            h, c = torch.where(kept, new_h, h), torch.where(kept, new_c, c)
        return m.head(h)

    parts = {"words": nn.Embedding(3, d, padding_idx=0), "cell": nn.LSTMCell(d, d)}
    return Case(Calls(call, **parts, head=nn.Linear(d, 2)), (words(b, t, 3),))


# --- parameters shared, frozen, unused -------------------------------------------------------


@CASES.named("one parameter in two layers of one's own")  # Opacus 511
def _two_products(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = functional.linear(x, m.w, m.b).tanh()
        return (h.matmul(m.w.t()) + m.b) @ m.v

    return Case(Calls(call, w=table(d, d), b=table(d), v=table(d, 2)), (normal(b, d),))


@CASES.named("frozen weight, learned bias")  # Opacus 436, 542
def _frozen_weight(b: int, t: int, d: int) -> Case:
    parts = {"conv": nn.Conv1d(t, d, 2), "norm": nn.GroupNorm(2, d), "head": nn.Linear(d - 1, 2)}
    model = Calls(lambda m, x: m.head(m.norm(m.conv(x))), **parts)
    for part in (model.conv, model.norm, model.head):
        part.weight.requires_grad_(False)
    return Case(model, (normal(b, t, d),))


@CASES.named("learned weight, frozen bias")  # Opacus 436
def _frozen_bias(b: int, t: int, d: int) -> Case:
    parts = {
        "gru": nn.GRU(d, d, batch_first=True),
        "norm": nn.LayerNorm(d),
        "head": nn.Linear(d, 2),
    }
    model = Calls(lambda m, x: m.head(m.norm(m.gru(x)[0])), **parts)
    for name, p in model.named_parameters():
        p.requires_grad_("bias" not in name)
    return Case(model, (normal(b, t, d),))


@CASES.named("layers that are never used")  # Opacus 502, 645
def _unused(b: int, t: int, d: int) -> Case:
    heads = nn.ModuleList([nn.Linear(d, 2), nn.Linear(d, 3), nn.Linear(d, 4)])
    model = Calls(lambda m, x: m.heads[1](m.a(x).relu()), a=nn.Linear(d, d), heads=heads)
    return Case(model, (normal(b, d),))


@CASES.named("norm after every layer of a decoder, stacked")  # Opacus 578
def _intermediate(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        target, memory, kept = (
            m.query.weight.unsqueeze(1).repeat(1, len(x), 1),
            x.transpose(0, 1),
            [],
        )
        for layer in m.layers:
            target = layer(target, memory)
            kept.append(m.norm(target))
        return torch.stack(kept).transpose(1, 2).transpose(0, 1)

    layers = nn.ModuleList([nn.TransformerDecoderLayer(d, 2, d, 0.0) for _ in range(2)])
    model = Calls(call, query=nn.Embedding(t, d), layers=layers, norm=nn.LayerNorm(d))
    return Case(model, (normal(b, t, d),))


@CASES.named("critic on true and on generated examples")  # Opacus 31, 65
def _critic(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, z: Tensor) -> Tensor:
        return m.critic(x) - m.critic(m.generator(z).detach())

    critic = nn.Sequential(nn.Linear(d, d), nn.LeakyReLU(0.2), nn.Linear(d, 1))
    return Case(Calls(call, critic=critic, generator=nn.Linear(t, d)), (normal(b, d), normal(b, t)))


# --- convolutions ----------------------------------------------------------------------------


@CASES.named("dilated convolution")  # Opacus 137, 1
def _dilated(b: int, t: int, d: int) -> Case:
    model = nn.Conv2d(d, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3), groups=2)
    return Case(model.double(), (normal(b, d, 7, 6),))


@CASES.named("padding to the same size, more behind than before")  # Opacus 451, PyTorch 83345
def _same(b: int, t: int, d: int) -> Case:
    stack = nn.Sequential(
        nn.Conv1d(d, d, 4, padding="same", dilation=3, groups=2),
        nn.Tanh(),
        nn.Conv1d(d, 3, 2, padding="same"),
    )
    return Case(stack.double(), (normal(b, d, 9),))


@CASES.named("volumes padded by a whole kernel, in groups")  # PyTorch 80953, 51430
def _volumes(b: int, t: int, d: int) -> Case:
    model = nn.Conv3d(4, 8, 2, padding=2, groups=2)
    return Case(model.double(), (normal(b, 4, 3, 2, 3),))


@CASES.named("convolution and its transpose, with a fixed batch norm between")  # BackPACK 219
def _deconvolution(b: int, t: int, d: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1, output_padding=1, dilation=2),
        nn.ReLU(),
    )
    return Case(model.double().eval(), (normal(b, 3, 6, 5),))


@CASES.named("features thinned out by slices")  # functorch 105
def _thinned(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.cat((m.b(y[:, :, ::2, ::2]), m.c(y[:, :, 1::2, 1::2])), 1)

    parts = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 2, 1), "c": nn.Conv2d(4, 2, 1)}
    return Case(Calls(call, **parts), (normal(b, 3, 6, 6),))


@CASES.named("segmentation of volumes with skipped connections")  # Opacus 671
def _segmentation(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        fine = m.one(x)
        coarse = m.two(functional.max_pool3d(fine, 2))
        up = functional.interpolate(coarse, scale_factor=2, mode="trilinear", align_corners=False)
        return m.head(torch.cat((fine, up, m.up(coarse)), 1))

    def block(a: int, c: int) -> nn.Module:
        return nn.Sequential(nn.Conv3d(a, c, 3, padding=1), nn.InstanceNorm3d(c, affine=True))

    parts = {"one": block(1, 2), "two": block(2, 2), "up": nn.ConvTranspose3d(2, 2, 2, stride=2)}
    return Case(Calls(call, **parts, head=nn.Conv3d(6, 2, 1)), (normal(b, 1, 4, 4, 4),))


# --- norms ------------------------------------------------------------------------------------


@CASES.named("norms in a type of their own, on a view")  # fastDP 40
def _cast_norms(b: int, t: int, d: int) -> Case:
    class Group(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.float64)).type(x.dtype)

    class Layer(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(len(x), -1, x.shape[1])).reshape(x.shape)

    model = nn.Sequential(nn.Conv2d(3, d, 2), Group(2, d), nn.SiLU(), Layer(d))
    return Case(model.double(), (normal(b, 3, 4, 4),))


@CASES.named("norm as the first layer")  # PyTorch 80952
def _first_norm(b: int, t: int, d: int) -> Case:
    model = nn.Sequential(nn.LayerNorm((t, d)), nn.Flatten(), nn.Linear(t * d, 3))
    return Case(model.double(), (normal(b, t, d),))


@CASES.named("instance norm between convolutions")  # PyTorch 79800
def _instance(b: int, t: int, d: int) -> Case:
    model = nn.Sequential(
        nn.Conv1d(d, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.ReLU(), nn.Conv1d(4, 2, 1)
    )
    return Case(model.double(), (normal(b, d, 6),))


@CASES.named("norm over one number")  # PyTorch 188375
def _one_number(b: int, t: int, d: int) -> Case:
    model = nn.Sequential(nn.Linear(d, 1), nn.LayerNorm(1), nn.Linear(1, 2))
    return Case(model.double(), (normal(b, t, d),))


@CASES.named(
    "root mean square norm and gates of a language model"
)  # fastDP 36, private-transformers 21
def _gated(b: int, t: int, d: int) -> Case:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * x

    def call(m: Any, x: Tensor) -> Tensor:
        h = norm(x, m.scale)
        return x + m.down(functional.silu(m.gate(h)) * m.up(h))

    parts = {n: nn.Linear(d, d, bias=False) for n in ("gate", "up", "down")}
    return Case(Calls(call, scale=table(d), **parts), (normal(b, t, d),))


@CASES.named("group norm of sums of layers on a state of zeros")  # functorch 622
def _equilibrium(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(3):
            y = m.norm(functional.relu(m.one(z)))
            z = m.norm(functional.relu(z + m.norm(x + m.two(y))))
        return m.head(z.flatten(1))

    parts = {n: nn.Conv2d(4, 4, 3, padding=1, bias=False) for n in ("one", "two")}
    model = Calls(call, **parts, norm=nn.GroupNorm(2, 4), head=nn.Linear(36, 2))
    return Case(model, (normal(b, 4, 3, 3),))


# --- attention ---------------------------------------------------------------------------------


@CASES.named("attention whose layers see the time first")  # Opacus 650, 158
def _attention(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        return m.head(m.attention(x, x, x)[0].sum(1))

    parts = {"attention": nn.MultiheadAttention(d, 2, batch_first=True), "head": nn.Linear(d, 3)}
    return Case(Calls(call, **parts), (normal(b, t, d),))


@CASES.named("attention with a mask for all and a mask for each")  # Opacus 774, 505
def _masked_attention(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, pad: Tensor) -> Tensor:
        causal = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        own = pad[:, None, None] | causal
        out, weights = m.one(x, x, x, attn_mask=causal, key_padding_mask=pad)
        out = m.two(out, x, x, attn_mask=own.expand(-1, 2, -1, -1).flatten(0, 1))[0]
        return torch.cat((out, weights), -1)

    parts = {n: nn.MultiheadAttention(d, 2, batch_first=True) for n in ("one", "two")}
    pad = torch.arange(t) >= torch.randint(1, t + 1, (b, 1))
    return Case(Calls(call, **parts), (normal(b, t, d), pad))


@CASES.named("attention with a learned bias for all examples")  # JAX 39451
def _biased_attention(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        table = m.bias(m.buckets).permute(2, 0, 1).unsqueeze(0)
        fused = functional.scaled_dot_product_attention(q, k, v, attn_mask=m.mask)
        return (((q @ k.mT) + table).softmax(-1) @ v + fused).transpose(1, 2).flatten(2)

    model = Calls(
        call, qkv=nn.Linear(d, 3 * d), bias=nn.Embedding(2 * t, 2), mask=table(1, 2, t, t)
    )
    model.register_buffer("buckets", torch.arange(t)[:, None] - torch.arange(t) + t)
    return Case(model, (normal(b, t, d),))


@CASES.named("attention that fades with a distance of no gradient")  # Opacus 644
def _fading(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        scores = q @ k.transpose(-2, -1) / d**0.5
        with torch.no_grad():
            weights = scores.softmax(-1)
            after = weights.sum(-1, keepdim=True) - weights.cumsum(-1)
            apart = (torch.arange(t)[:, None] - torch.arange(t)).abs().to(x)
            distance = torch.clamp(after * apart, min=0).sqrt()
        gamma = -functional.softplus(m.gamma)
        scores = scores * torch.clamp((distance * gamma).exp(), min=1e-5, max=1e5)
        future = torch.triu(torch.ones(t, t, dtype=torch.bool), 1)
        return scores.masked_fill(future, -1e32).softmax(-1) @ v

    parts = {n: nn.Linear(d, d) for n in "qkv"}
    return Case(Calls(call, gamma=table(1, 1, 1), **parts), (normal(b, t, d),))


@CASES.named("attention of labels over words")  # fastDP 36
def _labels(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        weights = torch.softmax(m.labels(torch.tanh(m.first(x))), dim=1)
        pooled = weights.transpose(1, 2) @ x
        return m.last.weight.mul(pooled).sum(dim=2).add(m.last.bias)

    parts = {"first": nn.Linear(d, d, bias=False), "labels": nn.Linear(d, t, bias=False)}
    return Case(Calls(call, **parts, last=nn.Linear(d, t)), (normal(b, t, d),))


@CASES.named("class token and positions as parameters")  # Opacus 239
def _tokens(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        token = m.token.expand(x.shape[0], -1, -1)
        return m.layer(torch.cat((token, x), 1) + m.places[:, : t + 1])[:, 0]

    layer = nn.TransformerEncoderLayer(d, 2, d, 0.0, batch_first=True)
    return Case(
        Calls(call, token=table(1, 1, d), places=table(1, 9, d), layer=layer), (normal(b, t, d),)
    )


@CASES.named("translation with masks")  # Opacus 505, 685
def _translation(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, y: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(y.shape[1], dtype=torch.float64)
        pad = torch.zeros_like(x, dtype=torch.float64).masked_fill(x == 0, float("-inf"))
        source, target = m.words(x) * d**0.5, m.words(y) * d**0.5
        out = m.inner(
            source.transpose(0, 1),
            target.transpose(0, 1),
            tgt_mask=causal,
            src_key_padding_mask=pad,
            memory_key_padding_mask=pad,
        )
        return (out @ m.words.weight.t()).transpose(0, 1)

    inner = nn.Transformer(d, 2, 1, 1, d, 0.0)
    x = words(b, t)
    x[:, 0] = 1
    return Case(Calls(call, words=nn.Embedding(7, d), inner=inner), (x, words(b, t + 1)))


# --- sequences ---------------------------------------------------------------------------------


@CASES.named("packed sequences in the order of their lengths")  # Opacus 103, 116, 717
def _packed(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, c) = m.lstm(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=t)
        return torch.cat((m.head(out).flatten(1), h[-1], c[0]), 1)

    lstm = nn.LSTM(d, 3, 2, batch_first=True, bidirectional=True)
    model = Calls(call, lstm=lstm, head=nn.Linear(6, 2))
    return Case(model, (normal(b, t, d), torch.randint(1, t + 1, (b,))))


@CASES.named("last word by its length")  # Opacus 717
def _last_word(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = m.gru(x)
        index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.shape[2])
        return m.head(out.gather(1, index).squeeze(1))

    model = Calls(call, gru=nn.GRU(d, d, batch_first=True), head=nn.Linear(d, 2))
    return Case(model, (normal(b, t, d), torch.randint(1, t + 1, (b,))))


# --- losses ------------------------------------------------------------------------------------


@CASES.named("mean over examples and outputs")  # BackPACK 49, curvlinops 108
def _mean(b: int, t: int, d: int) -> Case:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(out, y)

    y = torch.rand(b, t, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 2)).double()
    return Case(model, (normal(b, t, d),), loss, (y,), lambda out, y: loss(out, y) / b)


@CASES.named("mean over the words that are not padding")  # curvlinops 107, Opacus 685
def _ignored(b: int, t: int, d: int) -> Case:
    y = words(b, t, 4)
    y[:, 1:][torch.rand(b, t - 1) > 0.6] = -100
    count = (y != -100).sum()

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(out.transpose(1, 2), y)

    def alone(out: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="sum") / count

    model = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 4)).double()
    return Case(model, (normal(b, t, d),), loss, (y,), alone)


@CASES.named("next words, shifted and flattened")  # Opacus 685, 413
def _next_words(b: int, t: int, d: int) -> Case:
    def scale(out: Tensor, y: Tensor, reduction: str) -> Tensor:
        out, y = out[..., :-1, :].contiguous(), y[..., 1:].contiguous()
        return functional.cross_entropy(out.view(-1, 7), y.view(-1), reduction=reduction)

    model = nn.Sequential(nn.Embedding(7, d), nn.Linear(d, 7)).double()
    x = words(b, t)
    return Case(
        model,
        (x,),
        lambda out, y: scale(out, y, "mean"),
        (x,),
        lambda out, y: scale(out, y, "sum") / (b * (t - 1)),
    )


@CASES.named("class weights in the mean")  # curvlinops 108
def _class_weights(b: int, t: int, d: int) -> Case:
    weight, y = torch.rand(4, dtype=torch.float64) + 0.1, torch.randint(4, (b,))

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(out, y, weight)

    def alone(out: Tensor, mine: Tensor) -> Tensor:
        return functional.cross_entropy(out, mine, weight, reduction="sum") / weight[y].sum()

    return Case(nn.Linear(d, 4).double(), (normal(b, d),), loss, (y,), alone)


@CASES.named("examples that are only padding, of weight 0")  # jax_privacy 126
def _weightless(b: int, t: int, d: int) -> Case:
    weight = torch.ones(b, dtype=torch.float64)
    weight[-1] = 0

    def loss(out: Tensor, w: Tensor) -> Tensor:
        return (out.sin().sum(1) * w).sum()

    return Case(nn.Linear(d, 4).double(), (normal(b, d),), loss, (weight,))


# --- operations of one's own ------------------------------------------------------------------


@CASES.named("one column changed in place")  # functorch 381
def _column(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x[:, 0] += 3
        x[:, 1] *= x[:, 2].detach().sign()
        return m.b(x)

    return Case(Calls(call, a=nn.Linear(d, d), b=nn.Linear(d, 2)), (normal(b, d),))


@CASES.named("two slices of one tensor, weighed and added")  # BackPACK 321
def _weighed(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        weights = m.a(x[:, : t - 1].reshape(-1, d)).view(-1, t - 1)
        values = m.b(x[:, 1:].reshape(-1, d)).view(-1, t - 1, 3)
        return (weights.softmax(1).unsqueeze(-1) * values).sum(1)

    return Case(Calls(call, a=nn.Linear(d, 1), b=nn.Linear(d, 3)), (normal(b, t, d),))


@CASES.named("images with a dimension of augmentations")  # Opacus 245
def _augmented(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = m.conv(x.flatten(0, 1)).relu().mean((-1, -2))
        return m.head(h).unflatten(0, x.shape[:2]).mean(1)

    return Case(
        Calls(call, conv=nn.Conv2d(3, 4, 2), head=nn.Linear(4, 2)), (normal(b, t, 3, 4, 4),)
    )


@CASES.named("particles of one example that see each other")  # functorch 296
def _particles(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True).repeat(1, t, 1)
        return m.b(m.a(torch.cat((x, mean), -1)).tanh()).transpose(1, 2) @ x

    return Case(Calls(call, a=nn.Linear(2 * d, d), b=nn.Linear(d, t)), (normal(b, t, d),))


@CASES.named("as many steps as each example needs")  # functorch 257
def _halting(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        return torch.stack([m.head(_settled(m, row)) for row in x])

    model = Calls(call, a=nn.Linear(d, d), b=nn.Linear(d, d), head=nn.Linear(d, 2))
    return Case(model, (normal(b, d),))


def _settled(m: Any, row: Tensor) -> Tensor:
    h = m.a(row)
    for _ in range(4):
        if h.norm() < 0.5:
            break
        h = 0.5 * m.b(h).tanh()
    return h


@CASES.named("weight kept orthogonal, of unit norm, and scaled")  # PyTorch forum 141472
def _parametrised(b: int, t: int, d: int) -> Case:
    model = nn.Sequential(
        parametrizations.orthogonal(nn.Linear(d, d)),
        parametrizations.weight_norm(nn.Linear(d, d)),
        parametrizations.spectral_norm(nn.Linear(d, 2)),
    )
    return Case(model.double().eval(), (normal(b, t, d),))


@CASES.named("weights made from a low rank beside frozen ones")  # Opacus 685
def _low_rank(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        return m.frozen(x) + m.up(m.down(x)) * 0.5 + x @ (m.a @ m.b).T

    parts = {
        "frozen": nn.Linear(d, d),
        "down": nn.Linear(d, 1, False),
        "up": nn.Linear(1, d, False),
    }
    model = Calls(call, **parts, a=table(d, 2), b=table(2, d))
    model.frozen.requires_grad_(False)
    return Case(model, (normal(b, t, d),))


@CASES.named("buffer that counts calls")  # PyTorch 96655
def _buffers(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        return m.a(x) * m.scale

    model = Calls(call, a=nn.Linear(d, 2))
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    model.register_buffer("scale", torch.tensor([2.0, 0.5], dtype=torch.float64))
    return Case(model, (normal(b, d),))


@CASES.named("recomputed layers")  # Opacus 740, PyTorch 71124
def _recomputed(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    layers = [nn.TransformerEncoderLayer(d, 2, d, 0.0, batch_first=True) for _ in range(2)]
    return Case(Calls(call, layers=nn.ModuleList(layers)), (normal(b, t, d),))


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_use_of_a_report(name: str, size: Size) -> None:
    torch.manual_seed(len(name))
    assert_own(CASES[name](*size))


# --- several forward and backward passes ------------------------------------------------------


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def variances(model: nn.Module, x: Tensor, loss: Loss) -> list[Tensor]:
    rows = one_by_one(Case(model, (x,), loss)).values()
    return [len(r) * r.var(0) for r in rows]


def assert_variances(model: nn.Module, *parts: list[Tensor]) -> None:
    """Demand the sum of several mini-batches' variances."""
    for p, *own in zip(model.parameters(), *parts, strict=True):
        torch.testing.assert_close(p.grad_var, sum(own), rtol=1e-9, atol=1e-12)


@both
def test_two_mini_batches_forward_then_both_backward(verified: bool) -> None:
    """Opacus 31, 65: true and generated examples, each with a backward pass of its own."""
    torch.manual_seed(0)
    model, true, made = dense(), normal(4, 3), normal(4, 3)
    first, second = lambda out: out.sin().sum(), lambda out: out.square().sum()
    known = variances(model, true, first), variances(model, made, second)
    model = model if verified else warmed(model, true)
    with within_batch_variance(model):
        one, two = first(model(true)), second(model(made))
        one.backward()
        two.backward()
    assert_variances(model, *known)


@both
def test_two_losses_of_one_graph_with_gradients_cleared_between(verified: bool) -> None:
    """BackPACK 220, Opacus 409."""
    torch.manual_seed(0)
    model, x = dense(), normal(4, 3)
    known = variances(model, x, lambda out: out[:, 1].square().sum())
    model = model if verified else warmed(model, x)
    with within_batch_variance(model):
        out = model(x)
        out[:, 0].sin().sum().backward(retain_graph=True)
        model.zero_grad()
        out[:, 1].square().sum().backward()
    for p, expected in zip(model.parameters(), known, strict=True):
        torch.testing.assert_close(p.grad_var, expected)


@both
@pytest.mark.parametrize("recompute", [True, False])
def test_losses_of_one_graph_added_up_are_refused(verified: bool, recompute: bool) -> None:
    """BackPACK 220: the parts are of the same examples, so their variances do not add up."""
    torch.manual_seed(0)
    inner, x = dense(), normal(4, 3)
    again = lambda m, x: checkpoint(m.inner, x, use_reentrant=False)  # noqa: E731
    model = Calls(again if recompute else lambda m, x: m.inner(x), inner=inner)
    model = model if verified else warmed(model, x)
    with refused("inner.", "retain_graph=True", "zero_grad between"), within_batch_variance(model):
        for loss in model(x).sin().sum(1):
            loss.backward(retain_graph=True)


@both
def test_losses_of_two_branches_added_up_are_refused(verified: bool) -> None:
    """Each loss goes back through its own use of the layer, and the examples are the same."""
    torch.manual_seed(0)
    x = normal(4, 3)
    model = Calls(lambda m, x: [m.a(x), m.a(x.sin())], a=nn.Linear(3, 2))
    model = model if verified else warmed(model, x)
    with refused("a.", "retain_graph=True", "zero_grad between"), within_batch_variance(model):
        for out in model(x):
            out.sin().sum().backward()


@both
@pytest.mark.parametrize("last", ["linear", "product", "convolution", "recurrence", "norm"])
def test_a_penalty_on_gradients_is_refused(last: str, verified: bool) -> None:
    """Opacus 31: what penalises a gradient uses the parameters where no operation shows it."""
    torch.manual_seed(0)
    x = normal(4, 3, 3)
    model = {
        "linear": lambda: nn.Linear(3, 2),
        "product": lambda: Calls(lambda m, x: torch.einsum("bti,ij->btj", x, m.w), w=table(3, 2)),
        "convolution": lambda: nn.Conv1d(3, 2, 2),
        "recurrence": lambda: Calls(lambda m, x: m.gru(x)[0], gru=nn.GRU(3, 2, batch_first=True)),
        "norm": lambda: nn.LayerNorm(3),
    }[last]().double()
    model = model if verified else warmed(model, x)
    with refused("create_graph=True", "micro_batch_variance"), within_batch_variance(model):
        x.requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (out.sum() + (slope.flatten(1).norm(dim=1) - 1).square().sum()).backward()


def test_gradients_of_inputs_that_are_only_looked_at() -> None:
    """Saliency beside training, with a graph that nobody goes back through."""
    torch.manual_seed(0)
    model, x = dense(), normal(4, 3)
    known = variances(model, x, bent)
    x.requires_grad_()
    with within_batch_variance(model):
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        bent(out).backward()
    assert slope.shape == x.shape
    assert_variances(model, known)


def test_gradients_cleared_between_forward_and_backward() -> None:
    """Opacus 409."""
    torch.manual_seed(0)
    model, x = dense(), normal(4, 3)
    known = variances(model, x, bent)
    with within_batch_variance(model):
        loss = bent(model(x))
        model.zero_grad()
        loss.backward()
    assert_variances(model, known)


def test_one_loss_for_each_output_in_a_list() -> None:
    """BackPACK 212."""
    torch.manual_seed(0)
    model, x = dense(), normal(4, 3)
    known = variances(model, x, bent)
    with within_batch_variance(model):
        losses = [bent(out) for out in model(x).unbind(1)]
        torch.autograd.backward(losses)
    assert_variances(model, known)


def test_several_forward_passes_of_one_loss() -> None:
    """Opacus 31: anchor, like and unlike through one network."""
    torch.manual_seed(0)
    model = Calls(
        lambda m, a, b, c: functional.triplet_margin_loss(
            m.inner(a), m.inner(b), m.inner(c), margin=9.0, reduction="none"
        ),
        inner=dense(),
    )
    assert_own(Case(model, (normal(4, 3), normal(4, 3), normal(4, 3))))


@pytest.mark.parametrize("recompute", [True, False])
def test_half_precision_around_the_forward_pass(recompute: bool) -> None:
    """Opacus 740, PyTorch 71124: activations in bfloat16, parameters and variance in float32."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))
    again = lambda m, x: checkpoint(m.inner, x, use_reentrant=False)  # noqa: E731
    model = Calls(again if recompute else lambda m, x: m.inner(x), inner=inner).float()
    x = torch.randn(6, 5, 8)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        return out.float().sin().sum()

    rows = []
    for k in range(len(x)):
        model.zero_grad()
        loss(model, x[k : k + 1]).backward()
        rows.append([p.grad for p in model.parameters()])
    model.zero_grad()
    with within_batch_variance(model):
        loss(model, x).backward()
    for p, *own in zip(model.parameters(), *rows, strict=True):
        each = torch.stack(own)
        error = float((p.grad_var - len(x) * each.var(0)).norm())
        assert p.grad_var.dtype == torch.float32
        assert error <= 0.03 * float(each.square().sum(0).norm())


# --- what no example has alone ------------------------------------------------------------------


def _offsets(m: Any, x: Tensor) -> Tensor:
    return m.bag(x, torch.tensor([0, 1, 3, 4]))


Refusal = tuple[Callable[[], nn.Module], Callable[[], Tensor], type[SvagError], str]
REFUSED: dict[str, Refusal] = {
    # Opacus 518
    "bags by offsets": (
        lambda: Calls(_offsets, bag=nn.EmbeddingBag(7, 3)),
        lambda: torch.arange(5),
        PerExampleError,
        "embedding_bag.*offsets",
    ),
    # Haiku 786, BackPACK 239
    "batch norm between layers": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double(),
        lambda: normal(4, 3),
        PerExampleError,
        "batch normalisation '1' in training mode",
    ),
    # Opacus 161, 530
    "no example": (dense, lambda: normal(0, 3), TooFewSamples, "0 examples"),
    # PyTorch 3506
    "sparse table": (
        lambda: nn.Embedding(7, 3, sparse=True).double(),
        lambda: words(4, 2),
        SparseGradient,
        r"embedding\(sparse=True\)",
    ),
    "table scaled by the words' counts": (
        lambda: nn.Embedding(7, 3, scale_grad_by_freq=True).double(),
        lambda: words(4, 2),
        PerExampleError,
        r"embedding\(scale_grad_by_freq=True\)",
    ),
    # Opacus 158
    "attention with the examples second, undeclared": (
        lambda: Calls(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2)),
        lambda: normal(4, 4, 4),
        PerExampleError,
        "mixe[sd]",
    ),
    # BackPACK 212
    "loss of all pairs": (
        lambda: Calls(lambda m, x: (h := m.inner(x)) @ h.T, inner=dense()),
        lambda: normal(4, 3),
        PerExampleError,
        "matmul mixes the examples",
    ),
    # BackPACK 2
    "scaled by the norm of the mini-batch": (
        lambda: Calls(_scaled, a=nn.Linear(3, 3), b=nn.Linear(3, 2)),
        lambda: normal(4, 3),
        PerExampleError,
        "mixe[sd]|mixes examples",
    ),
}


def _scaled(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) / m.a(x).detach().norm())


@pytest.mark.parametrize("name", REFUSED)
def test_use_of_a_report_is_refused_by_name(name: str) -> None:
    make, data, kind, message = REFUSED[name]
    torch.manual_seed(0)
    model, x = make(), data()
    with pytest.raises(kind, match=message), within_batch_variance(model):
        bent(model(x)).backward()
