"""The rule's operations (:class:`svag.optim.rule.Arithmetic`) in ``jax.numpy``."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from svag.optim.rule import Arithmetic


def on_arrays(dtype: Any) -> Arithmetic:
    """Return the operations on arrays of a dtype, whose numbers may be traced or Python floats."""
    limits = jnp.finfo(dtype)
    return Arithmetic(
        static=bool,
        function=lambda function: function,
        number=float,
        tiny=float(limits.tiny),
        huge=float(limits.max),
        divide=lambda x, y: x / y,
        sqrt=jnp.sqrt,
        erf=jax.lax.erf,
        sign=jnp.sign,
        least=jnp.minimum,
        greatest=jnp.maximum,
        choose=_choose,
        debiasing=_debiasing,
        root=lambda x: math.sqrt(x) if isinstance(x, float) else jnp.sqrt(x),
    )


def _choose(condition: Any, x: Any, y: Any) -> Any:
    if isinstance(condition, bool):
        return x if condition else y
    return jnp.where(condition, x, y)


def _debiasing(beta: Any, step: Any) -> Any:
    """1 - beta^step by expm1, of a traced step; beta is a float or traced."""
    if isinstance(beta, float):
        return -jnp.expm1(step * math.log(beta)) if beta > 0 else 1.0
    return -jnp.expm1(step * jnp.log(beta))
