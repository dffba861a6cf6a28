"""Checks of the options of a transformation, before anything is traced."""

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any, Final, ParamSpec, TypeVar

import jax.numpy as jnp
import numpy as np

from svag.anatomy import Anatomy
from svag.errors import InvalidOption, UnknownOption, nearest

P = ParamSpec("P")
T = TypeVar("T")

# What options of optax and torch are called here, in the order of preference.
_ELSEWHERE: Final = {
    "b1": ("beta",),
    "b2": ("beta",),
    "betas": ("beta", "b1 and b2"),
    "momentum": ("beta", "b1"),
    "decay": ("beta", "b2"),
    "lr": ("learning_rate",),
}


def names_options(function: Callable[P, T]) -> Callable[P, T]:
    """Raise :class:`UnknownOption` instead of Python's TypeError, with the options there are."""
    known = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for key in kwargs:
            if key not in known:
                here = [n for n in _ELSEWHERE.get(key, ()) if set(n.split(" and ")) <= set(known)]
                hint = f" {key} is {here[0]} here" if here else nearest(key, known)
                raise UnknownOption(
                    f"{function.__name__}() got an unexpected keyword argument {key!r}; it takes "
                    f"{', '.join(known)}.{hint}"
                )
        return function(*args, **kwargs)

    return checked


def check_mask(mask: Any) -> None:
    """Refuse a mask that is one bool, which a function of parameters becomes as a schedule.

    Raises:
        InvalidOption: (a ValueError) as said.
    """
    if isinstance(mask, bool | np.bool_) or (hasattr(mask, "dtype") and np.ndim(mask) == 0):
        raise InvalidOption(
            f"mask={mask}: it is a tree of bools like the parameters, or a function that returns "
            "one. optax.inject_hyperparams calls functions as schedules: name it there, "
            'static_args=("mask",)'
        )


def is_static(value: Any) -> bool:
    """Whether a value is a plain number, not traced and not a schedule."""
    return isinstance(value, Real) and not isinstance(value, bool)


def averaging(
    anatomy: Anatomy, *, beta: Any, b1: Any, b2: Any, eps: Any, amsgrad: bool
) -> tuple[Any, Any, Any]:
    """Return beta of the first and of the second moment, and eps, with defaults filled in.

    Args:
        anatomy: the row.
        beta: decay of all averages; None for the default. The other options likewise.
        b1: decay of the first moment of a raw row.
        b2: decay of its second moment.
        eps: added to its sqrt(v).
        amsgrad: whether it uses the largest v so far.

    Raises:
        UnknownOption: (a TypeError) the row has no such option.
        InvalidOption: (a ValueError) a plain number is outside its range.
    """
    own = ("b1", "b2", "eps", "amsgrad") if anatomy.raw else ("beta",) * bool(anatomy.buffers)
    given = {"beta": beta, "b1": b1, "b2": b2, "eps": eps, "amsgrad": amsgrad or None}
    for key, value in given.items():
        if value is not None and key not in own:
            raise UnknownOption(
                f"{key}={value!r} has no meaning for {anatomy}, which takes "
                f"{', '.join(own) or 'none of beta, b1, b2, eps and amsgrad'}"
            )
    if anatomy.raw:
        first, second = (0.9 if b1 is None else b1), (0.999 if b2 is None else b2)
        offset = 1e-8 if eps is None else eps
    else:
        first = second = 0.9 if beta is None else beta
        offset = 0.0
    decays = {"b1": first, "b2": second} if anatomy.raw else {"beta": first}
    for key, value in decays.items():
        if is_static(value) and not 0.0 <= value < 1.0:
            raise InvalidOption(
                f"{key}={value!r}: a decay lies in [0, 1): 0 averages nothing, 0.9 over some 19 "
                "gradients, and 1 would never move"
            )
    check_not_negative("eps", offset)
    return _number(first), _number(second), _number(offset)


def _number(value: Any) -> Any:
    return float(value) if is_static(value) else value


def check_not_negative(key: str, value: Any) -> None:
    """Refuse a plain number below 0, and NaN.

    Raises:
        InvalidOption: (a ValueError).
    """
    if is_static(value) and not value >= 0:
        raise InvalidOption(f"{key}={value!r}; {key} is a number >= 0")


def check_state_dtype(state_dtype: Any) -> Any:
    """Return the dtype of the averages as a dtype, or None.

    Raises:
        InvalidOption: (a ValueError) it is neither float32 nor bfloat16.
    """
    if state_dtype is None:
        return None
    try:
        dtype = jnp.dtype(state_dtype)
    except TypeError:
        dtype = None
    if dtype not in (jnp.dtype("float32"), jnp.dtype("bfloat16")):
        raise InvalidOption(
            f"state_dtype={state_dtype!r}; it is 'bfloat16', 'float32', or None for the "
            "parameter's own"
        )
    return dtype


def check_seed(seed: Any) -> None:
    """Refuse a plain number that is not an integer of 32 bits.

    Raises:
        InvalidOption: (a ValueError).
    """
    if is_static(seed) and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise InvalidOption(f"seed={seed!r} is not an integer in [0, 2^32)")


def dtype_of_averages(state_dtype: Any, dtype: Any) -> Any:
    """Return the dtype of the averages of a parameter.

    Raises:
        InvalidOption: (a ValueError) ``state_dtype`` is given for a parameter whose averages can
            have no other dtype, or the parameter is not of floating-point numbers.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise InvalidOption(
            f"a parameter of dtype {dtype} has no gradient; leave it out of the tree, or mask it "
            "by optax.masked"
        )
    if state_dtype is not None and dtype not in ("float32", "bfloat16", "float16"):
        raise InvalidOption(
            f"state_dtype={str(state_dtype)!r} with a parameter of dtype {dtype}; averages are "
            "kept in another dtype for float32, bfloat16 and float16 parameters only: give others "
            "a transformation of their own by optax.multi_transform"
        )
    return state_dtype or dtype
