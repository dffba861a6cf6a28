"""Rules for layers whose parameters do not train, or that have none: convolution, pooling, LSTM."""

from collections.abc import Sequence

from svag.variance.per_example.owners.operation import Operation, rule
from svag.variance.per_example.owners.placement import (
    CONSTANT,
    IS_PLACED,
    Layout,
    Packed,
    Scattered,
    Single,
    Where,
)
from svag.variance.per_example.owners.products import joined

_CHANNELS = frozenset(
    {f"conv{n}d" for n in (1, 2, 3)}
    | {f"conv_transpose{n}d" for n in (1, 2, 3)}
    | {"group_norm", "instance_norm", "batch_norm", "im2col", "col2im", "convolution"}
    | {"grid_sampler", "affine_grid_generator", "channel_shuffle"}
)


@rule(*_CHANNELS)
def _batch_first(op: Operation) -> Where:
    """Keep the examples along the first dimension; any other holds channels or positions."""
    if op.name.startswith("conv") and (found := _grouped_by_example(op)) is not None:
        return found
    for tensor, where in op.pairs():
        if isinstance(where, Single):
            return op.unknown()
        if where.dim != 0 or (tensor is not op.inputs[0] and op.name != "grid_sampler"):
            return op.mixes()
        if op.out.shape[0] != tensor.shape[0]:
            return op.unknown()
    return joined(op, [where for _, where in op.pairs()])


def _grouped_by_example(op: Operation) -> Where | None:
    """A convolution with a group of channels for each example, and weights of its own."""
    x, weight = op.inputs[:2]
    groups = op.given("groups", 6, 1)
    one, two = op.where(x), op.where(weight)
    if not isinstance(one, Layout) or one.dim != 1 or one.outer != 1 or groups % one.examples:
        return None
    own = isinstance(two, Layout) and two.dim == 0 and two.outer == 1
    if not (own or two is CONSTANT) or len(op.pairs()) > 1 + own or x.shape[0] != 1:
        return None
    return one


@rule("layer_norm", "rms_norm", "native_layer_norm", "fused_rms_norm")
def _over_features(op: Operation) -> Where:
    x, shape = op.inputs[0], op.given("normalized_shape", 1)
    where = op.where(x)
    if not isinstance(where, IS_PLACED) or len(op.pairs()) > 1:
        return op.unknown()
    if isinstance(where, Layout | Scattered) and where.dim >= x.dim() - len(shape):
        return op.mixes()
    return where


_POOLS = {
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": n for kind in ("max", "avg") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": n for n in (1, 2, 3)},
    **{f"upsample_nearest{kind}{n}d": n for kind in ("", "_exact") for n in (1, 2, 3)},
    **{f"{kind}_pad{n}d": n for kind in ("reflection", "replication") for n in (1, 2, 3)},
    **{"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2},
    **{"upsample_trilinear3d": 3, "pixel_shuffle": 3, "pixel_unshuffle": 3, "max_unpool2d": 2},
    **{f"upsample_{kind}2d_aa": 2 for kind in ("bilinear", "bicubic")},
}


@rule(*_POOLS)
def _spatial(op: Operation) -> Where:
    """Keep the examples if their dimension is before those that are pooled."""
    x = op.inputs[0]
    where = op.where(x)
    if not isinstance(where, IS_PLACED):
        return op.unknown()
    if isinstance(where, Layout | Scattered) and where.dim >= x.dim() - _POOLS[op.name]:
        return op.mixes()
    return where


@rule("embedding")
def _lookup(op: Operation) -> Where:
    weight, indices = op.inputs[0], op.inputs[1]
    if op.where(weight) is not CONSTANT:
        return op.unknown()
    return op.where(indices)


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(op: Operation) -> "Where | Sequence[Where]":
    """A recurrent layer with constant weights."""
    if not isinstance(op.args[3], bool):
        return op.unknown()
    x, batch_first = op.args[0], op.args[-1]
    where = op.where(x)
    if not isinstance(where, Layout | Scattered):
        return op.unknown()
    if where.dim != (0 if batch_first else 1) or x.dim() != 3:
        return op.mixes()
    return [where, *[where.at(1)] * (len(op.outputs) - 1)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(op: Operation) -> Where:
    found = [where for _, where in op.pairs()]
    if any(isinstance(w, Single) or w.dim != 0 for w in found):
        return op.unknown()
    return joined(op, found)


@rule("pack_padded_sequence")
def _packs(op: Operation) -> "Where | Sequence[Where]":
    """Sequences of several lengths, in the layout of pack_padded_sequence."""
    source, first = op.args[0], op.args[2]
    where = op.where(source)
    if not isinstance(where, Layout | Scattered) or where.dim != (0 if first else 1):
        return [op.unknown(), CONSTANT]
    owners = where.owners(source.shape[where.dim])
    if len(owners) != where.examples or sorted(owners) != list(range(where.examples)):
        return [op.unknown(), CONSTANT]
    return [Packed(op.outputs[1], owners), CONSTANT]
