"""The loop that Numba compiles: the rule on one element, through a thread's portions.

:func:`loop_of` makes one loop for each :class:`~svag.optim.engines.kernel.Kernel`, whose switches
are constants in it. Every element is read once, updated in registers and written once. What a step
needs to know of a tensor, :func:`beginning` works out once for all its elements.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]

from svag.compiled.foreign import have_done, tell
from svag.compiled.machine_code import compiled, fetch, pointer, take
from svag.optim.engines.bits import LOW, NEAREST, NEXT, STORAGE, mix, narrow, widen
from svag.optim.engines.kernel import ADDRESSES, OPTIONS, Kernel
from svag.optim.engines.schedule import CHUNK, PORTION, RANGE

NUMBERS: Final = np.dtype(
    [
        ("keep", np.float64),  # beta
        ("take", np.float64),  # 1 - beta
        ("keep2", np.float64),  # beta2
        ("take2", np.float64),  # 1 - beta2
        ("before", np.float64),  # what makes the last m of exp_avg, 0 at the first step
        ("square", np.float64),  # weights in the variance of exp_avg: of exp_avg_sq,
        ("mean_square", np.float64),  # of exp_avg^2,
        ("deviation", np.float64),  # and of (g - m)^2
        ("ceiling", np.float64),  # of that variance: 0 if there is none yet, else inf
        ("mean", np.float64),  # what makes m of exp_avg, in raw rows
        ("eps", np.float64),
        ("lr", np.float64),  # what gamma times the direction is multiplied by
        ("weight_decay", np.float64),  # coupled
        ("shrink", np.float64),  # 1 - lr * decoupled weight decay
        ("gradient", np.float64),  # what makes g of grad
        ("key", np.int64),  # of the noise in stochastic rounding
    ]
)
"""The numbers of one tensor's step, the same for all its elements."""

JOB: Final = np.dtype(
    [
        ("tensors", np.int64),
        ("chunks", np.int64),
        ("portions", np.int64),
        ("ranges", np.int64),
        ("groups", np.int64),
        ("begun", np.int64),  # how many threads have
        ("threads", np.int64),  # that run the loop; 0 if somebody else sees to it
        ("parallel", np.int64),  # what has them do so
        ("loop", np.int64),
        ("grad_step", np.int64),  # bytes from one gradient's address to the next one's
        ("grad_table", np.int64),  # of tables, from here on
        ("addresses", np.int64),
        ("numbers", np.int64),
        ("chunk_table", np.int64),
        ("portion_table", np.int64),
        ("range_table", np.int64),
        ("group_table", np.int64),
        ("stream_table", np.int64),
        ("options", np.int64),
        ("momentum", np.int64),  # switches, from here on
        ("sign", np.int64),
        ("raw", np.int64),
        ("adam", np.int64),
        ("within_batch", np.int64),
    ]
)


_BEGUN: Final = next(i for i, name in enumerate(JOB.names or ()) if name == "begun") * 8
_RANGE_BYTES: Final = RANGE.itemsize


@compiled
def _debiasing(beta, step):
    """1 - beta^step, as :func:`svag.optim.moments.debiasing`."""
    return 1.0 if beta == 0.0 else -math.expm1(step * math.log(beta))


@compiled
def _number(row, options, step, job):
    """Fill in the numbers of one tensor's step, the key apart."""
    beta, lr = options.beta, options.lr
    weight, root_weight2 = _debiasing(beta, step), math.sqrt(_debiasing(options.beta2, step))
    row.keep = beta
    row.take = 1 - beta
    row.keep2 = options.beta2
    row.take2 = 1 - options.beta2
    before = 1 / _debiasing(beta, step - 1) if step > 1 else 0.0
    # s of moments.gradient_variance, rho s for m, times the square of what debiases exp_avg.
    share = (1 + beta) / 2 * weight * weight
    if job.momentum:
        share *= (1 - beta) * (2 - weight) / ((1 + beta) * weight)
    row.before = before
    row.square = share * before
    row.mean_square = share * before * before
    row.deviation = share * (1 - beta) / weight
    row.ceiling = np.inf if step > 1 and beta > 0 else 0.0
    row.mean = root_weight2 / weight
    row.eps = options.eps * root_weight2
    row.lr = lr
    if job.adam:
        row.lr = lr * root_weight2 / weight
    elif job.momentum and not job.sign:
        row.lr = lr / weight
    row.weight_decay = options.weight_decay
    row.shrink = 1 - lr * options.decoupled_weight_decay
    row.gradient = options.gradient


@compiled
def _key(seed, stream, step):
    """Start of the noise for one tensor and step."""
    key = mix(np.uint32(mix(np.uint32(seed)) + np.uint32(stream)))
    return mix(np.uint32(key + np.uint32(step)))


def beginning() -> Callable[[Any], None]:
    """Return what begins a step and has the loop run, a function of a job's address."""

    def begin(job_address):
        """Count the step of every tensor, and work out its numbers once for all its elements."""
        job = carray(pointer(job_address), 1, JOB)[0]
        addresses = carray(pointer(job.addresses), job.tensors, ADDRESSES)
        numbers = carray(pointer(job.numbers), job.tensors, NUMBERS)
        groups = carray(pointer(job.group_table), job.tensors, np.int64)
        streams = carray(pointer(job.stream_table), job.tensors, np.int64)
        options = carray(pointer(job.options), job.groups, OPTIONS)
        for i in range(job.tensors):
            fetch(addresses[i].step)
        group_before, step_before = np.int64(-1), 0.0
        for i in range(job.tensors):
            group, step = groups[i], 1.0
            if addresses[i].step != 0:
                counter = carray(pointer(addresses[i].step), 1, np.float32)
                counter[0] += np.float32(1)
                step = float(counter[0])
            if group == group_before and step == step_before:
                numbers[i] = numbers[i - 1]
            else:
                _number(numbers[i], options[group], step, job)
                group_before, step_before = group, step
            numbers[i].key = _key(options[group].seed, streams[i], step)
        ranges = carray(pointer(job.range_table), job.ranges, RANGE)
        for i in range(job.ranges):
            ranges[i].next = ranges[i].begin
        job.begun = 0
        if job.threads > 1:
            have_done(job.parallel, job.loop, job_address, job.threads, np.int64(0))
        elif job.threads == 1:
            tell(job.loop, job_address)

    return begin


@compiled
def _shrinkage(spread, square, factor):
    """Return gamma of a variance and a squared mean, which is neither 0 nor inf."""
    if factor == _ERF:
        return _reliability(spread / square)
    gamma = square / (square + spread)
    return math.sqrt(gamma) if factor == _SQRT else gamma


@compiled
def _reliability(eta_sq):
    """erf(1/sqrt(2 eta_sq)), Eqs. (10) and (16)."""
    one, two = type(eta_sq)(1), type(eta_sq)(2)
    least = type(eta_sq)(1e-3)  # erf is 1 there
    if eta_sq != eta_sq:
        return eta_sq
    return math.erf(one / math.sqrt(two * (eta_sq if eta_sq > least else least)))


@compiled
def _raw_factor(denominator, mean, factor):
    """Return gamma of Adam's 1 + r = v/m^2, sqrt(v) being ``denominator``; 0 where m is 0."""
    one, zero = type(mean)(1), type(mean)(0)
    ratio = denominator / mean
    dispersion = ratio * ratio
    if factor == _ERF:
        return _reliability(dispersion - one)
    gamma = one / (dispersion if factor == _SVAG else math.sqrt(dispersion))
    return gamma if gamma == gamma else zero


_SVAG, _SQRT, _ERF = range(1, 4)
_FACTORS: Final[dict[str, int]] = {"none": 0, "svag": _SVAG, "sqrt": _SQRT, "erf": _ERF}


@compiled
def _spread(g, mean, square, numbers):
    """Return the variance of the direction, in units of exp_avg, from the averages before g.

    The last of ``numbers`` is 0 if there is no variance yet, else inf, which stands for a variance
    that has left the range too (inf - inf).
    """
    before, of_square, of_mean_square, deviation, ceiling = numbers
    difference = g - mean * before
    spread = of_square * square - of_mean_square * (mean * mean)
    spread += deviation * (difference * difference)
    spread = type(g)(0) if spread < type(g)(0) else spread
    return spread if spread < ceiling else ceiling


def loop_of(kernel: Kernel) -> Callable[[Any], None]:
    """Return the loop over all elements for one kernel, a function of a job's address.

    The switches are constants in it, and Numba leaves out what they exclude.
    """
    momentum, sign, raw, adam = kernel.momentum, kernel.sign, kernel.raw, kernel.adam
    within_batch, amsgrad = kernel.within_batch, kernel.amsgrad
    decays, alters = kernel.decays, kernel.alters
    averages_gradient, averages_square = kernel.averages_gradient, kernel.averages_square
    factor = _FACTORS[kernel.factor]
    adapted = factor != 0
    dither_param, dither_state = kernel.dither_param, kernel.dither_state
    dithers = dither_param or dither_state
    real = np.float64 if kernel.param == torch.float64 else np.float32
    tiny, huge = float(np.finfo(real).tiny), float(np.finfo(real).max)
    root_tiny = tiny**0.5
    stored, kept = STORAGE[kernel.param], STORAGE[kernel.state]
    stored_bytes, kept_bytes = kernel.param.itemsize, kernel.state.itemsize
    real_bytes = np.dtype(real).itemsize

    def loop(job_address):
        job = carray(pointer(job_address), 1, JOB)[0]
        address_table = carray(pointer(job.addresses), job.tensors, ADDRESSES)
        number_table = carray(pointer(job.numbers), job.tensors, NUMBERS)
        chunks = carray(pointer(job.chunk_table), job.chunks, CHUNK)
        portions = carray(pointer(job.portion_table), job.portions, PORTION)
        ranges = carray(pointer(job.range_table), job.ranges, RANGE)
        zero, one = real(0), real(1)
        least, most, least_root = real(tiny), real(huge), real(root_tiny)
        own, others = take(pointer(job_address + _BEGUN)), 0
        while others < job.ranges:
            place = (own + others) % job.ranges
            taken = take(pointer(job.range_table + place * _RANGE_BYTES))
            if taken >= ranges[place].end:
                others += 1
                continue
            for index in range(portions[taken].begin, portions[taken].end):
                chunk = chunks[index]
                begin, n = chunk.begin, chunk.end - chunk.begin
                at, number = address_table[chunk.tensor], number_table[chunk.tensor]
                param_of = carray(pointer(at.param + begin * stored_bytes), n, stored)
                grad_at = pointer(job.grad_table + chunk.tensor * job.grad_step)
                grad = carray(grad_at, 1, np.int64)[0]
                grad_of = carray(pointer(grad + begin * stored_bytes), n, stored)
                mean_of = carray(pointer(at.exp_avg + begin * kept_bytes), n, kept)
                square_of = carray(pointer(at.exp_avg_sq + begin * kept_bytes), n, kept)
                largest_of = carray(pointer(at.max_exp_avg_sq + begin * kept_bytes), n, kept)
                variance_of = carray(pointer(at.exp_avg_var + begin * kept_bytes), n, kept)
                sample_of = carray(pointer(at.grad_var + begin * real_bytes), n, real)
                gradient, lr = real(number.gradient), real(number.lr)
                weight_decay, shrink = real(number.weight_decay), real(number.shrink)
                keep, weight = real(number.keep), real(number.take)
                # From the nearer end, so that neither end is lost to rounding.
                nearer_old = weight < 0.5
                lerp = weight if nearer_old else -keep
                keep2, take2 = real(number.keep2), real(number.take2)
                variance_numbers = (
                    real(number.before),
                    real(number.square),
                    real(number.mean_square),
                    real(number.deviation),
                    real(number.ceiling),
                )
                scale_mean, eps = real(number.mean), real(number.eps)
                floor = least_root if eps == zero else zero
                count = np.uint32(np.uint32(number.key) + np.uint32(np.uint32(begin) * NEXT))
                noise = noise2 = noise3 = noise4 = NEAREST
                for i in range(n):
                    if dithers:
                        word = mix(count)
                        count = np.uint32(count + NEXT)
                        if dither_state:
                            noise, noise2 = np.uint32(word & LOW), np.uint32(word >> np.uint32(16))
                        if dither_param or amsgrad:
                            word = mix(word)
                            if dither_state:
                                noise3 = np.uint32(word & LOW)
                            if dither_param:
                                noise4 = np.uint32(word >> np.uint32(16))
                    param = widen(param_of[i])
                    g = widen(grad_of[i])
                    if alters:
                        g *= gradient
                    if decays and weight_decay != zero:  # which another group's may be
                        g += weight_decay * param
                    if alters:
                        param *= shrink
                    direction, mean, spread = g, g, zero
                    if averages_gradient:
                        old = widen(mean_of[i])
                        mean = (old if nearer_old else g) + lerp * (g - old)
                        mean_of[i] = narrow(mean, mean_of[i], noise)
                        if momentum:
                            direction = mean
                        if raw:
                            mean *= scale_mean
                    if averages_square:
                        square = widen(square_of[i])
                        if not raw:
                            spread = _spread(g, old, square, variance_numbers)
                        square = keep2 * square + take2 * g * g
                        square_of[i] = narrow(square, square_of[i], noise2)
                        if amsgrad:
                            largest = widen(largest_of[i])
                            square = largest if largest > square else square
                            largest_of[i] = narrow(square, largest_of[i], noise3)
                    if within_batch:
                        spread = gradient * gradient * sample_of[i]
                        if momentum:
                            old = widen(variance_of[i])
                            spread = keep * keep * old + weight * weight * spread
                            variance_of[i] = narrow(spread, variance_of[i], noise2)
                    gamma = one
                    if raw:
                        root = math.sqrt(square)
                        root += eps
                        root = floor if root < floor else root
                        if adam:
                            direction /= root
                        else:
                            gamma = _raw_factor(root, mean, factor)
                    elif adapted:
                        square_mean = mean * mean
                        square_mean = most if square_mean > most else square_mean
                        gamma = _shrinkage(spread, square_mean + least, factor)
                    if sign and not adam:
                        # Without the last term a NaN would freeze a coordinate unseen.
                        positive = one if direction > zero else zero
                        negative = one if direction < zero else zero
                        direction = positive - negative + zero * direction
                    if adapted and not adam:
                        direction *= gamma
                    param_of[i] = narrow(param - lr * direction, param_of[i], noise4)

    return loop
