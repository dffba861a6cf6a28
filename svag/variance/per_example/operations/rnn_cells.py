"""Rules for LSTMCell, GRUCell and RNNCell, which are run as operations that have rules.

A cell that is called T times uses its weights T times. The factors of these products are
concatenated before they are multiplied, so that the cost is that of a layer over T positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.marks import mark, mark_of
from svag.variance.per_example.owners.placement import CONSTANT, IS_PLACED, Layout
from svag.variance.per_example.recording.functions import Call
from svag.variance.per_example.recording.interception import Interception, Rule
from svag.variance.per_example.structures import tensors_in

Cell: TypeAlias = Callable[[Tensor, Tensor, Any], Any]


def _lstm(by_x: Tensor, by_h: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    i, f, g, o = (by_x + by_h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(by_x: Tensor, by_h: Tensor, h: Tensor) -> Tensor:
    r_x, z_x, n_x = by_x.chunk(3, -1)
    r_h, z_h, n_h = by_h.chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return n + z * (h - n)


def _tanh(by_x: Tensor, by_h: Tensor, _: Tensor) -> Tensor:
    return (by_x + by_h).tanh()


def _relu(by_x: Tensor, by_h: Tensor, _: Tensor) -> Tensor:
    return (by_x + by_h).relu()


def _beside(mode: Interception, x: Tensor, state: Any) -> Any:
    """Give a constant state the mark of the input, since the cell combines them row by row."""
    if not isinstance(state, Tensor):
        return tuple(_beside(mode, x, part) for part in state)
    where = mark_of(x)
    free = state_of(state) is CONSTANT and mode.recorder.source_of(state) is None
    if not free or not isinstance(where, IS_PLACED) or state.shape[:-1] != x.shape[:-1]:
        return state
    alias = state.view_as(state)
    mark(alias, where)
    return alias


def _rule(cell: Cell) -> Rule:
    def rule(mode: Interception, _: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        x, state, w_ih, w_hh, *biases = (*args, *kwargs.values())
        b_ih, b_hh = biases or (None, None)
        state = _beside(mode, x, state)
        h = state if isinstance(state, Tensor) else state[0]
        where = mark_of(x)
        with mode:
            by_x = functional.linear(x, w_ih, b_ih)
            by_h = functional.linear(h, w_hh, b_hh)
            if not _in_step(where, (by_x, by_h, *tensors_in((state,)))):
                return cell(by_x, by_h, state)
        out = cell(by_x, by_h, state)  # row by row, so results have the mark of the input
        for tensor in tensors_in((out,)):
            mark(tensor, where)  # type: ignore[arg-type]
        return out

    return rule


def _in_step(where: object, tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors have the same mark as the input, with the examples along the rows."""
    return isinstance(where, Layout) and all(mark_of(t) == where for t in tensors)


RULES: dict[Call, Rule] = {
    torch.lstm_cell: _rule(_lstm),
    torch.gru_cell: _rule(_gru),
    torch.rnn_tanh_cell: _rule(_tanh),
    torch.rnn_relu_cell: _rule(_relu),
}
