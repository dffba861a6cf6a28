"""Operations of public model libraries, each against its own examples.

Transformers 5.24, timm 1.0 and torchvision 0.29 were run whole, from small configurations; what
they do that nothing else here does is written out below.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.variance.alone import SIZES, Case, Cases, Size, assert_own, both, normal, warmed, words
from tests.variance.attribution import (
    Calls,
    assert_right,
    assert_right_or_refused,
    every_size,
    table,
    terms,
)

CASES = Cases()


@CASES.named("bias of words that are apart, slopes by name")  # Bloom
def _slopes(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        slopes = torch.arange(t, dtype=x.dtype).expand(len(x), 1, t) * 0.1
        q, k = m.q(x), m.k(x)
        scores = slopes.baddbmm(batch1=q, batch2=k.transpose(1, 2), beta=1.0, alpha=0.5)
        return scores.softmax(-1) @ m.v(x)

    return Case(Calls(call, **{n: nn.Linear(d, d) for n in "qkv"}), (normal(b, t, d),))


@CASES.named("rows of a fixed table at places that the words say")  # M2M100, LayoutLMv3
def _fixed_table(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        places = (x != 0).cumsum(1) * (x != 0)
        rows = m.fixed.index_select(0, places.view(-1)).view(*x.shape, d)
        return m.head(m.words(x) + rows)

    model = Calls(call, words=nn.Embedding(7, d), head=nn.Linear(d, 2))
    model.register_buffer("fixed", normal(t + 1, d))
    return Case(model, (words(b, t),))


@CASES.named("mask made from lengths by a mark at each end")  # Wav2Vec2, Hubert, WavLM
def _ends(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[:2], dtype=torch.long)
        mask[torch.arange(len(x)), lengths - 1] = 1
        mask = mask.flip([-1]).cumsum(-1).flip([-1]).bool()
        h = m.a(x)
        h[~mask] = 0
        return m.b(h.tanh()).masked_fill(~mask.unsqueeze(-1), 0)

    model = Calls(call, a=nn.Linear(d, d), b=nn.Linear(d, 2))
    return Case(model, (normal(b, t, d), torch.randint(1, t + 1, (b,))))


@CASES.named("overlapping windows laid over the memory")  # Longformer, LED
def _windows(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)[:, 1:]
        size, stride = list(h.size()), list(h.stride())
        size[1:2], stride[1:2] = [t - 2, 2], [stride[1], stride[1]]
        return m.b(h.as_strided(size, stride, h.storage_offset())).sum(2)

    return Case(Calls(call, a=nn.Linear(d, d), b=nn.Linear(d, 2)), (normal(b, t, d),))


@CASES.named("Fourier transforms of words and features")  # FNet, neural operators
def _fourier(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = torch.fft.fftn(m.a(x), dim=(1, 2)).real
        low = torch.fft.rfft(m.b(h), dim=1)[:, :2]
        return m.c(torch.fft.irfft(low, n=t, dim=1))

    return Case(Calls(call, **{n: nn.Linear(d, d) for n in "abc"}), (normal(b, t, d),))


@CASES.named("experts that some word has chosen, one after another")  # Mixtral, Qwen2-MoE, DeepSeek
def _experts(b: int, t: int, d: int) -> Case:
    def call(m: Any, x: Tensor) -> Tensor:
        h = x.reshape(-1, d)
        weights, chosen = m.router(h).softmax(-1).topk(2, -1)
        with torch.no_grad():
            mask = functional.one_hot(chosen, 3).permute(2, 1, 0)
            hit = torch.greater(mask.sum((-1, -2)), 0).nonzero()
        out = torch.zeros_like(h)
        for expert in hit:
            rank, word = torch.where(mask[expert[0]])
            one = functional.linear(h[word], m.up[expert[0]]).tanh()
            one = functional.linear(one, m.down[expert[0]]) * weights[word, rank, None]
            out.index_add_(0, word, one)
        return out.view(x.shape)

    model = Calls(call, router=nn.Linear(d, 3), up=table(3, d, d), down=table(3, d, d))
    return Case(model, (normal(b, t, d),))


@CASES.named("a learned bias that leaves the recomputed layer that made it")  # T5, DeBERTa-v2
def _bias_recomputed(b: int, t: int, d: int) -> Case:
    def layer(m: Any, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bias is None:
            bias = m.bias(m.buckets).permute(2, 0, 1).unsqueeze(0)
        q, k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (m.q, m.k, m.v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2), bias

    def call(m: Any, x: Tensor) -> Tensor:
        x, bias = checkpoint(layer, m, x, use_reentrant=False)
        return checkpoint(layer, m, x, bias, use_reentrant=False)[0]

    model = Calls(call, bias=nn.Embedding(2 * t, 2), **{n: nn.Linear(d, d) for n in "qkv"})
    model.register_buffer("buckets", torch.arange(t)[:, None] - torch.arange(t) + t)
    return Case(model, (normal(b, t, d),))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_operation_of_a_library(name: str, size: Size) -> None:
    torch.manual_seed(len(name))
    assert_own(CASES[name](*size))


@every_size
@both
def test_dropout_of_attention_with_a_learned_bias(size: Size, verified: bool) -> None:
    """T5: the dropout cannot be drawn again, so the bias must not need it."""
    torch.manual_seed(0)
    x, width = normal(*size), size[2]

    def call(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unsqueeze(1).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v, m.bias, 0.5)

    def seeded(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        return terms(x)(model)

    model = Calls(call, qkv=nn.Linear(width, 3 * width), bias=table(1, size[1], size[1]))
    assert_right(model if verified else warmed(model, x), seeded)


def test_steps_masked_by_numbers_of_numpy() -> None:
    """Wav2Vec2: the second run of the model draws the same mask, and leaves the generator alone."""
    x = normal(4, 5, 3)

    def call(m: Any, x: Tensor) -> Tensor:
        hidden = torch.from_numpy(np.random.rand(*x.shape[:2]) < 0.4)  # noqa: NPY002
        return m.b(torch.where(hidden.unsqueeze(-1), m.filler, m.a(x)))

    def seeded(model: nn.Module) -> Tensor:
        np.random.seed(0)  # noqa: NPY002
        return terms(x)(model)

    torch.manual_seed(0)
    model = Calls(call, a=nn.Linear(3, 3), b=nn.Linear(3, 2), filler=table(3))
    assert_right(model, seeded, check=True)


NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scatter": lambda h, i: torch.scatter(input=h, dim=1, index=i, src=h.sin()),
    "scatter_add": lambda h, i: torch.scatter_add(input=h, dim=1, index=i, src=h),
    "index_add": lambda h, i: torch.index_add(input=h, dim=1, index=i[0, :, 0], source=h),
    "index_copy": lambda h, i: torch.index_copy(input=h, dim=1, index=i[0, :, 0], source=h.sin()),
    "index_fill": lambda h, i: torch.index_fill(input=h, dim=1, index=i[0, :1, 0], value=0.0),
    "tril": lambda h, i: torch.tril(input=h),
    "sort": lambda h, i: torch.sort(input=h, dim=1).values,
    "gather": lambda h, i: torch.gather(input=h, dim=1, index=i),
    "baddbmm": lambda h, i: torch.baddbmm(input=h, batch1=h @ h.mT, batch2=h),
    "prelu": lambda h, i: functional.prelu(h, weight=torch.full((1,), 0.2, dtype=h.dtype)),
}


@every_size
@pytest.mark.parametrize("name", NAMED)
def test_arguments_given_by_name(name: str, size: Size) -> None:
    """An operation is followed, or refused by name, however its arguments are given."""
    b, t, d = size
    torch.manual_seed(0)
    places = torch.stack([torch.randperm(t) for _ in range(b * d)]).view(b, d, t).mT
    model = Calls(
        lambda m, x: m.b(NAMED[name](m.a(x), places)), a=nn.Linear(d, d), b=nn.Linear(d, 2)
    )
    assert_right_or_refused(model, terms(normal(*size)))
