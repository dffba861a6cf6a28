"""The backward pass of LSTM, GRU and RNN layers, which returns the gradients of the gates.

Since all states are known, the gates of all steps are recomputed by one matrix product. Each step
then takes one product with the recurrent weights and a few elementwise operations.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Weights(NamedTuple):
    """Weights of a layer and direction; biases or ``w_hr`` (projection) are None if it has none."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    def given(self) -> list[Tensor]:
        """Return the weights that are not None, in torch's order."""
        return [w for w in self if w is not None]


class Gates(NamedTuple):
    """Gradients by time step, ``(T, B, width)``, and the factors of the weights' contributions.

    Attributes:
        by_input: gradients of the input weights' products, W_ih x.
        by_state: gradients of the recurrent weights' products, W_hh h; other values in a GRU only.
        inputs: the inputs x.
        states: the state before each step.
        start: gradients of the initial states.
        projected: (gradient of the projected state, state before the projection), or None.
    """

    by_input: Tensor
    by_state: Tensor
    inputs: Tensor
    states: Tensor
    start: tuple[Tensor, ...]
    projected: tuple[Tensor, Tensor] | None = None


def backward_lstm(
    weights: Weights, x: Tensor, start: Sequence[Tensor], out: Tensor, d_out: Tensor, d_cell: Tensor
) -> Gates:
    """Run the backward pass of an LSTM layer.

    The layer is c_t = f c_(t-1) + i g and h_t = o tanh c_t (times W_hr with a projection).

    Args:
        weights: weights of the layer.
        x: inputs, ``(T, B, in)``.
        start: initial states h_0 and c_0, ``(B, width)`` each.
        out: outputs h_t, ``(T, B, width)``.
        d_out: gradients of the outputs, ``(T, B, width)``.
        d_cell: gradient of the last cells, ``(B, width)``, or ``(T, B, width)`` if sequences end at
            different steps.
    """
    h0, c0 = start
    states, pre = _preactivations(weights, x, h0, out)
    i, f, g, o = pre.chunk(4, -1)
    i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
    cells = [c0]
    for forget, new in zip(f, i * g, strict=True):
        cells.append(torch.addcmul(new, forget, cells[-1]))
    cell = torch.stack(cells[1:])
    before, squashed = torch.stack(cells[:-1]), torch.tanh(cell)
    slope = o * (1 - squashed.square())
    factors = torch.stack(
        (g * i * (1 - i), before * f * (1 - f), i * (1 - g * g), squashed * o * (1 - o)), -2
    )
    deltas = torch.empty_like(pre)
    blocks = deltas.unflatten(-1, (4, -1))
    each_step = d_cell.dim() == 3
    d_state, d_c = d_out[-1], d_cell[-1] if each_step else d_cell
    d_projected = torch.empty_like(d_out) if weights.w_hr is not None else d_out
    for t in range(len(x) - 1, -1, -1):
        if weights.w_hr is not None:
            d_projected[t] = d_state
            d_state = d_state @ weights.w_hr
        d_c = torch.addcmul(d_c, d_state, slope[t])
        torch.mul(factors[t, :, :3], d_c.unsqueeze(1), out=blocks[t, :, :3])
        torch.mul(factors[t, :, 3], d_state, out=blocks[t, :, 3])
        d_c = d_c * f[t]
        d_state = deltas[t] @ weights.w_hh
        if t:
            d_state += d_out[t - 1]
            if each_step:
                d_c += d_cell[t - 1]
    projected = None if weights.w_hr is None else (d_projected, o * squashed)
    return Gates(deltas, deltas, x, states, (d_state, d_c), projected)


def backward_gru(
    weights: Weights, x: Tensor, start: Sequence[Tensor], out: Tensor, d_out: Tensor, _: Tensor
) -> Gates:
    """Run the backward pass of a GRU layer, h_t = (1 - z) n + z h_(t-1), n = tanh(n_x + r n_h).

    Args:
        weights: weights of the layer.
        x: inputs, ``(T, B, in)``.
        start: initial state h_0, ``(B, width)``.
        out: outputs h_t, ``(T, B, width)``.
        d_out: gradients of the outputs, ``(T, B, width)``.
    """
    states = torch.cat((start[0].unsqueeze(0), out[:-1]))
    by_x = functional.linear(x, weights.w_ih, weights.b_ih)
    by_h = functional.linear(states, weights.w_hh, weights.b_hh)
    width = out.shape[-1]
    r, z = torch.sigmoid(by_x[..., : 2 * width] + by_h[..., : 2 * width]).chunk(2, -1)
    n_h = by_h[..., 2 * width :]
    n = torch.tanh(by_x[..., 2 * width :] + r * n_h)
    new = (1 - z) * (1 - n * n)
    reset, update = new * n_h * r * (1 - r), (states - n) * z * (1 - z)
    factors = torch.stack((reset, update, new * r), -2)
    deltas = torch.empty_like(by_h)
    d_states, d_state = torch.empty_like(out), d_out[-1]
    for t in range(len(x) - 1, -1, -1):
        d_states[t] = d_state
        torch.mul(factors[t], d_state.unsqueeze(1), out=deltas[t].unflatten(-1, (3, -1)))
        d_state = torch.addmm(d_state * z[t], deltas[t], weights.w_hh)
        if t:
            d_state += d_out[t - 1]
    by_input = torch.cat((deltas[..., : 2 * width], d_states * new), -1)
    return Gates(by_input, deltas, x, states, (d_state,))


def _backward_simple(slope: Callable[[Tensor], Tensor]) -> Callable[..., Gates]:
    """Return the backward pass of h_t = phi(...), given phi' as a function of h_t."""

    def backward(
        weights: Weights, x: Tensor, start: Sequence[Tensor], out: Tensor, d_out: Tensor, _: Tensor
    ) -> Gates:
        states = torch.cat((start[0].unsqueeze(0), out[:-1]))
        slopes, deltas = slope(out), torch.empty_like(out)
        d_state = d_out[-1]
        for t in range(len(x) - 1, -1, -1):
            torch.mul(d_state, slopes[t], out=deltas[t])
            d_state = deltas[t] @ weights.w_hh
            if t:
                d_state += d_out[t - 1]
        return Gates(deltas, deltas, x, states, (d_state,))

    return backward


BACKWARD: dict[str, Callable[..., Gates]] = {
    "lstm": backward_lstm,
    "gru": backward_gru,
    "tanh": _backward_simple(lambda h: 1 - h * h),
    "relu": _backward_simple(lambda h: (h > 0).to(h.dtype)),
}


def _preactivations(weights: Weights, x: Tensor, h0: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    states = torch.cat((h0.unsqueeze(0), out[:-1]))
    pre = functional.linear(x, weights.w_ih, weights.b_ih)
    return states, pre.add_(functional.linear(states, weights.w_hh, weights.b_hh))
