"""Rules for the layers with closed forms: dense, convolution, embedding, normalisation."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from svag.errors import PerExampleError, SparseGradient
from svag.variance.per_example.contributions.base import Contributions, Direct, Products, Rows
from svag.variance.per_example.contributions.convolution import Windows
from svag.variance.per_example.owners.following import state_of
from svag.variance.per_example.owners.marks import mark_of
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    Packed,
    Placed,
    Single,
    with_rows_along,
)
from svag.variance.per_example.recording.functions import Call, name_of
from svag.variance.per_example.recording.interception import Interception, Rule

Arguments = dict[str, Any]


def _only(*names: str) -> Callable[[Callable[..., Tensor]], Rule]:
    """Return a decorator that binds arguments, and refuses parameters in other arguments."""

    def decorate(rule: Callable[..., Tensor]) -> Rule:
        @functools.wraps(rule)
        def bound(mode: Interception, func: Call, args: Sequence[Any], kwargs: Arguments) -> Any:
            given = _bind(_SIGNATURES[func], args, kwargs)
            for name, value in given.items():
                if name not in names and mode.recorder.source_of(value) is not None:
                    return mode.otherwise(mode, func, args, kwargs)
            if any(state_of(given[n]) is not CONSTANT for n in names if given.get(n) is not None):
                return mode.otherwise(mode, func, args, kwargs)
            return rule(mode, func, **given)

        return bound

    return decorate


def _bind(signature: inspect.Signature, args: Sequence[Any], kwargs: Arguments) -> Arguments:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


@_only("weight", "bias")
def linear(
    mode: Interception, func: Call, input: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Run a dense layer with a tap behind it.

    Args:
        mode: the open context's interception.
        func: ``torch.nn.functional.linear``.
        input: ``(..., in)``, with the examples along any other dimension than the last.
        weight: ``(out, in)``.
        bias: ``(out,)`` or None.

    Raises:
        PerExampleError: the examples are along the last dimension.
    """
    if input.is_complex() or weight.is_complex():
        return mode.otherwise(mode, func, (input, weight, bias), {})  # type: ignore[no-any-return]
    packed = mark_of(input)
    where = packed if isinstance(packed, Packed) else features_last(mode, func, input)
    output = functional.linear(input, mode.given(weight, where), mode.given(bias, where))

    def products(delta: Tensor, data: Tensor) -> Contributions:
        return Products(positions(delta, where), positions(data, where))

    def sums(delta: Tensor, _: Tensor) -> Contributions:
        return Direct(positions(delta, where).sum(1))

    return mode.tap(output, [input], [(weight, products), (bias, sums)], where)


def conjugate(tensor: Tensor) -> Tensor:
    """Return the factor of a product in the gradient of the other: its conjugate if complex.

    Args:
        tensor: the factor.
    """
    return tensor.conj().resolve_conj() if tensor.is_complex() else tensor


def features_last(mode: Interception, func: Call, input: Tensor) -> Placed:
    """Return the mark of a layer's input; raise if the examples are along its last dimension.

    Args:
        mode: the open context's interception.
        func: the layer's function, for messages.
        input: the input.

    Raises:
        PerExampleError: the examples are along the last dimension, or not known.
    """
    where = mode.where_of(input, func)
    if not isinstance(where, Single) and where.dim == input.dim() - 1:
        raise PerExampleError(
            f"{name_of(func)} was given an input of shape {tuple(input.shape)} with the examples "
            "along its last dimension, over which it sums, and so mixes them; pass batch_dim, or "
            "use svag.micro_batch_variance"
        )
    return where


def positions(tensor: Tensor, where: Placed | Packed) -> Tensor:
    """Return ``(B, positions, features)``."""
    if isinstance(where, Packed):
        return where.by_example(where.pad(tensor))
    return where.examples_first(tensor).flatten(1, -2)


def convolution(dims: int, transposed: bool) -> Rule:
    """Return the rule for convolutions with ``dims`` spatial dimensions."""

    @_only("weight", "bias")
    def rule(
        mode: Interception,
        func: Call,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        **options: Any,
    ) -> Tensor:
        where = with_rows_along(mode.where_of(input, func), input, 0)
        if input.dim() != dims + 2 or where.dim != 0:
            raise PerExampleError(_not_batch_first(func, input, where))
        output = func(input, mode.given(weight, where), mode.given(bias, where), **options)
        stride, dilation = _each(options["stride"], dims), _each(options["dilation"], dims)
        padding = _padding(options["padding"], weight.shape[2:], dilation)
        groups = options["groups"]

        def windows(delta: Tensor, data: Tensor) -> Contributions:
            delta, data = where.examples_first(delta), where.examples_first(data)
            coarse, fine = (data, delta) if transposed else (delta, data)
            return Windows(coarse, fine, weight.shape, stride, dilation, padding, groups)

        def sums(delta: Tensor, _: Tensor) -> Contributions:
            return Direct(where.examples_first(delta).movedim(2, -1).flatten(1, -2).sum(1))

        return mode.tap(output, [input], [(weight, windows), (bias, sums)], where)

    return rule


def _not_batch_first(func: Call, input: Tensor, where: Placed) -> str:
    return (
        f"{name_of(func)} was given an input of shape {tuple(input.shape)} with the examples "
        f"along dimension {where.dim}; give (batch, channels, ...)"
    )


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padding(
    value: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Return (before, after), zeros per dimension; "same" pads the odd one after, as in torch."""
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(w // 2, w - w // 2) for w in whole]
    return [(p, p) for p in _each(value, len(kernel))]  # type: ignore[arg-type]


@_only("weight")
def embedding(
    mode: Interception,
    func: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> Tensor:
    """Run an embedding with a tap behind it.

    Args:
        mode: the open context's interception.
        func: ``torch.nn.functional.embedding``.
        input: indices of any shape.
        weight: ``(height, width)``.
        padding_idx: as in torch; so are the following.
        max_norm: largest norm of a row.
        norm_type: order of the norm.
        scale_grad_by_freq: refused if True.
        sparse: refused if True.

    Raises:
        SparseGradient: ``sparse`` is True.
        PerExampleError: ``scale_grad_by_freq`` is True.
    """
    if sparse:
        raise SparseGradient("embedding(sparse=True) has no dense variance; give sparse=False")
    if scale_grad_by_freq:
        raise PerExampleError(
            "embedding(scale_grad_by_freq=True) divides by counts over the whole mini-batch, so "
            "one example has no gradient of its own; give False, or use svag.micro_batch_variance"
        )
    where = mode.where_of(input, func)
    rows = weight.shape[0]
    output = functional.embedding(
        input, mode.given(weight, where), padding_idx, max_norm, norm_type
    )

    def scattered(delta: Tensor, data: Tensor) -> Contributions:
        indices = where.examples_first(data).flatten(1)
        deltas = where.examples_first(delta).flatten(1, -2)
        if padding_idx is not None:
            deltas = deltas.masked_fill((indices == padding_idx % rows).unsqueeze(-1), 0)
        return Rows(deltas, indices, rows)

    return mode.tap(output, [input], [(weight, scattered)], where)


@_only("weight", "bias")
def normalisation(
    mode: Interception,
    func: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Run a layer that normalises each example by itself, with a tap behind its scale and shift.

    Args:
        mode: the open context's interception.
        func: torch's function of the layer.
        input: the input.
        weight: scale, or None.
        bias: shift, or None.
        options: further arguments of ``func``.

    Raises:
        PerExampleError: the examples are along a dimension that the layer normalises over, or not
            the first of a layer with channels.
    """
    where = with_rows_along(mode.where_of(input, func), input, 0)
    shape = options.get("normalized_shape")
    if shape is None and where.dim != 0:
        raise PerExampleError(_not_batch_first(func, input, where))
    if shape is not None and where.dim >= input.dim() - len(shape):
        raise PerExampleError(
            f"{name_of(func)} normalises an input of shape {tuple(input.shape)} along dimension "
            f"{where.dim}, which holds the examples, and so mixes them; pass batch_dim, or use "
            "svag.micro_batch_variance"
        )
    own = {"bias": mode.given(bias, where)} if "bias" in _SIGNATURES[func].parameters else {}
    output = func(input, weight=mode.given(weight, where), **own, **options)
    if options.get("use_input_stats"):  # of instance_norm, which updates running statistics then
        options = {**options, "running_mean": None, "running_var": None}

    def scales(delta: Tensor, data: Tensor) -> Contributions:
        normalised = func(data, **options).mul_(delta)
        return Direct(_per_feature(normalised, where, shape))

    def shifts(delta: Tensor, _: Tensor) -> Contributions:
        return Direct(_per_feature(delta, where, shape))

    return mode.tap(output, [input], [(weight, scales), (bias, shifts)], where)


def _per_feature(values: Tensor, where: Placed, shape: Sequence[int] | None) -> Tensor:
    """Sum over positions: over all but the last dimensions, or all but the channels."""
    first = where.examples_first(values)
    if shape is None:
        return first.movedim(2, -1).flatten(1, -2).sum(1)
    return first.flatten(1, -1 - len(shape)).sum(1)


def refuse_training(mode: Interception, func: Call, args: Sequence[Any], kwargs: Arguments) -> None:
    """Raise if batch normalisation uses the statistics of the mini-batch.

    Args:
        mode: the open context's interception.
        func: ``torch.nn.functional.batch_norm``.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        PerExampleError: it does.
    """
    given = _bind(_SIGNATURES[func], args, kwargs)
    batch = state_of(given["input"]) is not CONSTANT
    if given["training"] and torch.is_grad_enabled() and batch:
        name = mode.recorder.owner_of(given["weight"], given["bias"])
        raise PerExampleError(
            f"batch normalisation{name} in training mode couples the examples of a mini-batch, "
            "so no example has a gradient of its own. Use svag.micro_batch_variance, which works "
            "for every model, or call model.eval() to normalise by the running statistics"
        )


def _signature(*required: str, **defaults: Any) -> inspect.Signature:
    """Build the signature of a torch function that has no Python signature."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in required]
    parameters += [inspect.Parameter(n, kind, default=d) for n, d in defaults.items()]
    return inspect.Signature(parameters)


_DENSE = _signature("input", "weight", bias=None)
_CONVOLUTION = _signature("input", "weight", bias=None, stride=1, padding=0, dilation=1, groups=1)
_TRANSPOSED = _signature(
    "input", "weight", bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
)


RULES: dict[Call, Rule] = {
    functional.linear: linear,
    functional.conv1d: convolution(1, False),
    functional.conv2d: convolution(2, False),
    functional.conv3d: convolution(3, False),
    functional.conv_transpose1d: convolution(1, True),
    functional.conv_transpose2d: convolution(2, True),
    functional.conv_transpose3d: convolution(3, True),
    functional.embedding: embedding,
    functional.layer_norm: normalisation,
    functional.group_norm: normalisation,
    functional.rms_norm: normalisation,
    functional.batch_norm: normalisation,
    functional.instance_norm: normalisation,
}


def _signature_of(func: Call) -> inspect.Signature:
    if func is functional.linear:
        return _DENSE
    name = name_of(func)
    if name.startswith("conv"):
        return _TRANSPOSED if "transpose" in name else _CONVOLUTION
    return inspect.signature(func)


_SIGNATURES = {func: _signature_of(func) for func in RULES}
