"""Gradients that are zero by symmetry in every example: what is left of them is rounding.

An attention's keys may be shifted, a softmax's logits too, and a layer norm's input may be scaled.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svag.variance import within_batch_variance
from tests.variance.alone import bent, normal
from tests.variance.attribution import Calls, table


def _fused(m: Any, x: Tensor) -> Tensor:
    weight = torch.cat((m.q.weight, m.k.weight, m.v.weight))
    q, k, v = functional.linear(x, weight, torch.cat((m.q.bias, m.b, m.v.bias))).chunk(3, -1)
    return functional.scaled_dot_product_attention(q, k, v)


def _scaled_bias(m: Any, x: Tensor) -> Tensor:
    k = functional.linear(x, m.k.weight, m.b * 2)
    return functional.scaled_dot_product_attention(m.q(x), k, m.v(x))


def _shared(m: Any, x: Tensor) -> Tensor:
    for _ in range(2):
        x = functional.scaled_dot_product_attention(m.q(x), x @ m.k.weight + m.b, x)
    return x


def _relative(m: Any, x: Tensor) -> Tensor:
    """A bias of the table of positions shifts all scores of a query alike (Transformer-XL)."""
    places = functional.linear(m.places, m.k.weight, m.b)
    return (m.q(x) @ places[: x.shape[1]].T).softmax(-1) @ m.v(x)


def _shifted(m: Any, x: Tensor) -> Tensor:
    return (m.v(x) + m.b[:1].expand(4)).log_softmax(-1)


def _normed(m: Any, x: Tensor) -> Tensor:
    return functional.layer_norm(m.v(x) * m.b[:1], (4,), eps=0.0)


CALLS: list[Callable[[Any, Tensor], Tensor]] = [
    _fused,
    _scaled_bias,
    _shared,
    _relative,
    _shifted,
    _normed,
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_is_no_missing_contribution(
    call: Callable[[Any, Tensor], Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Calls(call, **{name: nn.Linear(4, 4) for name in "qkv"}, b=table(4))
    model.register_buffer("places", normal(9, 4))
    model.to(dtype)
    for _ in range(20):  # of which the first is verified
        model.zero_grad()
        with within_batch_variance(model):
            bent(model(normal(4, 5, 4).to(dtype))).backward()
        rest = model.b.grad_var
        assert float(rest.sqrt().max()) <= 1e2 * torch.finfo(dtype).eps
