"""Rules for operations without a closed form: by broadcasting, or by vmap of their own VJP."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from svag.errors import PerExampleError
from svag.variance.contributions import Contributions, Direct, Placed, Shared
from svag.variance.interception import (
    Call,
    Interception,
    name_of,
    replaced,
    tensors_in,
)
from svag.variance.layers import linear
from svag.variance.layout import (
    LOST,
    Layout,
    depends_on_batch,
    hand_on,
    mark_of,
)

_SUMS = frozenset({"add", "radd", "iadd", "sub", "rsub", "isub", "subtract"})
_BROADCAST = _SUMS | {
    *("mul", "rmul", "imul", "multiply", "div", "rdiv", "truediv", "rtruediv", "itruediv"),
    *("true_divide", "divide", "pow", "rpow", "maximum", "minimum", "where", "lerp", "addcmul"),
    *("addcdiv", "atan2"),
}
_JOINED = frozenset({"cat", "concat", "concatenate"})
_MATRIX = frozenset({"matmul", "mm"})


def otherwise(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Choose among the rules of this file by the operation's name."""
    name = name_of(func).strip("_")
    if name in _BROADCAST or name in _JOINED:
        return _broadcast(mode, func, args, kwargs, name)
    if name in _MATRIX and len(args) == 2 and mode.recorder.source_of(args[1]) is not None:
        product = _times_matrix(mode, *args)
        if product is not None:
            return product
    return _by_vmap(mode, func, args, kwargs)


def _times_matrix(mode: Interception, left: Tensor, right: Tensor) -> Tensor | None:
    """Treat x @ W as a dense layer with the weight W^T."""
    if right.dim() != 2 or depends_on_batch(right):
        return None
    with mode:
        weight = right.t()
    return cast(Tensor, linear(mode, functional.linear, (left, weight), {}))


def _broadcast(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any], name: str
) -> Any:
    """Give every example its own copy of the parameter, whose gradients are the contributions."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    batch = [t for t in tensors if depends_on_batch(t)]
    data = max(batch, key=Tensor.dim)
    copies = {}
    for tensor in tensors:
        if mode.recorder.source_of(tensor) is not None:
            copies[id(tensor)] = _own_copies(mode, func, tensor, data, name)
    with mode:
        return func(*replaced(args, copies), **replaced(kwargs, copies))


def _own_copies(mode: Interception, func: Call, tensor: Tensor, data: Tensor, name: str) -> Tensor:
    examples = mode.recorder.examples
    if data.dim() == 0 and mark_of(data) is LOST and name in _SUMS and examples:

        def shared(delta: Tensor, _: Tensor) -> Contributions:
            return Shared(delta, examples)

        return mode.attributed(tensor, cast(Layout, LOST), shared, tensor.shape)
    where = mode.layout_of(data, func)
    if name in _JOINED:
        return _placed(mode, func, tensor, data, where)
    shape = [1] * (data.dim() - tensor.dim()) + list(tensor.shape)
    dim = where.dim + len(shape) - data.dim()
    if shape[dim] == data.shape[where.dim]:
        own = where._replace(dim=dim - len(shape) + tensor.dim())
        return _placed(mode, func, tensor, tensor, own)
    shape[dim] = data.shape[where.dim]
    where = where._replace(dim=dim)

    def copies(delta: Tensor, _: Tensor) -> Contributions:
        return Direct(where.examples_first(delta).sum(1).reshape(-1, *tensor.shape))

    return mode.attributed(tensor, where, copies, shape)


def _placed(mode: Interception, func: Call, tensor: Tensor, data: Tensor, where: Layout) -> Tensor:
    """Take a tensor that was expanded to rows for each example as it is."""
    if not _fits(tensor, data, where):
        raise PerExampleError(
            f"{name_of(func)} takes {mode.recorder.label(tensor)} of shape "
            f"{tuple(tensor.shape)} beside a mini-batch of {where.examples} examples along "
            f"dimension {where.dim}, so which part belongs to which example is not clear; expand "
            "it to one row for each example first, or use svag.micro_batch_variance"
        )

    def placed(delta: Tensor, _: Tensor) -> Contributions:
        return Placed(delta, where)

    return mode.attributed(tensor, where, placed, tensor.shape)


def _fits(tensor: Tensor, data: Tensor, where: Layout) -> bool:
    same = tensor.dim() > where.dim and data.dim() > where.dim
    return same and tensor.shape[where.dim] == data.shape[where.dim]


def placed_state(mode: Interception, func: Call, state: Tensor, where: Layout) -> Tensor:
    """Return an initial state ``(layers, B, width)``, with a tap behind it if it is learned."""
    if mode.recorder.source_of(state) is None:
        return state
    rows = state.new_empty(1).expand(1, where.examples, 1)
    return _placed(mode, func, state, rows, where)


class Pullbacks(Contributions):
    """c_k by ``torch.func.vmap`` of the operation's vector-Jacobian product.

    Args:
        call: maps the parameter and one example's tensors to the output.
        param: the parameter.
        deltas: gradients of the output, ``(B, *shape of one example's output)``.
        inputs: tensors that depend on the mini-batch, likewise.
        what: names the operation and its parameters, for an error.
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
        """Pull the gradients of some examples' outputs back."""

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


def _by_vmap(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Put a tap with vmapped pull-backs behind any operation with one output."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = {id(t): t for t in tensors if mode.recorder.source_of(t) is not None}
    batch = {id(t): t for t in tensors if depends_on_batch(t)}
    frozen = {key: t.detach() for key, t in followed.items()}
    before = [t._version for t in tensors]
    output = func(*replaced(args, frozen), **replaced(kwargs, frozen))
    if not isinstance(output, Tensor) or before != [t._version for t in tensors]:
        raise PerExampleError(_unknown(mode, func, followed))
    hand_on(func, args, kwargs, batch.values(), [output])
    where = mode.layout_of(output, func)
    layouts = {key: mode.layout_of(t, func) for key, t in batch.items()}
    values = {key: t.detach() for key, t in batch.items()}
    what = f"{name_of(func)} of {_labels(mode, followed)}"

    def call(params: dict[int, Tensor], *inputs: Tensor) -> Tensor:
        given = {**frozen, **dict(zip(batch, inputs, strict=True)), **params}
        return cast(Tensor, func(*replaced(args, given), **replaced(kwargs, given)))

    def one_by_one() -> list[Tensor]:
        return [layouts[key].one_by_one(t) for key, t in values.items()]

    if not _works_on_one(call, one_by_one(), where.one_by_one(output)):
        return _with_rows(mode, func, args, kwargs, followed)

    def factory(key: int) -> Callable[[Tensor, Tensor], Contributions]:
        def pullbacks(delta: Tensor, _: Tensor) -> Contributions:
            def alone(param: Tensor, *inputs: Tensor) -> Tensor:
                return call({key: param}, *inputs)

            return Pullbacks(alone, frozen[key], where.one_by_one(delta), one_by_one(), what)

        return pullbacks

    uses = [(t, factory(key)) for key, t in followed.items()]
    return mode.tap(output.clone(), output.new_empty(0), uses, where)


def _works_on_one(call: Callable[..., Tensor], rows: Sequence[Tensor], outputs: Tensor) -> bool:
    """Whether the operation on the first example alone gives an output of its shape."""
    try:
        with torch.no_grad():
            return call({}, *(row[0] for row in rows)).shape == outputs.shape[1:]
    except RuntimeError:
        return False


def _with_rows(
    mode: Interception,
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    followed: dict[int, Tensor],
) -> Any:
    """Run the operation on tensors that were expanded to rows for each example."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    data = max(filter(depends_on_batch, tensors), key=Tensor.dim)
    where = mode.layout_of(data, func)
    fitting = [t for t in followed.values() if t.dim() == data.dim() and _fits(t, data, where)]
    if not fitting:
        raise PerExampleError(
            f"{name_of(func)} of {_labels(mode, followed)} cannot be run on one example alone, so "
            "it has no gradient of its own; use svag.micro_batch_variance"
        )
    rows = {id(t): _placed(mode, func, t, data, where) for t in fitting}
    with mode:
        return func(*replaced(args, rows), **replaced(kwargs, rows))


def _unknown(mode: Interception, func: Call, followed: dict[int, Tensor]) -> str:
    return (
        f"{name_of(func)} takes {_labels(mode, followed)} and works in place or returns several "
        "results, and svag has no rule for it; write it with out-of-place operations, or use "
        "svag.micro_batch_variance"
    )


def _labels(mode: Interception, followed: dict[int, Tensor]) -> str:
    return ", ".join(mode.recorder.label(t) for t in followed.values())
