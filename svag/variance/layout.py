"""Where the examples of a mini-batch stand in each tensor that a model computes.

Matching sizes would guess wrong as soon as a sequence is as long as the batch. So every tensor
that depends on the mini-batch carries a mark, set when the model is called and handed on from
the inputs of each operation to its outputs: exactly through views and reshapes, and elsewhere by
size where only one dimension fits.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

_MARK = "_svag_layout"
_UNDOES = "_svag_undoes"  # on indices that put examples back into their order

_RESHAPES = frozenset(
    {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel"}
    | {"reshape_as", "view_as"}
)
_VIEWS = frozenset(
    {"transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "__get__"}
    | {"select", "narrow", "unbind", "split", "chunk", "tensor_split", "split_with_sizes"}
    | {"expand", "__getitem__"}
)

_REDUCTIONS = frozenset(
    {"sum", "mean", "prod", "amax", "amin", "max", "min", "median", "logsumexp", "norm", "std"}
    | {"var", "all", "any", "argmax", "argmin"}
)


class Layout(NamedTuple):
    """The examples lie along ``dim``, whose size is ``outer * examples * inner``.

    A batch of sequences flattened to ``(B * T, ...)`` has outer 1 and inner T; flattened from
    time-major, ``(T * B, ...)``, it has outer T and inner 1. ``reordered`` counts how often the
    examples were put into another order, which is not undone.
    """

    dim: int
    examples: int
    outer: int = 1
    reordered: int = 0

    def split(self, tensor: Tensor) -> Tensor:
        """Split ``dim`` into three, the examples in the middle."""
        return cast(Tensor, tensor.unflatten(self.dim, (self.outer, self.examples, -1)))

    def examples_first(self, tensor: Tensor) -> Tensor:
        """Return ``(B, outer * inner, other dimensions)``."""
        parts = self.split(tensor)
        front: Tensor = parts.movedim((self.dim + 1, self.dim, self.dim + 2), (0, 1, 2))
        return front.flatten(1, 2)

    def one_by_one(self, tensor: Tensor) -> Tensor:
        """Return ``(B, *shape)``, ``shape`` being the tensor's with ``dim`` cut to one example."""
        return self.examples_first(tensor).movedim(1, self.dim + 1)


class Mark:
    """A state without a layout."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __repr__(self) -> str:
        return self.meaning


class Packed(Mark):
    """Sequences of several lengths, as :class:`torch.nn.utils.rnn.PackedSequence` holds them.

    Their steps lie one behind the other, ``(sum of lengths, ...)``: the first steps of all
    sequences, the longest first, then the second ones of those that have one.

    Args:
        sizes: the number of sequences that have each step, on the CPU.
        reordered: how often the examples were put into another order before.
    """

    def __init__(self, sizes: Tensor, reordered: int = 0) -> None:
        super().__init__("packed sequences")
        self.sizes, self.examples, self.reordered = sizes, int(sizes[0]), reordered
        self._places: Tensor | None = None

    @property
    def in_order(self) -> bool:
        """Whether it is known which sequence is which example's."""
        return self.reordered == (self._places is not None)

    def sort_out(self, places: Tensor | None) -> None:
        """Learn where each example's sequence was put; None says nothing."""
        if places is not None and self.reordered:
            self._places = places
            setattr(places, _UNDOES, _session)

    def last_states(self) -> Layout:
        """Return where the examples are in ``(layers, B, width)``."""
        return Layout(1, self.examples, reordered=self.reordered)

    @property
    def is_sorted(self) -> bool:
        """Whether the sequences are known to be in another order than the examples."""
        return self._places is not None

    def by_example(self, padded: Tensor) -> Tensor:
        """Turn ``(T, B, ...)`` into ``(B, T, ...)`` in the order of the examples."""
        rows = padded.transpose(0, 1)
        return rows if self._places is None else rows.index_select(0, self._places)

    def mask(self, device: torch.device) -> Tensor:
        """Return ``(T, B)``, true where a sequence has a step."""
        places = torch.arange(self.examples, device=device)
        return places < self.sizes.to(device).unsqueeze(1)

    def pad(self, steps: Tensor) -> Tensor:
        """Return ``(T, B, ...)``, 0 where a sequence has no step."""
        mask = self.mask(steps.device)
        padded = steps.new_zeros(*mask.shape, *steps.shape[1:])
        return padded.index_put((mask,), steps)

    def pack(self, padded: Tensor) -> Tensor:
        """Undo :meth:`pad`."""
        return padded[self.mask(padded.device)]

    def backwards(self, padded: Tensor) -> Tensor:
        """Turn every sequence of ``(T, B, width)`` round; twice is as before."""
        mask = self.mask(padded.device)
        steps = torch.arange(len(mask), device=padded.device).unsqueeze(1)
        turned = torch.where(mask, mask.sum(0) - 1 - steps, steps)
        return padded.gather(0, turned.unsqueeze(-1).expand_as(padded))

    def ends(self, device: torch.device) -> Tensor:
        """Return ``(T, B, 1)``, true at every sequence's last step."""
        mask = self.mask(device)
        after = torch.cat((mask[1:], mask.new_zeros(1, self.examples)))
        return (mask & ~after).unsqueeze(-1)


CONSTANT = Mark("independent of the mini-batch")
LOST = Mark("depends on the mini-batch, but no one dimension is known to hold the examples")


_sessions = itertools.count(1)
_session = 0


def forget_marks() -> None:
    """Let the marks of all tensors so far count no longer."""
    global _session
    _session = next(_sessions)


def mark(tensor: Tensor, where: Layout | Mark) -> None:
    """Note on the tensor where its examples are."""
    setattr(tensor, _MARK, (_session, where))


def in_order(where: Layout | Mark | None) -> bool:
    """Whether the examples are known to be in the order that the model was given them in."""
    if isinstance(where, Packed):
        return where.in_order
    return not (isinstance(where, Layout) and where.reordered)


def mark_of(tensor: Tensor) -> Layout | Mark | None:
    """Return the mark, or None for a tensor that came from outside."""
    session, where = getattr(tensor, _MARK, (0, None))
    return where if session == _session else None


def depends_on_batch(tensor: Tensor) -> bool:
    """Whether the tensor was computed from a mini-batch."""
    where = mark_of(tensor)
    return where is not None and where is not CONSTANT


def hand_on(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Iterable[Tensor],
    outputs: Sequence[Tensor],
) -> None:
    """Mark the outputs of an operation by the marks of its inputs."""
    marked = [(t, mark_of(t)) for t in inputs if depends_on_batch(t)]
    placed = [(t, where) for t, where in marked if isinstance(where, Layout)]
    name = getattr(func, "__name__", "")
    if any(isinstance(where, Packed) for _, where in marked):
        _hand_on_packed(name, args, marked, outputs)
        return
    if not placed:
        for out in outputs:
            mark(out, LOST if marked else CONSTANT)
        return
    source, where = max(placed, key=lambda pair: pair[0].dim())
    if name == "_pack_padded_sequence":
        fits = where.dim == (0 if args[2] else 1) and source.shape[where.dim] == where.examples
        mark(outputs[0], Packed(outputs[1], where.reordered) if fits else LOST)
        mark(outputs[1], CONSTANT)
    elif name in _RESHAPES:
        for out in outputs:
            mark(out, _through_reshape(source.shape, where, out.shape))
    elif name in _VIEWS and source is args[0] and not _indexes_by_values(name, args[1:]):
        _through_view(func, args, kwargs, source, where, list(outputs))
    elif name in _REDUCTIONS and (reduced := _reduced(source.dim(), args, kwargs)) is not None:
        for out in outputs:
            mark(out, _through_reduction(where, reduced, keeps=out.dim() == source.dim()))
    elif name == "stack":
        new = kwargs.get("dim", args[1] if len(args) > 1 else 0) % outputs[0].dim()
        mark(outputs[0], where._replace(dim=where.dim + (new <= where.dim)))
    elif name == "einsum" and isinstance(args[0], str):
        for out in outputs:
            mark(out, _through_einsum(args[0], _operands(args), source, where))
    else:
        if (order := _order(name, args, kwargs, source, where)) is not None:
            undoes = getattr(order, _UNDOES, None) == _session
            where = where._replace(reordered=where.reordered + (-1 if undoes else 1))
        for out in outputs:
            mark(out, _by_size(source.shape, where, out.shape))


def _order(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], source: Tensor, where: Layout
) -> Tensor | None:
    """Return the indices by which an operation puts examples into another order, if it does."""
    index: Any = None
    if name == "index_select":
        given = dict(zip(("input", "dim", "index"), args, strict=False)) | kwargs
        index = given["index"] if given["dim"] % source.dim() == where.dim else None
    elif name in ("flip", "roll"):
        return _turned(name, args, kwargs, source, where)
    elif name == "__getitem__" and source is args[0]:
        index = args[1]
        if isinstance(index, tuple):
            plain = not any(part is ... or part is None for part in index)
            index = index[where.dim] if plain and len(index) > where.dim else None
        elif where.dim != 0:
            index = None
    if isinstance(index, list | np.ndarray):
        index = torch.as_tensor(index)
    if not isinstance(index, Tensor) or index.dtype == torch.bool or index.dim() != 1:
        return None
    size = source.shape[where.dim]
    in_order = len(index) == size and torch.equal(index, torch.arange(size, device=index.device))
    return None if in_order else index


def _turned(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], source: Tensor, where: Layout
) -> Tensor | None:
    """Return the new order if a flip or a roll goes along the examples."""
    given = kwargs.get("dims", args[1:] if name == "flip" else args[2:])
    dims = [given] if isinstance(given, int) else list(given)
    if len(dims) == 1 and isinstance(dims[0], list | tuple):
        dims = list(dims[0])
    places = torch.arange(source.shape[where.dim])
    # A roll without dimensions goes through all elements.
    return places if not dims or where.dim in [dim % source.dim() for dim in dims] else None


_REORDERING = frozenset(
    {"flip", "flipud", "fliplr", "roll", "rot90", "sort", "argsort", "topk", "index_select"}
    | {"gather", "take_along_dim", "take", "t", "transpose", "swapaxes", "swapdims", "permute"}
    | {"movedim", "moveaxis", "cumsum", "cumprod", "logcumsumexp", "reshape", "view", "T"}
)


def _hand_on_packed(
    name: str,
    args: Sequence[Any],
    marked: Sequence[tuple[Tensor, Layout | Mark | None]],
    outputs: Sequence[Tensor],
) -> None:
    """Mark what is computed from packed sequences: padded ones, or as many steps as there were."""
    source, where = next(pair for pair in marked if isinstance(pair[1], Packed))
    assert isinstance(where, Packed)
    if name == "_pad_packed_sequence":
        place = Layout(0 if args[2] else 1, where.examples, reordered=where.reordered)
        mark(outputs[0], place)
        mark(outputs[1], place._replace(dim=0))
    elif name in _RECURRENT:
        mark(outputs[0], where)
        for state in outputs[1:]:
            mark(state, where.last_states())
    else:
        kept = all(other is where for _, other in marked) and _keeps_steps(name, args)
        for out in outputs:
            same = kept and out.dim() > 0 and out.shape[0] == source.shape[0]
            mark(out, where if same else LOST)


_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def _keeps_steps(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation leaves each step of packed sequences in its row."""
    if name == "__getitem__":
        first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        return first is ... or first == slice(None) if not isinstance(first, Tensor) else False
    return name not in _REORDERING


def _indexes_by_values(name: str, index: object) -> bool:
    """Whether an operation takes what tensors say; x[[2, 0, 1]] does, x.split([2, 1]) does not."""
    if isinstance(index, list | np.ndarray) and name == "__getitem__":
        return True
    if isinstance(index, tuple | list):
        return any(_indexes_by_values(name, part) for part in index)
    return isinstance(index, Tensor)


def _through_reshape(before: Sequence[int], where: Layout, after: Sequence[int]) -> Layout | Mark:
    """Follow the examples through a row-major reshape, whatever it merges or splits."""
    dim, examples, outer, reordered = where
    block = math.prod(before[dim:]) // (outer * examples)
    for new, size in enumerate(after):
        below = math.prod(after[new + 1 :])
        whole = below and block % below == 0 and size % (examples * (block // below)) == 0
        if whole and below * size >= block * examples:
            return Layout(new, examples, size // (examples * (block // below)), reordered)
    return LOST


def _through_view(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    source: Tensor,
    where: Layout,
    outputs: list[Tensor],
) -> None:
    """Apply the view to a tensor whose only stride marks the dimension of the examples."""
    strides = [0] * source.dim()
    strides[where.dim] = 1
    size = source.shape[where.dim]
    probe = torch.empty(size, device="meta").as_strided(source.shape, strides)
    result = func(probe, *args[1:], **kwargs)
    results = [result] if isinstance(result, Tensor) else list(result)
    for out, viewed in zip(outputs, results, strict=True):
        steps = viewed.stride()
        whole = [d for d, step in enumerate(steps) if step == 1 and viewed.shape[d] == size]
        if viewed._is_view() and len(whole) == 1 and sum(map(bool, steps)) == 1:
            mark(out, where._replace(dim=whole[0]))
        else:
            mark(out, LOST if viewed._is_view() else _by_size(source.shape, where, out.shape))


def _reduced(dims: int, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int] | None:
    """Return the dimensions a reduction was told to reduce."""
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    values = (given,) if isinstance(given, int) else given
    if not isinstance(values, list | tuple) or not all(type(v) is int for v in values):
        return None
    return [v % dims for v in values]


def _through_reduction(where: Layout, reduced: Sequence[int], *, keeps: bool) -> Layout | Mark:
    if where.dim in reduced:
        return LOST
    return where if keeps else where._replace(dim=where.dim - sum(d < where.dim for d in reduced))


def _operands(args: Sequence[Any]) -> Sequence[Any]:
    return args[1] if isinstance(args[1], list | tuple) else args[1:]


def _through_einsum(
    equation: str, operands: Sequence[Any], source: Tensor, where: Layout
) -> Layout | Mark:
    """Follow the letter of the examples."""
    left, _, right = equation.replace(" ", "").partition("->")
    place = next(n for n, operand in enumerate(operands) if operand is source)
    letters = left.split(",")[place]
    if "." in equation or letters[where.dim] not in right:
        return LOST
    return where._replace(dim=right.index(letters[where.dim]))


def _by_size(before: Sequence[int], where: Layout, after: Sequence[int]) -> Layout | Mark:
    """Keep the dimension, or where there are more or fewer, take the only one that fits."""
    size = before[where.dim]
    change = len(after) - len(before)
    first, last = sorted((where.dim, where.dim + change))
    fits = [d for d in range(max(first, 0), last + 1) if d < len(after) and after[d] == size]
    return where._replace(dim=fits[0]) if len(fits) == 1 else LOST
