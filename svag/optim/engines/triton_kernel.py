# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""The rule as one Triton kernel: what :mod:`svag.optim.engines.cuda` launches.

A program of the grid updates one chunk of one tensor, block by block. It is written as the CPU
engine's loop is (:mod:`svag.optim.engines.cpu`), so that both give the same numbers: divisions
and square roots are rounded, and no product is fused into a sum (that is asked for at launch).

What is marked ``constexpr`` is a switch: Triton compiles one kernel for each combination.
"""

import triton
import triton.language as tl

NEXT: tl.constexpr = tl.constexpr(0x9E3779B9)
"""From the count of one element to the next one's, as in :mod:`svag.optim.rounding`."""

COLUMNS: tl.constexpr = tl.constexpr(8)
"""Of the tables of addresses and of options."""


@triton.jit
def step_kernel(
    chunks,  # a row a chunk: tensor, first element, number of elements
    tensors,  # a row a tensor: group, stream of noise, number of chunks
    addresses,  # a row a tensor, as kernel.ADDRESSES
    group_options,  # a row a group, as kernel.OPTIONS
    finished,  # chunks of each tensor that this step is done with
    grad_scale,
    found_inf,
    momentum: tl.constexpr,
    sign: tl.constexpr,
    factor: tl.constexpr,
    raw: tl.constexpr,
    adam: tl.constexpr,
    within_batch: tl.constexpr,
    amsgrad: tl.constexpr,
    decays: tl.constexpr,
    averages_gradient: tl.constexpr,
    averages_square: tl.constexpr,
    counts: tl.constexpr,
    dither_param: tl.constexpr,
    dither_state: tl.constexpr,
    stored: tl.constexpr,
    kept: tl.constexpr,
    real: tl.constexpr,
    tiny: tl.constexpr,
    root_tiny: tl.constexpr,
    huge: tl.constexpr,
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

    # A float32 counter, as torch's. Read before the barrier below, written behind it.
    step = tl.full((), 1.0, tl.float64)
    if counts:
        step += tl.load(tl.load(at + 7).to(tl.pointer_type(tl.float32))).to(tl.float64)
    lr = tl.load(option)
    beta = tl.load(option + 1)
    beta2 = tl.load(option + 2)
    gradient = (tl.load(option + 6) / tl.load(grad_scale).to(tl.float64)).to(real)
    key = _key(tl.load(option + 7), tl.load(about + 1), step)
    key += begin.to(tl.uint32) * NEXT
    weight_decay = tl.load(option + 4).to(real)
    shrink = (1 - lr * tl.load(option + 5)).to(real)

    # The numbers of this step, the same for all elements: numba_kernel._number.
    weight = _debiasing(beta, step)
    root_weight2 = tl.sqrt(_debiasing(beta2, step))
    before = tl.where(step > 1, 1 / _debiasing(beta, step - 1), 0.0)
    share = (1 + beta) / 2 * weight * weight
    if momentum:
        share *= (1 - beta) * (2 - weight) / ((1 + beta) * weight)
    of_square = (share * before).to(real)
    of_mean_square = (share * before * before).to(real)
    deviation = (share * (1 - beta) / weight).to(real)
    before = before.to(real)
    ceiling = tl.where((step > 1) & (beta > 0), float("inf"), 0.0).to(real)
    scale_mean = (root_weight2 / weight).to(real)
    eps = (tl.load(option + 3) * root_weight2).to(real)
    if adam:
        lr = lr * root_weight2 / weight
    elif momentum and not sign:
        lr = lr / weight

    # The tensors of columns that this kernel has not are not looked at.
    param_at = _column(at, 0, begin, stored, aligned)
    grad_at = _column(at, 1, begin, stored, aligned)
    mean_at = _column(at, 2, begin, kept, aligned) if averages_gradient else param_at
    square_at = _column(at, 3, begin, kept, aligned) if averages_square else param_at
    largest_at = _column(at, 4, begin, kept, aligned) if amsgrad else param_at
    variance_at = _column(at, 5, begin, kept, aligned) if within_batch and momentum else param_at
    sample_at = _column(at, 6, begin, real, aligned) if within_batch else param_at

    # Whole blocks need no mask; with one, Triton could not load four numbers at once.
    whole = size // block * block
    for first in range(0, whole, block):
        _update(
            param_at, grad_at, mean_at, square_at, largest_at, variance_at, sample_at,
            first, size, key, gradient, lr.to(real), weight_decay, shrink, beta, beta2,
            before, of_square, of_mean_square, deviation, ceiling, scale_mean, eps,
            momentum, sign, factor, raw, adam, within_batch, amsgrad, decays,
            averages_gradient, averages_square, dither_param, dither_state,
            stored, kept, real, tiny, root_tiny, huge, block, False,
        )  # fmt: skip
    if whole < size:
        _update(
            param_at, grad_at, mean_at, square_at, largest_at, variance_at, sample_at,
            whole, size, key, gradient, lr.to(real), weight_decay, shrink, beta, beta2,
            before, of_square, of_mean_square, deviation, ceiling, scale_mean, eps,
            momentum, sign, factor, raw, adam, within_batch, amsgrad, decays,
            averages_gradient, averages_square, dither_param, dither_state,
            stored, kept, real, tiny, root_tiny, huge, block, True,
        )  # fmt: skip

    if counts:
        # Whoever finishes a tensor last counts its step: all others have read it by then. The
        # barrier is needed because one thread does the counting, and others may be behind it.
        tl.debug_barrier()
        if tl.atomic_add(finished + tensor, 1, sem="acq_rel") == tl.load(about + 2) - 1:
            tl.store(finished + tensor, 0)
            tl.store(tl.load(at + 7).to(tl.pointer_type(tl.float32)), step.to(tl.float32))


@triton.jit
def _update(
    param_at, grad_at, mean_at, square_at, largest_at, variance_at, sample_at,
    first, size, key, gradient, lr, weight_decay, shrink, beta, beta2,
    before, of_square, of_mean_square, deviation, ceiling, scale_mean, eps,
    momentum: tl.constexpr, sign: tl.constexpr, factor: tl.constexpr, raw: tl.constexpr,
    adam: tl.constexpr, within_batch: tl.constexpr, amsgrad: tl.constexpr, decays: tl.constexpr,
    averages_gradient: tl.constexpr, averages_square: tl.constexpr,
    dither_param: tl.constexpr, dither_state: tl.constexpr,
    stored: tl.constexpr, kept: tl.constexpr, real: tl.constexpr,
    tiny: tl.constexpr, root_tiny: tl.constexpr, huge: tl.constexpr,
    block: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Update one block: the loop of numba_kernel.loop_of, element by element of it."""
    offset = first + tl.arange(0, block)
    mask = offset < size if masked else None
    zero = tl.full((), 0.0, real)
    one = tl.full((), 1.0, real)

    param = _widen(tl.load(param_at + offset, mask), real)
    g = gradient * _widen(tl.load(grad_at + offset, mask), real)
    if averages_gradient:
        old = _widen(tl.load(mean_at + offset, mask), real)
    if averages_square:
        square = _widen(tl.load(square_at + offset, mask), real)
    if amsgrad:
        largest = _widen(tl.load(largest_at + offset, mask), real)
    if within_batch:
        sample = tl.load(sample_at + offset, mask)
        if momentum:
            variance = _widen(tl.load(variance_at + offset, mask), real)

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

    keep = beta.to(real)
    take = (1 - beta).to(real)
    if decays:  # of some group: not 0 times an infinite parameter of another
        g = tl.where(weight_decay != zero, g + weight_decay * param, g)
    param *= shrink
    direction = g
    mean = g
    spread = zero
    if averages_gradient:
        # From the nearer end, so that neither end is lost to rounding.
        nearer_old = take < 0.5
        lerp = tl.where(nearer_old, take, -keep)
        mean = tl.where(nearer_old, old, g) + lerp * (g - old)
        tl.store(mean_at + offset, _narrow(mean, kept, noise, dither_state), mask)
        if momentum:
            direction = mean
        if raw:
            mean *= scale_mean
    if averages_square:
        if not raw:
            difference = g - old * before
            spread = of_square * square - of_mean_square * (old * old)
            spread += deviation * (difference * difference)
            spread = tl.where(spread < zero, zero, spread)
            # A ceiling of inf stands for a variance that has left the range too (inf - inf).
            spread = tl.where(spread < ceiling, spread, ceiling)
        square = beta2.to(real) * square + (1 - beta2).to(real) * g * g
        tl.store(square_at + offset, _narrow(square, kept, noise2, dither_state), mask)
        if amsgrad:
            square = tl.where(largest > square, largest, square)
            tl.store(largest_at + offset, _narrow(square, kept, noise3, dither_state), mask)
    if within_batch:
        spread = gradient * gradient * sample
        if momentum:
            spread = keep * keep * variance + take * take * spread
            tl.store(variance_at + offset, _narrow(spread, kept, noise2, dither_state), mask)

    gamma = one
    if raw:
        root = _sqrt(square)
        floor = tl.where(eps != zero, zero, tl.full((), root_tiny, real))
        root += eps
        root = tl.where(root < floor, floor, root)
        if adam:
            direction = _divide(direction, root)
        else:
            gamma = _raw_factor(root, mean, factor)
    elif factor != "none":
        most = tl.full((), huge, real)
        square_mean = mean * mean
        square_mean = tl.where(square_mean > most, most, square_mean)
        gamma = _shrinkage(spread, square_mean + tl.full((), tiny, real), factor)
    if sign and not adam:
        # Without the last term a NaN would freeze a coordinate unseen.
        direction = (
            tl.where(direction > zero, one, zero)
            - tl.where(direction < zero, one, zero)
            + zero * direction
        )
    if factor != "none" and not adam:
        direction *= gamma
    tl.store(param_at + offset, _narrow(param - lr * direction, stored, noise4, dither_param), mask)


@triton.jit
def _column(at, column, begin, dtype: tl.constexpr, aligned: tl.constexpr):
    """Return where a chunk of one tensor begins."""
    start = tl.load(at + column).to(tl.pointer_type(dtype)) + begin
    if aligned:
        start = tl.multiple_of(start, 16)
    return start


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


@triton.jit
def _shrinkage(spread, square, factor: tl.constexpr):
    """Return gamma of a variance and a squared mean, which is neither 0 nor inf."""
    if factor == "erf":
        gamma = _reliability(_divide(spread, square))
    else:
        gamma = _divide(square, square + spread)
        if factor == "sqrt":
            gamma = _sqrt(gamma)
    return gamma


@triton.jit
def _raw_factor(denominator, mean, factor: tl.constexpr):
    """Return gamma of Adam's 1 + r = v/m^2, sqrt(v) being ``denominator``; 0 where m is 0."""
    ratio = _divide(denominator, mean)
    dispersion = ratio * ratio
    if factor == "erf":
        gamma = _reliability(dispersion - 1)
    else:
        if factor == "sqrt":
            dispersion = _sqrt(dispersion)
        gamma = _divide(dispersion * 0 + 1, dispersion)
        gamma = tl.where(gamma == gamma, gamma, 0.0)
    return gamma


@triton.jit
def _reliability(eta_sq):
    """erf(1/sqrt(2 eta_sq)), Eqs. (10) and (16)."""
    least = tl.full((), 1e-3, eta_sq.dtype)  # erf is 1 there
    root = _sqrt(2 * tl.where(eta_sq > least, eta_sq, least))
    gamma = tl.erf(_divide(tl.full((), 1.0, eta_sq.dtype), root))
    return tl.where(eta_sq == eta_sq, gamma, eta_sq)


@triton.jit
def _divide(x, y):
    """x/y, rounded; Triton's own quotient of float32 is two units in the last place off."""
    return x / y if y.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _sqrt(x):
    """sqrt(x), rounded."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


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
