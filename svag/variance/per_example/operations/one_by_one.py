"""Operations run on one example at a time: ``torch.func.vmap`` of their backward pass."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions.base import Contributions
from svag.variance.per_example.operations.expanded import placed_state
from svag.variance.per_example.operations.masked import by_masks
from svag.variance.per_example.owners.following import follow, state_of
from svag.variance.per_example.owners.marks import mark, mark_of
from svag.variance.per_example.owners.operation_names import plain_name
from svag.variance.per_example.owners.placement import CONSTANT, IS_PLACED, Layout
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.interception import Interception
from svag.variance.per_example.recording.taps import Factory
from svag.variance.per_example.structures import called_with, replaced, tensors_in


class Pullbacks(Contributions):
    """c_k by ``torch.func.vmap`` of the operation's vector-Jacobian product.

    Args:
        call: maps the parameter and one example's tensors to the output.
        param: the parameter.
        deltas: gradients of the output, ``(B, *shape of one example's output)``.
        inputs: tensors that depend on the mini-batch, ``(B, *shape of one example)``.
        what: name of the operation and its parameters, for an error.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        param: Tensor,
        deltas: Tensor,
        inputs: Sequence[Tensor],
        what: str = "the operation",
    ) -> None:
        self.what = what
        self.call, self.param, self.deltas, self.inputs = call, param, deltas, inputs
        self.like, self.shape, self.examples = deltas, param.shape, deltas.shape[0]
        numbers = 2 * param.numel() + sum(t[0].numel() for t in (deltas, *inputs))
        self.example_bytes = numbers * deltas.element_size()

    def rows(self, low: int, high: int) -> Tensor:
        """Return c_k of some examples by vector-Jacobian products."""

        def one(delta: Tensor, *inputs: Tensor) -> Tensor:
            pull_back = torch.func.vjp(lambda p: self.call(p, *inputs), self.param)[1]
            return cast(Tensor, pull_back(delta)[0])

        rows = (t[low:high] for t in (self.deltas, *self.inputs))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            try:
                return torch.func.vmap(one)(*rows).clone(memory_format=torch.contiguous_format)
            except RuntimeError as error:
                raise PerExampleError(f"{self.what} failed on one example: {error}") from error


def by_vmap(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Put a tap with :class:`Pullbacks` behind an operation that can run on one example alone.

    The operation needs a rule that says where the examples are in its output.
    """
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = {id(t): t for t in mode.recorder.followed(tensors)}
    batch = {id(t): t for t in tensors if state_of(t) is not CONSTANT}
    marks = {key: mode.where_of(t, func) for key, t in batch.items()}
    before = [t._version for t in tensors]
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or before != [t._version for t in tensors]:
        raise PerExampleError(unknown(mode, func, followed.values()))
    follow(func, args, kwargs, tensors, [out])
    where = mark_of(out)
    if not isinstance(where, Layout) or not all(isinstance(w, Layout) for w in marks.values()):
        return by_masks(mode, func, args, kwargs, out)
    params = {key: t.detach() for key, t in followed.items()}
    one = _OnOne(func, args, kwargs, params, cast(dict[int, Layout], marks))
    if plain_name(func).startswith("linalg") or not one.works(batch.values(), out, where):
        found = _with_rows(
            mode, func, args, kwargs, followed, out, next(iter(one.layouts.values()))
        )
        return by_masks(mode, func, args, kwargs, out) if found is None else found
    what = f"{name_of(func)} of {_labels(mode, followed.values())}"

    def factory(key: int) -> Factory:
        def pullbacks(delta: Tensor, *data: Tensor) -> Contributions:
            def alone(param: Tensor, *inputs: Tensor) -> Tensor:
                return one.run({key: param}, inputs)

            return Pullbacks(alone, params[key], where.one_by_one(delta), one.rows(data), what)

        return pullbacks

    uses = [(t, factory(key)) for key, t in followed.items()]
    return mode.tap(out, list(batch.values()), uses, where, observe=True, copy=True)


@dataclass(frozen=True)
class _OnOne:
    """An operation, the parameters it takes (detached) and the mini-batch's marks, both by id."""

    func: Call
    args: Sequence[Any]
    kwargs: dict[str, Any]
    params: dict[int, Tensor]
    layouts: dict[int, Layout]

    def run(self, params: dict[int, Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Run it on one example's inputs, and on other values of some parameters."""
        given = {**self.params, **dict(zip(self.layouts, inputs, strict=True)), **params}
        return cast(Tensor, called_with(self.func, self.args, self.kwargs, given))

    def rows(self, batch: Iterable[Tensor]) -> list[Tensor]:
        """Return the tensors of the mini-batch, ``(B, *shape of one example)`` each."""
        every = zip(self.layouts.values(), batch, strict=True)
        return [where.one_by_one(tensor) for where, tensor in every]

    def works(self, batch: Iterable[Tensor], out: Tensor, where: Layout) -> bool:
        """Whether it gives the same output on the first example alone as in the mini-batch."""
        expected = where.one_by_one(out.detach())[0]
        first = [rows[0] for rows in self.rows(t.detach() for t in batch)]
        try:
            with torch.no_grad():
                alone = self.run({}, first)
        except RuntimeError:
            return False
        same = alone.shape == expected.shape
        return same and torch.allclose(alone, expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def _with_rows(
    mode: Interception,
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    followed: dict[int, Tensor],
    out: Tensor,
    some: Layout,
) -> Any:
    """Run an operation on tensors from parameters that have their own rows for each example.

    A dimension holds the examples if the operation then has a rule for its output; None if a
    tensor has no such dimension. ``some`` is the mark of a tensor of the mini-batch.
    """
    aliases: dict[int, Tensor] = {}
    for key, tensor in followed.items():
        for dim, size in enumerate(tensor.shape):
            if size % some.examples:
                continue
            trial = tensor.detach().view_as(tensor)
            mark(trial, some.at(dim))
            given = replaced(args, {key: trial}), replaced(kwargs, {key: trial})
            inputs = list(tensors_in((*given[0], *given[1].values())))
            result = out.detach().view_as(out)
            follow(func, *given, inputs, [result])
            if isinstance(mark_of(result), IS_PLACED):
                aliases[key] = placed_state(mode, tensor, some.at(dim))
                break
    if len(aliases) != len(followed):
        return None
    with mode:
        return called_with(func, args, kwargs, aliases)


def unknown(mode: Interception, func: Call, followed: Iterable[Tensor]) -> str:
    """Return the message for an operation without a rule.

    Args:
        mode: the open context's interception.
        func: the operation.
        followed: the parameters, or tensors computed from them, that it takes.
    """
    return (
        f"svag has no rule for {name_of(func)} with {_labels(mode, followed)}; write it with "
        "operations that it follows, out of place and with one result, or use "
        "svag.micro_batch_variance"
    )


def _labels(mode: Interception, followed: Iterable[Tensor]) -> str:
    return ", ".join(map(mode.recorder.label, followed))
