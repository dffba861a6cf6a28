"""What kind of function an intercepted operation is: in place, composite, a mere access."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Call: TypeAlias = Callable[..., Any]


_VIEW_GETTERS = tuple(
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag")
)


_HANDLING = frozenset(
    {"__set__", "__delete__", "requires_grad_", "retain_grad", "backward", "detach", "detach_"}
    | {"register_hook", "register_post_accumulate_grad_hook", "share_memory_", "untyped_storage"}
)


ALIASES = (Tensor.detach, vars(torch._C.TensorBase)["data"].__get__)


_IN_PLACE = frozenset(
    {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow")}
    | {f"__i{name}__" for name in ("and", "or", "xor", "lshift", "rshift")}
    | {"__setitem__"}
)


def is_in_place(func: Call) -> bool:
    """Whether the operation changes its first argument in place."""
    name = name_of(func)
    if name.endswith("__"):
        return name in _IN_PLACE
    return name.endswith("_")


def reshapes_in_place(func: Call) -> bool:
    """Whether the operation changes the shape of its first argument in place."""
    return name_of(func) in _RESHAPING


_RESHAPING = frozenset(
    {"squeeze_", "unsqueeze_", "transpose_", "swapaxes_", "swapdims_", "t_", "as_strided_"}
)


def replaces_data(func: Call) -> bool:
    """Whether the operation is ``tensor.data = other``."""
    return bool(func == SET_DATA)


SET_DATA = vars(torch._C.TensorBase)["data"].__set__


def asked_in_place(func: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an argument ``inplace`` is true, as of relu and dropout."""
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("inplace", False))


def handles(func: Call) -> bool:
    """Whether the function only accesses a tensor as an object, such as reading ``p.grad``."""
    name = name_of(func)
    if str(getattr(func, "__module__", "")).startswith("torch.autograd"):
        return True
    return name in _HANDLING or (name == "__get__" and func not in _VIEW_GETTERS)


def is_composite(func: Call) -> bool:
    """Whether the function is one of torch.nn.functional written in Python."""
    return isinstance(func, types.FunctionType) and func.__globals__ is vars(functional)


@functools.cache
def unguarded(func: types.FunctionType) -> Call:
    """Return the function without its ``has_torch_function`` test, so that its body runs."""
    never = {name: lambda *_: False for name in func.__globals__ if name in _GUARDS}
    code, names = func.__code__, {**func.__globals__, **never}
    copy = types.FunctionType(code, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def name_of(func: Call) -> str:
    """Return the name for messages."""
    return getattr(func, "__name__", repr(func))
