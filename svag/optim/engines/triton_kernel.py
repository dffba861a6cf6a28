# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""The rule as one Triton kernel: what :mod:`svag.optim.engines.cuda` launches.

A program of the grid updates one chunk of one tensor, block by block. Divisions and square roots
are rounded, and no product is fused into a sum (that is asked for at launch), so that it gives the
numbers of the other engines. What is marked ``constexpr`` is a switch: Triton compiles one kernel
for each combination.
"""

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs

from svag.optim.rule import Arithmetic, Switches, element_of, numbers_of

NEXT: tl.constexpr = tl.constexpr(0x9E3779B9)
"""From the count of one element to the next one's, as in :mod:`svag.optim.rounding`."""

COLUMNS: tl.constexpr = tl.constexpr(8)
"""Of the tables of addresses and of options."""


_INTERPRETED: Final = knobs.runtime.interpret


class Bound(NamedTuple):
    """A kernel and the functions of the rule that it calls."""

    step: Any
    element: Any
    numbers: Any


def bound(switches: Switches, real: torch.dtype) -> Bound:
    """Return the kernel for some switches and a precision, with the rule bound to Triton.

    Each has functions of its own: Triton keeps its compiled kernels by function.
    """
    ops = _arithmetic(real)
    element, numbers = element_of(switches, ops), numbers_of(switches, ops)
    with knobs.runtime.scope():
        knobs.runtime.interpret = _INTERPRETED
        return Bound(triton.jit(_step), ops.function(element), ops.function(numbers))


def _arithmetic(dtype: torch.dtype) -> Arithmetic:
    """Return the rule's operations on blocks of a dtype."""
    return Arithmetic(
        # The interpreter reads a function's source anew and would lose what is bound in it, so
        # there the rule is plain Python.
        static=bool if _INTERPRETED else tl.constexpr,
        function=(lambda function: function) if _INTERPRETED else triton.jit,
        number=float if _INTERPRETED else tl.constexpr,
        tiny=torch.finfo(dtype).tiny,
        huge=torch.finfo(dtype).max,
        divide=_divide,
        sqrt=_sqrt,
        erf=_erf,
        sign=_sign,
        least=_least,
        greatest=_greatest,
        choose=_choose,
        debiasing=_debiasing,
        root=_root,
    )


@triton.jit
def _divide(x, y):
    """x/y, rounded; Triton's own quotient of float32 is two units in the last place off."""
    x = tl.where(y == y, x, x)  # as large a block as y, also of one number
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _sqrt(x):
    """sqrt(x), rounded."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def _erf(x):
    return tl.erf(x)


@triton.jit
def _sign(x):
    # Without the last term a NaN would freeze a coordinate unseen.
    return tl.where(x > 0, 1.0, 0.0).to(x.dtype) - tl.where(x < 0, 1.0, 0.0).to(x.dtype) + 0 * x


@triton.jit
def _least(x, bound):
    return tl.where(x < bound, x, bound)


@triton.jit
def _greatest(x, bound):
    return tl.where(x < bound, bound, x)


@triton.jit
def _choose(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def _root(x):
    return tl.sqrt(x)


@triton.jit
def _debiasing(beta, step):
    """1 - beta^step, as moments.debiasing.

    Kahan's expm1: with u = exp(x) rounded, (u - 1)/log(u) is as (exp(x) - 1)/x at a place so
    near to x that it does not matter, and u - 1 is exact where it cancels.
    """
    x = step * tl.log(beta)
    u = tl.exp(x)
    near = tl.where(u == 1, -x, (1 - u) * (x / tl.log(u)))
    return tl.where(beta == 0, 1.0, tl.where(x < -1, 1 - u, near))


def _step(
    chunks,  # a row a chunk: tensor, first element, number of elements
    tensors,  # a row a tensor: group, stream of noise, number of chunks
    addresses,  # a row a tensor, as kernel_spec.ADDRESSES
    group_options,  # a row a group, as kernel_spec.OPTIONS
    finished,  # chunks of each tensor that this step is done with
    grad_scale,
    found_inf,
    element: tl.constexpr,
    numbers: tl.constexpr,
    averages_gradient: tl.constexpr,
    averages_square: tl.constexpr,
    averages_variance: tl.constexpr,
    within_batch: tl.constexpr,
    amsgrad: tl.constexpr,
    counts: tl.constexpr,
    dither_param: tl.constexpr,
    dither_state: tl.constexpr,
    stored: tl.constexpr,
    kept: tl.constexpr,
    real: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    """Take a step with the elements of one chunk."""
    if tl.load(found_inf) != 0:
        return
    chunk = chunks + 3 * tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunk)
    begin = tl.load(chunk + 1)
    size = tl.load(chunk + 2).to(tl.int32)
    about = tensors + 3 * tensor
    at = addresses + COLUMNS * tensor
    option = group_options + COLUMNS * tl.load(about)
    if tl.load(at + 1) == 0:  # no gradient
        return

    # A float32 counter, as torch's. Read before the barrier below, written behind it.
    step = tl.full((), 1.0, tl.float64)
    if counts:
        step += tl.load(tl.load(at + 7).to(tl.pointer_type(tl.float32))).to(tl.float64)
    key = _key(tl.load(option + 7), tl.load(about + 1), step)
    key += begin.to(tl.uint32) * NEXT
    lr = tl.load(option)
    beta = tl.load(option + 1)
    beta2 = tl.load(option + 2)
    eps = tl.load(option + 3)
    weight_decay = tl.load(option + 4)
    decoupled = tl.load(option + 5)
    gradient = tl.load(option + 6) / tl.load(grad_scale).to(tl.float64)
    shared = _in(real, numbers(lr, beta, beta2, eps, weight_decay, decoupled, gradient, step))

    # The tensors of columns that this kernel has not are not looked at.
    param_at = _column(at, 0, begin, stored, aligned)
    grad_at = _column(at, 1, begin, stored, aligned)
    mean_at = _column(at, 2, begin, kept, aligned) if averages_gradient else param_at
    square_at = _column(at, 3, begin, kept, aligned) if averages_square else param_at
    largest_at = _column(at, 4, begin, kept, aligned) if amsgrad else param_at
    variance_at = _column(at, 5, begin, kept, aligned) if averages_variance else param_at
    sample_at = _column(at, 6, begin, real, aligned) if within_batch else param_at
    places = (param_at, grad_at, mean_at, square_at, largest_at, variance_at, sample_at)

    # Whole blocks need no mask; with one, Triton could not load four numbers at once.
    whole = size // block * block
    for first in range(0, whole, block):
        _update(
            places, first, size, key, shared, element,
            averages_gradient, averages_square, averages_variance, within_batch, amsgrad,
            dither_param, dither_state, stored, kept, real, block, False,
        )  # fmt: skip
    if whole < size:
        _update(
            places, whole, size, key, shared, element,
            averages_gradient, averages_square, averages_variance, within_batch, amsgrad,
            dither_param, dither_state, stored, kept, real, block, True,
        )  # fmt: skip

    if counts:
        # Whoever finishes a tensor last counts its step: all others have read it by then. The
        # barrier is needed because one thread does the counting, and others may be behind it.
        tl.debug_barrier()
        if tl.atomic_add(finished + tensor, 1, sem="acq_rel") == tl.load(about + 2) - 1:
            tl.store(finished + tensor, 0)
            tl.store(tl.load(at + 7).to(tl.pointer_type(tl.float32)), step.to(tl.float32))


@triton.jit
def _in(real: tl.constexpr, numbers):
    """Return the numbers of a step in the precision of the elements."""
    a, b, c, d, e, f, g, h, i, j, k, m, n, o, p = numbers
    return (
        a.to(real), b.to(real), c.to(real), d.to(real), e.to(real), f.to(real), g.to(real),
        h.to(real), i.to(real), j.to(real), k.to(real), m.to(real), n.to(real), o.to(real),
        p.to(real),
    )  # fmt: skip


@triton.jit
def _update(
    places, first, size, key, shared, element: tl.constexpr,
    averages_gradient: tl.constexpr, averages_square: tl.constexpr,
    averages_variance: tl.constexpr, within_batch: tl.constexpr, amsgrad: tl.constexpr,
    dither_param: tl.constexpr, dither_state: tl.constexpr,
    stored: tl.constexpr, kept: tl.constexpr, real: tl.constexpr,
    block: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Update one block: load it, apply the rule, round and store it."""
    param_at, grad_at, mean_at, square_at, largest_at, variance_at, sample_at = places
    offset = first + tl.arange(0, block)
    mask = offset < size if masked else None
    zero = tl.full((block,), 0.0, real)
    param = _widen(tl.load(param_at + offset, mask), real)
    grad = _widen(tl.load(grad_at + offset, mask), real)
    mean = _widen(tl.load(mean_at + offset, mask), real) if averages_gradient else zero
    square = _widen(tl.load(square_at + offset, mask), real) if averages_square else zero
    largest = _widen(tl.load(largest_at + offset, mask), real) if amsgrad else zero
    variance = _widen(tl.load(variance_at + offset, mask), real) if averages_variance else zero
    sample = tl.load(sample_at + offset, mask) if within_batch else zero

    noise = tl.full((block,), 0, tl.uint32)
    noise2 = noise
    noise3 = noise
    noise4 = noise
    if dither_param or dither_state:
        noise2 = _mix(key + offset.to(tl.uint32) * NEXT)
        noise = noise2 & 0xFFFF
        if dither_param or amsgrad:
            noise4 = _mix(noise2)
            noise3 = noise4 & 0xFFFF
            noise4 = noise4 >> 16
        noise2 = noise2 >> 16

    param, mean, square, largest, variance = element(
        param, grad, mean, square, largest, variance, sample, shared
    )
    if averages_gradient:
        tl.store(mean_at + offset, _narrow(mean, kept, noise, dither_state), mask)
    if averages_square:
        tl.store(square_at + offset, _narrow(square, kept, noise2, dither_state), mask)
    if amsgrad:
        tl.store(largest_at + offset, _narrow(largest, kept, noise3, dither_state), mask)
    if averages_variance:
        tl.store(variance_at + offset, _narrow(variance, kept, noise2, dither_state), mask)
    tl.store(param_at + offset, _narrow(param, stored, noise4, dither_param), mask)


@triton.jit
def _column(at, column, begin, dtype: tl.constexpr, aligned: tl.constexpr):
    """Return where a chunk of one tensor begins."""
    start = tl.load(at + column).to(tl.pointer_type(dtype)) + begin
    if aligned:
        start = tl.multiple_of(start, 16)
    return start


@triton.jit
def _widen(stored, real: tl.constexpr):
    """Return stored numbers in the precision that they are computed in; uint16 is bfloat16."""
    if stored.dtype == tl.uint16:
        value = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = stored.to(real)
    return value


@triton.jit
def _narrow(value, dtype: tl.constexpr, noise, dithered: tl.constexpr):
    """Round to the stored dtype; to bfloat16 with noise, 0 to 65535, in the bits cut off."""
    if dtype == tl.uint16:
        bits = value.to(tl.uint32, bitcast=True)
        if dithered:
            bits += noise
        else:
            bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, half to even
        # A NaN's payload may carry into the sign.
        stored = tl.where(value == value, bits >> 16, 0x7FC0).to(tl.uint16)
    else:
        stored = value.to(dtype)
    return stored


@triton.jit
def _key(seed, stream, step):
    """Start of the noise for one tensor and step."""
    key = _mix(_mix(seed.to(tl.int64).to(tl.uint32)) + stream.to(tl.uint32))
    return _mix(key + step.to(tl.int64).to(tl.uint32))


@triton.jit
def _mix(x):
    """Mix 32 bits (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)
