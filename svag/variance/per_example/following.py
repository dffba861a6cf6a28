"""Derives the marks of an operation's outputs from those of its inputs.

A mark says which example each row of a tensor belongs to. No mark is guessed from a shape: an
operation has a rule for its dimensions and rows, or its result is marked
:class:`~svag.variance.per_example.placement.Lost`, and an error names the operation if a parameter
is used on it. Rules for elementwise operations, sums over examples and packed sequences are here;
others are in :mod:`~svag.variance.per_example.reductions` (reductions),
:mod:`~svag.variance.per_example.movement` (views, indices, sorts) and
:mod:`~svag.variance.per_example.contraction` (products).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from svag.variance.per_example.marks import (
    is_learned,
    mark,
    mark_learned,
    mark_of,
    note_change,
    note_rows,
    origin_of,
)
from svag.variance.per_example.operation_names import (
    FACTORIES,
    LIKE_FIRST,
    is_elementwise,
    plain_name,
)
from svag.variance.per_example.owners import written_through
from svag.variance.per_example.placement import (
    CONSTANT,
    IS_PLACED,
    NOBODY,
    Layout,
    Lost,
    Mark,
    Packed,
    Placed,
    Scattered,
    Single,
    Summed,
    Where,
    placed,
    same_rows,
)

_UNSEEN = Lost("it came out of an operation that svag does not see", mixed=False)
_TRANSFORMED = Lost("it is inside torch.vmap, or another transformation of torch.func", mixed=False)
_SUMMED = Summed("a sum over the examples")


class _Inside:
    """Whether a call of the model is running."""

    model = False


_INSIDE = _Inside()


def inside_model(answer: bool) -> None:
    """Set whether a call of the model is running."""
    _INSIDE.model = answer


def couples(tensor: Tensor, where: Where) -> bool:
    """Whether a tensor is a sum over examples that may not multiply what belongs to one of them.

    A loss may be divided by a number that depends on all examples' inputs or targets, such as a
    count of tokens. It may not if the number depends on what was learned, as a mean of the
    outputs does. Inside the model either makes one example's output depend on the others.

    Args:
        tensor: the tensor.
        where: its mark.
    """
    return isinstance(where, Summed) and (_INSIDE.model or is_learned(tensor))


@dataclass(frozen=True)
class Operation:
    """One call of a torch function, after it has run.

    Attributes:
        func: the function.
        name: its name, the same for in-place and reflected versions (``add`` for ``__iadd__``).
        args: positional arguments.
        kwargs: keyword arguments.
        inputs: every tensor among the arguments.
        states: the mark of each input.
        outputs: every tensor returned.
    """

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    inputs: Sequence[Tensor]
    states: Sequence[Where]
    outputs: Sequence[Tensor]

    @property
    def out(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    def given(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument.

        Args:
            name: its name, if it was given by keyword.
            position: its index among positional arguments.
            default: its value if it was not given.
        """
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    def where(self, tensor: object) -> Where:
        """Return the mark of an argument; CONSTANT if it is no tensor."""
        if not isinstance(tensor, Tensor):
            return CONSTANT
        return next(w for t, w in zip(self.inputs, self.states, strict=True) if t is tensor)

    def pairs(self) -> list[tuple[Tensor, Placed]]:
        """Return the inputs whose rows are assigned to examples, with their marks."""
        every = zip(self.inputs, self.states, strict=True)
        return [(t, where) for t, where in every if isinstance(where, IS_PLACED)]

    def mixes(self) -> Lost:
        """Return the mark for an operation that mixes the examples."""
        return Lost(f"{self.name} mixes the examples", mixed=True)

    def unknown(self) -> Lost:
        """Return the mark for an operation whose effect on the examples is unknown."""
        return Lost(f"svag does not know what {self.name} does to the examples", mixed=False)


Rule: TypeAlias = Callable[[Operation], "Where | Sequence[Where]"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule for operations of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def state_of(tensor: Tensor) -> Where:
    """Return the mark of a tensor, also if svag did not see where it comes from."""
    where = mark_of(tensor)
    if where is None:
        if _is_wrapped(tensor):
            return _TRANSFORMED
        return CONSTANT if tensor.is_leaf else _UNSEEN
    return where


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is batched or wrapped by torch.vmap or another transformation."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def follow(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> None:
    """Mark the outputs of an operation, from the marks of its inputs.

    Args:
        func: the function that has run.
        args: its positional arguments.
        kwargs: its keyword arguments.
        inputs: every tensor among them.
        outputs: every tensor that it returned.
    """
    states = [state_of(t) for t in inputs]
    if all(where is CONSTANT for where in states):
        for out in outputs:
            mark(out, CONSTANT)
        return
    if not args and "input" in kwargs:
        args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
    op = Operation(func, plain_name(func), args, kwargs, inputs, states, outputs)
    found = _found(op)
    each = [found] * len(outputs) if isinstance(found, (*IS_PLACED, Mark)) else found
    for out, where in zip(outputs, each, strict=True):
        if not out.requires_grad and any(map(is_learned, inputs)):
            mark_learned(out)
        before = next((s for t, s in zip(inputs, states, strict=True) if t is out), None)
        if before is not None and before is not where and before != where:
            _change(out, where, op.name)
        else:
            mark(out, where)


def _change(out: Tensor, where: Where, name: str) -> None:
    """Set the new mark of a tensor changed in place, and of the tensors that share its memory."""
    base = out._base if out._is_view() else None
    whole = None if base is None else written_through(out, state_of(base), where, name)
    note_change(out)
    mark(out, where)
    if base is not None and whole is not None:
        mark(base, whole)
    origin = origin_of(out)
    if origin is not None:
        _change(origin, where, name)


def _found(op: Operation) -> "Where | Sequence[Where]":
    if not op.outputs:
        return CONSTANT
    if op.name in FACTORIES:
        return CONSTANT
    for tensor, where in zip(op.inputs, op.states, strict=True):
        if isinstance(where, Lost) and not _is_index(op, tensor):
            return CONSTANT if _discards(op) else where
    if any(isinstance(where, Packed) for where in op.states):
        return _of_packed(op)
    if not op.pairs():
        return _of_sums(op)
    if _mixes_in_a_sum(op):
        return op.mixes()
    found = RULES.get(op.name)
    if found is not None:
        try:
            return found(op)
        except IndexError:  # an argument was given by keyword, where the rule expects a position
            return op.unknown()
    return elementwise(op) if is_elementwise(op.name) else op.unknown()


_INDEXED = frozenset(
    {"getitem", "setitem", "index_select", "gather", "scatter", "scatter_add", "index_add"}
    | {"index_copy", "index_put", "take_along_dim", "masked_select", "masked_scatter"}
    | {"grouped_mm"}
)


def _is_index(op: Operation, tensor: Tensor) -> bool:
    """Whether a tensor is only an index into rows of the first input; then its mark is ignored."""
    if tensor.is_floating_point() or tensor.is_complex() or op.name not in _INDEXED:
        return False
    return tensor is not op.inputs[0] and isinstance(op.states[0], IS_PLACED)


def _mixes_in_a_sum(op: Operation) -> bool:
    """Whether rows of examples are combined with a sum over all of them."""
    sums = [t for t, s in zip(op.inputs, op.states, strict=True) if couples(t, s)]
    return any(not _only_asked(op, t) for t in sums) and not _adds_singles(op)


def _only_asked(op: Operation, tensor: Tensor) -> bool:
    """Whether an operation uses only the dtype or shape of a tensor, or takes it as an index."""
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    first = bool(op.args) and op.args[0] is tensor
    return not first and (op.name in LIKE_FIRST or (whole and op.name in _INDEXED))


def _discards(op: Operation) -> bool:
    """Whether an operation uses only the dtype or shape of an input whose mark is Lost."""
    return op.name in LIKE_FIRST and op.where(op.args[0]) is CONSTANT


# --- entry by entry -----------------------------------------------------------------------------


def elementwise(
    op: Operation, inputs: Sequence[Tensor] | None = None, shape: Tensor | None = None
) -> Where:
    """Align the inputs from the right, as broadcasting does, and join their marks.

    Args:
        op: the operation.
        inputs: the inputs that count; None for all.
        shape: a tensor of the shape that they are broadcast to; None for the output.
    """
    out = op.out if shape is None else shape
    if _adds_singles(op):
        return _SUMMED
    result: Placed | None = None
    for tensor in op.inputs if inputs is None else inputs:
        where = op.where(tensor)
        if not isinstance(where, IS_PLACED):
            continue
        moved = _aligned(op, tensor, where, out)
        if isinstance(moved, Mark):
            return moved
        joined = moved if result is None else join(op, result, moved, out)
        if isinstance(joined, Mark):
            return joined
        result = joined
    if isinstance(result, Layout | Scattered):
        _note_rows(op, result, out)
    return CONSTANT if result is None else result


def _note_rows(op: Operation, where: Layout | Scattered, out: Tensor) -> None:
    """Note whether constants with a gradient have a row for each row of the result."""
    for tensor, state in zip(op.inputs, op.states, strict=True):
        if state is CONSTANT and tensor.requires_grad:
            dim = where.dim - out.dim() + tensor.dim()
            own = dim >= 0 and tensor.shape[dim] == out.shape[where.dim]
            note_rows(tensor, where.at(dim) if own else _SUMMED)


def _adds_singles(op: Operation) -> bool:
    """Whether losses of single examples are added one to another."""
    if op.name not in ("add", "sub", "subtract"):
        return False
    singles = {w.example for w in op.states if isinstance(w, Single)}
    others = any(isinstance(w, Layout | Scattered) for w in op.states)
    sums = any(isinstance(w, Summed) for w in op.states)
    return not others and bool(singles) and (sums or len(singles) > 1)


def _aligned(op: Operation, tensor: Tensor, where: Placed, out: Tensor) -> "Placed | Lost":
    if isinstance(where, Single):
        return where
    dim = where.dim + out.dim() - tensor.dim()
    if dim < 0 or tensor.shape[where.dim] != out.shape[dim]:
        if dim >= 0 and isinstance(where, Scattered) and len(set(where.list)) == 1:
            return Single(int(where.list[0]), where.examples)
        return op.mixes()
    return where.at(dim)


def join(op: Operation, a: Placed, b: Placed, out: Tensor) -> "Placed | Lost":
    """Join the marks that two inputs give the output; the operation mixes examples if they differ.

    Args:
        op: the operation.
        a: mark of one input, with dimensions of the output.
        b: mark of the other.
        out: the output.
    """
    if isinstance(a, Single) or isinstance(b, Single):
        return _with_single(op, a, b)
    if a.dim != b.dim:
        return op.mixes()
    size = out.shape[a.dim]
    if same_rows(a, b, size):
        return a
    ours, theirs = a.owners(size), b.owners(size)
    if np.any((ours != theirs) & (ours != NOBODY) & (theirs != NOBODY)):
        return op.mixes()
    return placed(a.dim, a.examples, np.where(ours == NOBODY, theirs, ours))


def _with_single(op: Operation, a: Placed, b: Placed) -> "Placed | Lost":
    single, other = (a, b) if isinstance(a, Single) else (b, a)
    assert isinstance(single, Single)
    if isinstance(other, Single):
        return single if other.example == single.example else op.mixes()
    if isinstance(other, Scattered) and set(other.list) <= {single.example, NOBODY}:
        return other
    return op.mixes()


@rule("view_as_complex", "view_as_real")
def _last_dimension(op: Operation) -> Where:
    """Operations that add or remove a last dimension of size two (complex to real and back)."""
    where = op.where(op.args[0])
    last = isinstance(where, Layout | Scattered) and where.dim >= min(
        op.out.dim(), op.args[0].dim()
    )
    return op.mixes() if last else where


@rule("to", "type_as", "type")
def _like_first(op: Operation) -> Where:
    return elementwise(op, [op.args[0]])


@rule("copy")
def _copied(op: Operation) -> Where:
    return elementwise(op, [op.args[1]])


@rule("prelu")
def _prelu(op: Operation) -> Where:
    return elementwise(op, [op.args[0]]) if op.where(op.args[1]) is CONSTANT else op.unknown()


# --- sums over examples -------------------------------------------------------------------------

_LINEAR = frozenset(
    {"add", "sub", "subtract", "neg", "negative", "sum", "mean", "nansum", "clone", "detach", "to"}
    | {"float", "double", "half", "bfloat16", "contiguous", "stack", "cat", "view", "reshape"}
    | {"squeeze", "unsqueeze", "flatten", "expand", "getitem", "select", "requires_grad", "data"}
    | {"retain_grad", "type_as", "type", "cpu", "cuda", "positive", "fill", "copy", "ravel"}
    | {"concat", "hstack", "transpose", "permute", "t", "T", "unbind", "split", "chunk", "alias"}
)
_SCALED = frozenset({"mul", "multiply", "div", "divide", "truediv", "true_divide", "matmul", "dot"})


def _of_sums(op: Operation) -> Where:
    """Combine sums over examples: a linear combination is again a sum over examples."""
    free = [t for t, s in zip(op.inputs, op.states, strict=True) if isinstance(s, Summed)]
    moving = [t for t in free if t.requires_grad]
    if not moving or not any(out.requires_grad for out in op.outputs) or op.name in _LINEAR:
        return _SUMMED
    if op.name in ("div", "divide", "truediv", "true_divide") and op.args[0] is not moving[0]:
        return op.mixes()
    if any(is_learned(t) for t in free if not t.requires_grad):
        return op.mixes()
    return _SUMMED if op.name in _SCALED and len(moving) == 1 else op.mixes()


def summed(op: Operation) -> Where:
    """Return the mark of a result that is a sum over all examples."""
    return _SUMMED


# --- packed sequences ---------------------------------------------------------------------------

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def _of_packed(op: Operation) -> "Where | Sequence[Where]":
    """Rules for packed sequences: padding, recurrent layers, elementwise operations."""
    packed = [w for w in op.states if isinstance(w, Packed)]
    where = packed[0]
    if op.name == "pad_packed_sequence":
        place = placed(0 if op.args[2] else 1, where.examples, where.order)
        return [place, place.at(0)]
    if op.name in _RECURRENT:
        return [where, *[where.last_states()] * (len(op.outputs) - 1)]
    if op.name in ("to", "float", "double", "half", "contiguous", "clone", "detach"):
        return where
    if is_elementwise(op.name) and all(other is where for other in packed):
        same = all(out.dim() and out.shape[0] == len(op.inputs[0]) for out in op.outputs)
        constant = all(s is where or s is CONSTANT for s in op.states)
        if same and constant:
            return where
    steps = where.steps()
    again = [steps if w is where else w for w in op.states]
    found = _found(Operation(op.func, op.name, op.args, op.kwargs, op.inputs, again, op.outputs))
    same = isinstance(found, IS_PLACED) and found.dim == 0 and op.out.shape[0] == sum(where.sizes)
    if same and np.array_equal(found.owners(len(op.out)), steps.owners(len(op.out))):  # type: ignore[union-attr]
        return where
    return found
