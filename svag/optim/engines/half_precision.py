"""Half precision in the compiled loop, which knows float32 and float64: by the bits of a number."""

from typing import Final

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from svag.compiled.machine_code import compiled

# bfloat16 and float16 are unknown to Numba: it loads them as integers, which `widen` and
# `narrow` tell apart by their sign.
STORAGE: Final = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}


def _has_half() -> bool:
    """Whether this processor converts float16 itself."""
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("f16c") or features.get("fullfp16"))


DTYPES: Final = frozenset(STORAGE) - ({torch.float16} if not _has_half() else set())
"""Dtypes of parameters and averages that this engine updates."""

NEAREST: Final = np.uint32(0xFFFFFFFF)
"""A noise that stands for rounding to nearest."""


@intrinsic
def _bits(typing, value):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _from_bits(typing, bits):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _from_half(typing, half):
    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _to_half(typing, value):
    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


def widen(stored):
    """Return a stored number in the precision that it is computed in."""


@overload(widen)
def _widen_by_type(stored):
    if stored == types.uint16:
        return lambda stored: _from_bits(np.uint32(np.uint32(stored) << np.uint32(16)))
    if stored == types.int16:
        return lambda stored: _from_half(stored)
    return lambda stored: stored


def narrow(value, like, noise):
    """Round a number to the dtype of ``like``; bfloat16 with ``noise`` below its last bit."""


@overload(narrow)
def _narrow_by_type(value, like, noise):
    if like == types.uint16:
        return lambda value, like, noise: _to_bfloat16(value, noise)
    if like == types.int16:
        return lambda value, like, noise: _to_half(value)
    return lambda value, like, noise: value


@compiled
def _to_bfloat16(value, noise):
    """Add ``noise``, 0 to 65535, to the bits that are cut off; NEAREST rounds half to even."""
    # A NaN's payload might carry into the sign.
    bits = _bits(value) if value == value else np.uint32(0x7FC00000)
    if noise == NEAREST:
        noise = np.uint32(np.uint32(0x7FFF) + np.uint32((bits >> np.uint32(16)) & np.uint32(1)))
    return np.uint16(np.uint32(bits + noise) >> np.uint32(16))
