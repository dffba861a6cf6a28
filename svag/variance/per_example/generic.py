"""Rules for operations without a closed form: products, broadcasting, vmap of their own VJP.

The operation runs unchanged, so that the gradient is autograd's; only the contributions of the
examples are computed here.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from svag.errors import PerExampleError
from svag.variance.per_example.contributions import (
    Contributions,
    Direct,
    PlacedRows,
    Shared,
)
from svag.variance.per_example.following import follow, state_of
from svag.variance.per_example.marks import mark, mark_of
from svag.variance.per_example.masked import by_masks
from svag.variance.per_example.operation_names import plain_name
from svag.variance.per_example.operations import Call, Interception, name_of
from svag.variance.per_example.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Placed,
    Scattered,
    Single,
    Summed,
)
from svag.variance.per_example.products import product
from svag.variance.per_example.structures import replaced, tensors_in
from svag.variance.per_example.taps import Factory

_SUMS = frozenset({"add", "sub", "subtract"})
_BROADCAST = _SUMS | {
    *("mul", "multiply", "div", "truediv", "true_divide", "divide", "pow", "maximum", "minimum"),
    *("where", "lerp", "addcmul", "addcdiv", "atan2", "fmax", "fmin", "max", "min", "clamp"),
    *("logaddexp", "hypot", "xlogy", "mse_loss", "masked_fill", "float_power"),
}
_KEEP_NO_OUTPUT = _SUMS | {"mul", "multiply", "div", "truediv", "true_divide", "divide", "where"}
_JOINED = frozenset({"cat", "concat", "concatenate"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "einsum", "bilinear"})


def otherwise(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation by the rule of this file for its name.

    Args:
        mode: the open context's interception.
        func: the operation, which takes a parameter.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        The result of the operation.

    Raises:
        PerExampleError: there is no rule for the operation.
    """
    name = plain_name(func)
    if name in _BROADCAST:
        return _broadcast(mode, func, args, kwargs, name)
    if name == "scaled_dot_product_attention":
        attended = _biased_attention(mode, func, args, kwargs)
        if attended is not None:
            return attended
    written = name in ("setitem", "index_put") and len(args) == 3 and not kwargs
    if written and mode.recorder.source_of(args[2]) is not None:
        return _written(mode, func, *args)
    if name == "masked_scatter":  # rows of an example depend on the examples before it
        followed = {id(t): t for t in tensors_in(args) if mode.recorder.source_of(t) is not None}
        raise PerExampleError(_unknown(mode, func, followed))
    if name == "grouped_mm":
        return by_masks(mode, func, args, kwargs, func(*args, **kwargs))
    if name in _JOINED:
        return _joined(mode, func, args, kwargs)
    if name == "bilinear" and len(args) > 3 and args[3] is not None:
        with mode:
            return func(*args[:3]) + args[3]
    if name in _PRODUCTS and not kwargs:
        found = product(mode, func, args, name)
        if found is not None:
            return found
    return _by_vmap(mode, func, args, kwargs)


# --- broadcasting -------------------------------------------------------------------------------


def _broadcast(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any], name: str
) -> Any:
    """Broadcast a parameter; in the backward pass each example has its own copy of it."""
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = [t for t in tensors if mode.recorder.source_of(t) is not None]
    batch = [t for t in tensors if state_of(t) is not CONSTANT]
    in_place = name_of(func).endswith("_") or name_of(func).startswith("__i")
    linear = name in _SUMS and not kwargs and len(args) == 2
    before = [t.detach().clone() if in_place and not linear else t for t in batch]
    marks = [state_of(t) for t in batch]
    if all(isinstance(where, Summed) for where in marks):
        return _with_sums(mode, func, args, kwargs, followed, linear)
    for tensor in batch:
        mode.where_of(tensor, func)
    out = func(*args, **kwargs)
    follow(func, args, kwargs, tensors, [out])
    where = mode.where_of(out, func)
    plain = _out_of_place(func, in_place)
    uses = [(t, _copies(plain, args, kwargs, t, batch, out, where, linear)) for t in followed]
    copy = name not in _KEEP_NO_OUTPUT
    return mode.tap(out, [] if linear else before, uses, where, observe=True, copy=copy)


def _written(mode: Interception, func: Call, target: Tensor, index: Any, value: Tensor) -> Any:
    """``target[index] = p``: the rows written say to which example each copy of p belongs."""
    with mode:
        region = target[tuple(index) if isinstance(index, list) else index]
    where = mode.where_of(region, func)
    sums = _copies(torch.add, (region, value), {}, value, [], region, where, linear=True)
    copies = mode.tap(value.expand(region.shape).clone(), [], [(value, sums)], where, observe=True)
    with mode:
        return func(target, index, copies)


def _biased_attention(
    mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Give each example a copy of a learned attention bias; None if the bias is not learned.

    Running attention on each example instead could not draw the same dropout mask again.
    """
    given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
    query, key, bias = given["query"], given["key"], given.get("attn_mask")
    others = [t for t in tensors_in(tuple(given.values())) if t is not bias]
    where = state_of(query)
    if bias is None or any(mode.recorder.source_of(t) is not None for t in others):
        return None
    if not isinstance(where, Layout | Scattered) or where.dim >= query.dim() - 2:
        return None
    if bias.dim() > query.dim():
        return None
    copies = bias.expand(*query.shape[:-1], key.shape[-2]).clone()
    sums = _copies(torch.add, (copies, bias), {}, bias, [], copies, where, linear=True)
    copies = mode.tap(copies, [], [(bias, sums)], where, observe=True)
    with mode:
        return func(*replaced(args, {id(bias): copies}), **replaced(kwargs, {id(bias): copies}))


def _out_of_place(func: Call, in_place: bool) -> Call:
    return cast(Call, getattr(torch.Tensor, plain_name(func))) if in_place else func


def _with_sums(
    mode: Interception,
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    followed: Sequence[Tensor],
    linear: bool,
) -> Any:
    """Add a penalty to a loss: each example gets an equal share of the penalty's gradient."""
    if not linear:
        raise PerExampleError(
            f"{name_of(func)} multiplies {', '.join(map(mode.recorder.label, followed))} with a "
            "sum over the examples, so its gradient has no part of each example; multiply before "
            "the losses are added up (reduction='none'), or use svag.micro_batch_variance"
        )
    examples = mode.recorder.examples

    def shared(tensor: Tensor) -> Factory:
        sign = -1 if plain_name(func) != "add" and _is_second(func, args, tensor) else 1

        def parts(delta: Tensor) -> Contributions:
            return Shared(sign * delta.sum_to_size(tensor.shape), examples)

        return parts

    sums = next(s for s in map(state_of, tensors_in(args)) if s is not CONSTANT)
    out = func(*args, **kwargs)
    uses = [(t, shared(t)) for t in followed]
    tapped = mode.tap(out, [], uses, Single(0, examples), observe=True)
    mark(tapped, sums)  # also if it is the loss itself, changed in place
    return tapped


def _is_second(func: Call, args: Sequence[Any], tensor: Tensor) -> bool:
    """Whether a tensor is the second operand, as that which a subtraction subtracts."""
    reflected = name_of(func).startswith("__r") or name_of(func) == "rsub"
    return (args[0] is tensor) if reflected else (args[1] is tensor)


def _copies(
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tensor: Tensor,
    batch: Sequence[Tensor],
    out: Tensor,
    where: Placed,
    linear: bool,
) -> Factory:
    """Return the function that makes the contributions of a broadcast parameter."""
    shape, own_dim = _own_shape(tensor, out, where)
    sign = -1 if linear and plain_name(func) != "add" and _is_second(func, args, tensor) else 1

    def copies(delta: Tensor, *data: Tensor) -> Contributions:
        if linear:
            grad = sign * delta.sum_to_size(shape)
        else:
            own = tensor.detach().to(delta.dtype).expand(shape)
            known = {id(t): d for t, d in zip(batch, data, strict=True)}
            grad = _gradient(func, args, kwargs, {**known, id(tensor): own}, own, delta)
        if isinstance(where, Single):
            return Direct(where.examples_first(grad).sum(1))
        mine = where.at(own_dim)
        if tensor.dim() == len(shape) and tensor.shape[own_dim] == shape[own_dim]:
            return PlacedRows(grad, cast(Layout, mine))
        return Direct(mine.examples_first(grad).sum(1).reshape(-1, *tensor.shape))

    return copies


def _own_shape(tensor: Tensor, out: Tensor, where: Placed) -> tuple[list[int], int]:
    """Return the parameter's shape with the size of the examples' dimension, and that dimension."""
    if isinstance(where, Single):
        return list(tensor.shape), 0
    from_right = out.dim() - where.dim
    lead = max(0, from_right - tensor.dim())
    shape = [1] * lead + list(tensor.shape)
    dim = len(shape) - from_right
    shape[dim] = out.shape[where.dim]
    return shape, dim


def _gradient(
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    given: dict[int, Tensor],
    own: Tensor,
    delta: Tensor,
) -> Tensor:
    """Run the operation again and return the gradient of the parameter's copies."""
    with torch.enable_grad():
        copies = own.detach().requires_grad_()
        given = {k: copies if t is own else t.detach() for k, t in given.items()}
        out = func(*replaced(args, given), **replaced(kwargs, given))
    return torch.autograd.grad(out, copies, delta.to(out.dtype), materialize_grads=True)[0]


# --- tensors expanded to rows for each example -----------------------------------------------


def _joined(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Concatenate the mini-batch with parameters that have a row per example (class tokens)."""
    tensors = list(args[0] if args else kwargs["tensors"])
    known = [t for t in tensors if state_of(t) is not CONSTANT]
    where = mode.where_of(known[0], func)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    dim = dim % tensors[0].dim()
    followed = [t for t in tensors if mode.recorder.source_of(t) is not None]
    for tensor in followed:
        same = not isinstance(where, Single) and tensor.dim() > where.dim
        if not same or where.dim == dim or tensor.shape[where.dim] != known[0].shape[where.dim]:
            raise PerExampleError(_unclear(mode, func, tensor, where))
    out = func(*args, **kwargs)
    follow(func, args, kwargs, tensors, [out])
    place, starts = mode.where_of(out, func), [0]
    for tensor in tensors:
        starts.append(starts[-1] + tensor.shape[dim])

    def piece(n: int) -> Factory:
        def placed(delta: Tensor) -> Contributions:
            grad = delta.narrow(dim, starts[n], tensors[n].shape[dim])
            return PlacedRows(grad, cast(Layout, place))

        return placed

    uses = [(t, piece(n)) for n, t in enumerate(tensors) if any(t is f for f in followed)]
    return mode.tap(out, [], uses, place, observe=True)


def _unclear(mode: Interception, func: Call, tensor: Tensor, where: Placed) -> str:
    place = "" if isinstance(where, Single) else f" along dimension {where.dim}"
    return (
        f"{name_of(func)} takes {mode.recorder.label(tensor)} of shape {tuple(tensor.shape)} "
        f"beside a mini-batch of {where.examples} examples{place}, so which part belongs to which "
        "example is not clear; expand it to one row for each example first, or use "
        "svag.micro_batch_variance"
    )


def placed_state(mode: Interception, state: Tensor, where: Layout | Scattered) -> Tensor:
    """Return an initial state of a recurrent layer, with a tap behind it if it is learned.

    Args:
        mode: the open context's interception.
        state: the initial state, ``(layers, B, width)``.
        where: mark of the state: its examples are along dimension 1.
    """
    if mode.recorder.source_of(state) is None:
        return state

    def placed(delta: Tensor) -> Contributions:
        return PlacedRows(delta, where)

    return mode.tap(state.clone(), [], [(state, placed)], where, observe=True)


# --- vmap ---------------------------------------------------------------------------------------


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


def _by_vmap(mode: Interception, func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Put a tap with :class:`Pullbacks` behind an operation that can run on one example alone.

    The operation needs a rule that says where the examples are in its output.
    """
    tensors = list(tensors_in((*args, *kwargs.values())))
    followed = {id(t): t for t in tensors if mode.recorder.source_of(t) is not None}
    batch = {id(t): t for t in tensors if state_of(t) is not CONSTANT}
    marks = {key: mode.where_of(t, func) for key, t in batch.items()}
    before = [t._version for t in tensors]
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor) or before != [t._version for t in tensors]:
        raise PerExampleError(_unknown(mode, func, followed))
    follow(func, args, kwargs, tensors, [out])
    where = mark_of(out)
    if not isinstance(where, Layout) or not all(isinstance(w, Layout) for w in marks.values()):
        return by_masks(mode, func, args, kwargs, out)
    layouts = cast(dict[int, Layout], marks)
    what = f"{name_of(func)} of {_labels(mode, followed)}"
    frozen = {key: t.detach() for key, t in followed.items()}

    def call(params: dict[int, Tensor], *inputs: Tensor) -> Tensor:
        given = {**frozen, **dict(zip(batch, inputs, strict=True)), **params}
        return cast(Tensor, func(*replaced(args, given), **replaced(kwargs, given)))

    def one_by_one(values: Sequence[Tensor]) -> list[Tensor]:
        return [layouts[k].one_by_one(t) for k, t in zip(batch, values, strict=True)]

    values = [t.detach() for t in batch.values()]
    if plain_name(func).startswith("linalg") or not _works_on_one(
        call, one_by_one(values), where.one_by_one(out)
    ):
        found = _with_rows(mode, func, args, kwargs, tensors, followed, out, layouts)
        return by_masks(mode, func, args, kwargs, out) if found is None else found

    def factory(key: int) -> Factory:
        def pullbacks(delta: Tensor, *data: Tensor) -> Contributions:
            def alone(param: Tensor, *inputs: Tensor) -> Tensor:
                return call({key: param}, *inputs)

            rows = one_by_one(data)
            return Pullbacks(alone, frozen[key], where.one_by_one(delta), rows, what)

        return pullbacks

    uses = [(t, factory(key)) for key, t in followed.items()]
    return mode.tap(out, list(batch.values()), uses, where, observe=True, copy=True)


def _with_rows(
    mode: Interception,
    func: Call,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    tensors: Sequence[Tensor],
    followed: dict[int, Tensor],
    out: Tensor,
    layouts: dict[int, Layout],
) -> Any:
    """Use tensors computed from parameters that have their own rows for each example.

    Their examples are along the dimension that the operation combines with the mini-batch's.
    """
    some = next(iter(layouts.values()))
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
        return func(*replaced(args, aliases), **replaced(kwargs, aliases))


def _works_on_one(call: Callable[..., Tensor], rows: Sequence[Tensor], outputs: Tensor) -> bool:
    """Whether the operation on the first example alone gives the same output as in the batch."""
    try:
        with torch.no_grad():
            alone = call({}, *(row[0] for row in rows))
    except RuntimeError:
        return False
    if alone.shape != outputs.shape[1:]:
        return False
    return bool(torch.allclose(alone, outputs[0].detach(), rtol=1e-2, atol=1e-2, equal_nan=True))


def _unknown(mode: Interception, func: Call, followed: dict[int, Tensor]) -> str:
    return (
        f"svag has no rule for {name_of(func)} with {_labels(mode, followed)}; write it with "
        "operations that it follows, out of place and with one result, or use "
        "svag.micro_batch_variance"
    )


def _labels(mode: Interception, followed: dict[int, Tensor]) -> str:
    return ", ".join(mode.recorder.label(t) for t in followed.values())
