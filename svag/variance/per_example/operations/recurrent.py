"""The rule for LSTM, GRU and RNN: torch's fast forward pass, and svag's own backward pass.

In the forward pass each layer and direction runs torch's own kernel without a graph. svag's
backward pass (:mod:`~svag.variance.per_example.contributions.recurrent_backward`) returns the
gradients of the gates, which torch's kernel does not. These and the inputs and states give the
weights' contributions, as in a dense layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions, Direct, Products
from svag.variance.per_example.contributions.recurrent_backward import BACKWARD, Gates, Weights
from svag.variance.per_example.operations.expanded import placed_state
from svag.variance.per_example.owners.marks import mark, mark_of
from svag.variance.per_example.owners.placement import (
    Layout,
    Packed,
    Scattered,
    Single,
    Where,
    with_rows_along,
)
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.hooked import view_differs
from svag.variance.per_example.recording.interception import Interception, Rule
from svag.variance.per_example.recording.taps import Gradients, Site, Use, once

KINDS: dict[Call, str] = {
    torch.lstm: "lstm",
    torch.gru: "gru",
    torch.rnn_tanh: "tanh",
    torch.rnn_relu: "relu",
}
_RUN: dict[str, Callable[..., Any]] = {kind: func for func, kind in KINDS.items()}


def _back(
    kind: str,
    weights: Weights,
    packed: Packed | None,
    x: Tensor,
    start: Sequence[Tensor],
    out: Tensor,
    d_out: Tensor,
    d_last: Sequence[Tensor],
) -> Gates:
    """Run the backward pass of a layer, from the gradients of its output and its last states."""
    if packed is None:
        d_out = d_out.clone()
        d_out[-1] += d_last[0]
        return BACKWARD[kind](weights, x, start, out, d_out, d_last[-1])
    ends = packed.ends(x.device).to(x.dtype)
    d_out = d_out * packed.mask(x.device).unsqueeze(-1) + ends * d_last[0]
    return BACKWARD[kind](weights, x, start, out, d_out, ends * d_last[-1])


def _run(
    kind: str, weights: Weights, packed: Packed | None, x: Tensor, start: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Run torch's own layer on ``(T, B, width)``."""
    hidden = [s.unsqueeze(0) for s in start]
    given = hidden if kind == "lstm" else hidden[0], weights.given(), weights.b_ih is not None
    if packed is None:
        out, *last = _RUN[kind](x, *given, 1, 0.0, False, False, False)
        return out, last
    steps, *last = _RUN[kind](packed.pack(x), packed.sizes, *given, 1, 0.0, False, False)
    return packed.pad(steps), last


class Watch(torch.autograd.Function):
    """Pass the results of a layer on unchanged; make the contributions in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: str,
        site: Site,
        weights: Weights,
        packed: Packed | None,
        x: Tensor,
        n: int,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the output and the last states.

        Args:
            ctx: autograd's context.
            kind: ``"lstm"``, ``"gru"``, ``"tanh"`` or ``"relu"``.
            site: the operation.
            weights: the layer's weights, detached.
            packed: mark of packed sequences; None for sequences of one length.
            x: inputs, ``(T, B, in)``.
            n: number of initial states.
            rest: initial states, then the output and the last states.
        """
        start, (out, *last) = rest[:n], rest[n:]
        ctx.kind, ctx.site, ctx.weights, ctx.packed, ctx.n = kind, site, weights, packed, n
        ctx.save_for_backward(x, out, *start)
        # autograd refuses changes in place of views that a function returns.
        return tuple(t.clone() for t in (out, *last))

    @staticmethod
    @once
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> Gradients:
        """Return the gradients unchanged.

        Args:
            ctx: autograd's context.
            d_out: gradients of the output, ``(T, B, width)``.
            d_last: gradients of the last states.
        """
        if not ctx.site.idle:
            x, out, *start = ctx.saved_tensors
            with torch._C.DisableTorchFunction():
                gates = _back(ctx.kind, ctx.weights, ctx.packed, x, start, out, d_out, d_last)
                _gradients(ctx.site, gates, d_out)
        return (*[None] * (6 + ctx.n), d_out, *d_last)


class Layer(torch.autograd.Function):
    """One layer in one direction, time first."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: str,
        site: Site,
        weights: Weights,
        packed: Packed | None,
        x: Tensor,
        h0: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the output and the last states.

        Args:
            ctx: autograd's context.
            kind: ``"lstm"``, ``"gru"``, ``"tanh"`` or ``"relu"``.
            site: the operation.
            weights: the layer's weights, detached.
            packed: mark of packed sequences; None for sequences of one length.
            x: inputs, ``(T, B, in)``.
            h0: initial state, ``(B, width)``.
            rest: for an LSTM the initial cells; then the parameters, for autograd.
        """
        start = (h0, rest[0]) if kind == "lstm" else (h0,)
        out, last = _run(kind, weights, packed, x, start)
        ctx.kind, ctx.site, ctx.weights, ctx.packed = kind, site, weights, packed
        ctx.save_for_backward(x, out, *start)
        return (out, *(s.squeeze(0).clone() for s in last))

    @staticmethod
    @once
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> Gradients:
        """Return the gradients of the input, the initial states and the parameters.

        Args:
            ctx: autograd's context.
            d_out: gradients of the output, ``(T, B, width)``.
            d_last: gradients of the last states.
        """
        x, out, *start = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            gates = _back(ctx.kind, ctx.weights, ctx.packed, x, start, out, d_out, d_last)
            d_x = gates.by_input @ ctx.weights.w_ih if ctx.needs_input_grad[4] else None
            return (*[None] * 4, d_x, *gates.start, *_gradients(ctx.site, gates, d_out))


def _gradients(site: Site, gates: Gates, delta: Tensor) -> list[Tensor]:
    """Give each weight's contributions to the recorder; return sums that replace its gradient."""
    site.recorder.refuse_reentrant(site)
    where = site.where

    def by_example(steps: Tensor) -> Tensor:
        if isinstance(where, Packed):
            return where.by_example(steps)
        return where.examples_first(steps).flatten(1, 2)

    by_input, by_state = by_example(gates.by_input), by_example(gates.by_state)
    make: tuple[Callable[[], Contributions], ...] = (
        lambda: Products(by_input, by_example(gates.inputs)),
        lambda: Products(by_state, by_example(gates.states)),
        lambda: Direct(by_input.sum(1)),
        lambda: Direct(by_state.sum(1)),
        lambda: Products(*map(by_example, gates.projected or ())),
    )
    result: list[Tensor] = []
    for use in site.uses:
        site.recorder.note_terms(site, use, delta, [gates.inputs])
        result += site.recorder.take(site, use, use.make(make))
    return result


def _place(n: int) -> Callable[..., Contributions]:
    """Return the factory of the n-th weight, which takes those of all weights."""
    return lambda make: make[n]()


def _rule(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run the layers one after the other, each with its own backward pass."""
    if kwargs or len(args) != 9:
        raise PerExampleError(
            f"{func.__name__} was called in a way that torch.nn's modules do not; use them, or "
            "svag.micro_batch_variance"
        )
    if not isinstance(args[3], bool):
        data, sizes, hidden, *rest = args
        return _packed(mode, func, data, sizes, hidden, Stack(*rest))
    x, hidden, *rest, batch_first = args
    if x.dim() != 3:
        raise PerExampleError(
            f"{name_of(func)} was given an input of shape {tuple(x.shape)}; give (batch, time, "
            "features) or (time, batch, features)"
        )
    found = with_rows_along(mode.where_of(x, func), x, 0 if batch_first else 1)
    where = _time_first(found, batch_first)
    x = x.transpose(0, 1) if batch_first else x
    x, last = _layers(mode, func, x, hidden, Stack(*rest), where, None)
    return _marked(x, last, where, batch_first)


class Stack(NamedTuple):
    """The arguments of torch's functions after data and states, in their order."""

    flat: Sequence[Tensor]
    has_bias: bool
    layers: int
    dropout: float
    training: bool
    both: bool


def _packed(
    mode: Interception, func: Call, data: Tensor, sizes: Tensor, hidden: Any, stack: Stack
) -> tuple[Tensor, ...]:
    """Run the layers on sequences of several lengths."""
    packed = mark_of(data)
    if not isinstance(packed, Packed) or not torch.equal(packed.sizes, sizes):
        raise PerExampleError(
            "a recurrent layer was given a packed sequence, and which of its steps belong to which "
            "example is not clear; pack inside the model with torch.nn.utils.rnn, or use "
            "svag.micro_batch_variance"
        )
    where = packed.last_states()
    x, last = _layers(mode, func, packed.pad(data), hidden, stack, where, packed)
    out = packed.pack(x)
    mark(out, packed)
    return (out, *_stacked(last, where))


def _layers(
    mode: Interception,
    func: Call,
    x: Tensor,
    hidden: Any,
    stack: Stack,
    where: Layout | Scattered,
    packed: Packed | None,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Return the output ``(T, B, width)`` and the last states of each layer and direction."""
    kind = KINDS[func]
    starts = [placed_state(mode, s, where) for s in (hidden if kind == "lstm" else [hidden])]
    directions = 2 if stack.both else 1
    size = len(stack.flat) // (stack.layers * directions)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(stack.layers):
        outs = []
        for d in range(directions):
            n = layer * directions + d
            weights = _weights(stack.flat[n * size : (n + 1) * size], stack.has_bias)
            start = [s[n] for s in starts]
            out, *ends = _one(mode, kind, x, start, weights, bool(d), packed or where)
            outs.append(out)
            last.append(tuple(ends))
        x = torch.cat(outs, -1) if stack.both else outs[0]
        if stack.dropout and stack.training and layer < stack.layers - 1:
            steps = x if packed is None else packed.pack(x)
            steps = functional.dropout(steps, stack.dropout, True)
            x = steps if packed is None else packed.pad(steps)
    return x, last


def _time_first(where: Layout | Scattered | Single, batch_first: bool) -> Layout | Scattered:
    if not isinstance(where, Single) and where.dim == (0 if batch_first else 1):
        return where.at(1)
    place = "in one dimension" if isinstance(where, Single) else f"along dimension {where.dim}"
    raise PerExampleError(
        f"a recurrent layer with batch_first={batch_first} was given the examples {place}; pass "
        f"batch_dim={0 if batch_first else 1} to within_batch_variance, or set "
        f"batch_first={not batch_first}"
    )


def _weights(flat: Sequence[Tensor], has_bias: bool) -> Weights:
    """Name the weights of a layer and direction, which torch gives in one list."""
    every = [*flat] if has_bias else [*flat[:2], None, None, *flat[2:]]
    return Weights(*every, *[None] * (5 - len(every)))


def _one(
    mode: Interception,
    kind: str,
    x: Tensor,
    start: Sequence[Tensor],
    weights: Weights,
    reverse: bool,
    where: Layout | Scattered | Packed,
) -> tuple[Tensor, ...]:
    """Run a layer in one direction; return its output and its last states."""
    packed = where if isinstance(where, Packed) else None
    turn = (lambda t: t.flip(0)) if packed is None else packed.backwards
    sources = [mode.recorder.source_of(w) for w in weights]
    replaces = all(mode.replaces(w, where) for w, s in zip(weights, sources, strict=True) if s)
    frozen = Weights(*(w if w is None else w.detach() for w in weights))  # type: ignore[arg-type]
    uses = [Use(source, _place(n), replaces) for n, source in enumerate(sources) if source]
    site = Site(mode.recorder, uses, where)
    x = turn(x) if reverse else x
    if replaces:
        inputs = kind, site, frozen, packed, x, *start, *site.replaced
        out, *last = Layer.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        out, ends = _run(kind, weights, packed, x, start)
        saved, ends = [s.detach() for s in start], [e.squeeze(0) for e in ends]
        seen = kind, site, frozen, packed, x.detach(), len(start), *saved, out, *ends
        out, *last = Watch.apply(*seen)  # type: ignore[no-untyped-call]
    return (turn(out) if reverse else out, *last)


def _marked(
    out: Tensor, last: list[tuple[Tensor, ...]], where: Layout | Scattered, batch_first: bool
) -> tuple[Tensor, ...]:
    result = (
        out.transpose(0, 1) if batch_first else out
    ).clone()  # the user may change it in place
    view_differs(result)
    mark(result, where.at(0 if batch_first else 1))
    return (result, *_stacked(last, where))


def _stacked(last: list[tuple[Tensor, ...]], where: Where) -> list[Tensor]:
    """Return the last states, ``(layers * directions, B, width)`` each."""
    ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
    for end in ends:
        mark(end, where)
    return ends


RULES: dict[Call, Rule] = dict.fromkeys(KINDS, _rule)
