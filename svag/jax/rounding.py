"""Stochastic rounding to bfloat16, with the noise of :mod:`svag.optim.rounding`."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

_HALF: Final = np.uint32(16)
_LOW: Final = np.uint32(0xFFFF)
_HIGH: Final = np.uint32(0xFFFF0000)
_NEXT: Final = np.uint32(0x9E3779B9)


def _mix(x: Any) -> Any:
    """Mix 32 bits (Wellons' lowbias32)."""
    x = (x ^ (x >> _HALF)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> _HALF)


def noise(seed: Any, place: int, step: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return sixteen random bits an element for each average of one parameter and step.

    Args:
        seed: an integer.
        place: the parameter's place among the leaves of the tree.
        step: number of the step, from 1.
        shape: of the parameter.
    """
    start = np.uint32(seed) if isinstance(seed, int) else jnp.asarray(seed).astype(jnp.uint32)
    key = _mix(_mix(jnp.asarray(start)) + np.uint32(place))
    key = _mix(key + step.astype(jnp.uint32))
    word = _mix(_places(shape) * _NEXT + key)
    other = _mix(word)
    second = word >> _HALF
    return {"mu": word & _LOW, "nu": second, "mu_var": second, "nu_max": other & _LOW}


def _places(shape: tuple[int, ...]) -> Any:
    """Return the number of each element in row-major order, modulo 2^32, dimension by dimension.

    A flat range that is reshaped would have to be gathered where the parameter is sharded.
    """
    places = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for dimension in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, dimension)
        places = places + index * np.uint32(stride % 2**32)
        stride *= shape[dimension]
    return places


def to_bfloat16(value: Any, noise: Any) -> Any:
    """Round float32 numbers to bfloat16, up or down, so that the expectation is the number."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) + noise
    dithered = jax.lax.bitcast_convert_type(bits & _HIGH, jnp.float32)
    return jnp.where(jnp.isfinite(value), dithered, value).astype(jnp.bfloat16)
