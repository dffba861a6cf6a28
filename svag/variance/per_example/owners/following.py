"""Derives the marks of an operation's outputs from those of its inputs.

A mark says which example each row of a tensor belongs to. No mark is guessed from a shape: an
operation has a rule for its dimensions and rows, or its result is marked
:class:`~svag.variance.per_example.owners.placement.Lost`, and an error names the operation if a
parameter is used on it. Rules for sums over examples and packed sequences are here; the other files
of this folder hold the rest, each for one kind of operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svag.variance.per_example.owners.elementwise import adds_singles, elementwise
from svag.variance.per_example.owners.marks import (
    is_learned,
    mark,
    mark_learned,
    mark_of,
    note_change,
    origin_of,
)
from svag.variance.per_example.owners.operation import RULES, SUMMED, Operation, couples
from svag.variance.per_example.owners.operation_names import (
    FACTORIES,
    LIKE_FIRST,
    is_elementwise,
    plain_name,
)
from svag.variance.per_example.owners.owner_tensors import written_through
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Lost,
    Mark,
    Packed,
    Summed,
    Where,
    placed,
)

_UNSEEN = Lost("it came out of an operation that svag does not see", mixed=False)


_TRANSFORMED = Lost("it is inside torch.vmap, or another transformation of torch.func", mixed=False)


def state_of(tensor: Tensor) -> Where:
    """Return the mark of a tensor, also if svag did not see where it comes from."""
    where = mark_of(tensor)
    if where is None:
        if is_transformed(tensor):
            return _TRANSFORMED
        return CONSTANT if tensor.is_leaf else _UNSEEN
    return where


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is wrapped by torch.vmap or another transformation of torch.func."""
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


def take_mark(tensor: Tensor, source: Tensor) -> None:
    """Mark a tensor that was given the memory of another one by ``tensor.data = source``."""
    where = state_of(source)
    if where != state_of(tensor) and not tensor.is_leaf:  # its gradient belongs to what it was
        where = Lost("it was given the memory of another tensor", mixed=False)
    mark(tensor, where)


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
    """Whether a tensor is only an index into rows of the first input, whose mark is ignored.

    Not if it chooses among the examples: then other examples would change the choice.
    """
    if tensor.is_floating_point() or tensor.is_complex() or op.name not in _INDEXED:
        return False
    where = op.where(tensor)
    if isinstance(where, Lost) and where.chosen:
        return False
    return tensor is not op.inputs[0] and isinstance(op.states[0], IS_PLACED)


def _mixes_in_a_sum(op: Operation) -> bool:
    """Whether rows of examples are combined with a sum over all of them."""
    sums = [t for t, s in zip(op.inputs, op.states, strict=True) if couples(t, s)]
    return any(not _only_asked(op, t) for t in sums) and not adds_singles(op)


def _only_asked(op: Operation, tensor: Tensor) -> bool:
    """Whether an operation uses only the dtype or shape of a tensor, or takes it as an index."""
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    first = bool(op.args) and op.args[0] is tensor
    return not first and (op.name in LIKE_FIRST or (whole and op.name in _INDEXED))


def _discards(op: Operation) -> bool:
    """Whether an operation uses only the dtype or shape of an input whose mark is Lost."""
    return op.name in LIKE_FIRST and op.where(op.args[0]) is CONSTANT


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
        return SUMMED
    if op.name in ("div", "divide", "truediv", "true_divide") and op.args[0] is not moving[0]:
        return op.mixes()
    if any(is_learned(t) for t in free if not t.requires_grad):
        return op.mixes()
    return SUMMED if op.name in _SCALED and len(moving) == 1 else op.mixes()


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
