"""LSTMCell, GRUCell and RNNCell, written out as operations that have rules.

A cell called T times makes T uses of its weights; their products are concatenated before they are
multiplied, so that it costs what a layer over T positions does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from svag.variance.interception import Call, Interception, Rule
from svag.variance.layout import CONSTANT, mark, mark_of


def _lstm(x: Tensor, state: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
    h, c = state
    by_x, by_h = _sides(x, h, *weights)
    i, f, g, o = (by_x + by_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    by_x, by_h = _sides(x, h, *weights)
    r_x, z_x, n_x = by_x.chunk(3, -1)
    r_h, z_h, n_h = by_h.chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return n + z * (h - n)


def _tanh(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    by_x, by_h = _sides(x, h, *weights)
    return (by_x + by_h).tanh()


def _relu(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    by_x, by_h = _sides(x, h, *weights)
    return (by_x + by_h).relu()


def _sides(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return functional.linear(x, w_ih, b_ih), functional.linear(h, w_hh, b_hh)


def _rule(cell: Callable[..., Any]) -> Rule:
    def rule(mode: Interception, _: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        x, state, *_weights = args
        where = mark_of(x)
        for part in (state,) if isinstance(state, Tensor) else state:
            fresh = mark_of(part) in (None, CONSTANT) and mode.recorder.source_of(part) is None
            if fresh and where is not None and part.shape[0] == x.shape[0]:
                mark(part, where)
        with mode:
            return cell(*args, **kwargs)

    return rule


RULES: dict[Call, Rule] = {
    torch.lstm_cell: _rule(_lstm),
    torch.gru_cell: _rule(_gru),
    torch.rnn_tanh_cell: _rule(_tanh),
    torch.rnn_relu_cell: _rule(_relu),
}
