"""Names of torch operations, and what the name alone says about an operation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def plain_name(func: Callable[..., Any]) -> str:
    """Return an operation's name; in-place, reflected and method versions have the same name."""
    name = getattr(func, "__name__", repr(func))
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return _shortened(name)


@functools.cache
def _shortened(name: str) -> str:
    name = name.partition(".")[0].strip("_")  # "mm.default" of torch.ops
    return _SAME.get(name, name)


_SAME = {
    **{f"r{n}": n for n in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow")},
    **{f"i{n}": n for n in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow")},
    **{f"i{n}": n for n in ("and", "or", "xor", "lshift", "rshift")},
    **{f"r{n}": n for n in ("and", "or", "xor", "lshift", "rshift", "matmul")},
}


FACTORIES = frozenset(
    {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
    | {"randint_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
    | {"new_empty_strided", "grad", "shape", "size", "stride", "numel", "dim", "is_floating_point"}
)


LIKE_FIRST = frozenset({"to", "type_as", "view_as", "reshape_as", "expand_as"})


def only_like(name: str, args: Sequence[Any], followed: Sequence[Tensor]) -> bool:
    """Whether an operation uses only the dtype, device or shape of parameters.

    Args:
        name: name of the operation.
        args: its positional arguments.
        followed: the parameters, or tensors computed from them, among the arguments.
    """
    of_others = name in LIKE_FIRST and not any(args[0] is t for t in followed)
    return name in FACTORIES or of_others


_ELEMENTWISE = frozenset(
    {"to", "type_as", "type", "float", "double", "half", "bfloat16", "int", "long", "bool", "short"}
    | {"cpu", "cuda", "contiguous", "detach", "data", "requires_grad", "real", "imag", "copy"}
    | {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "bernoulli"}
    | {"truediv", "floordiv", "mod", "and", "or", "xor", "invert", "lshift", "rshift", "divide"}
    | {"multiply", "subtract", "negative", "absolute", "greater", "greater_equal", "less"}
    | {"less_equal", "not_equal", "rsub", "clip", "fix", "arccos", "arcsin", "arctan", "arctan2"}
    | {"arccosh", "arcsinh", "arctanh", "log_sigmoid", "logsigmoid", "hardswish", "rrelu", "prelu"}
    | {"elu", "celu", "selu", "leaky_relu", "hardsigmoid", "conj_physical"}  # no tag in torch 2.9
    | {"isclose", "isreal", "float_power", "floor_divide", "true_divide", "special_expit", "fill"}
    | {"special_erf", "special_log1p", "triu", "tril", "zero", "conj", "resolve_conj"}
    | {"resolve_neg", "bucketize", "view_as_real", "lerp", "nan_to_num", "retain_grad"}
    | {"fake_quantize", "fake_quantize_per_tensor_affine", "complex", "polar", "positive"}
    | {"uniform", "normal", "exponential", "clone", "alias", "sign", "hardtanh"}
)


@functools.cache
def is_elementwise(name: str) -> bool:
    """Whether an operation computes each entry from the entries at the same place."""
    if name in _ELEMENTWISE:
        return True
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or not hasattr(packet, "overloads"):
        return False
    return any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
