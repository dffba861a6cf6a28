"""What Numba compiles: the rule on one element, in a loop through a thread's portions.

:func:`loop_of` makes one loop for each :class:`~svag.optim.engines.kernel_spec.Kernel`, whose
switches are constants in it. Every element is read once, updated in registers and written once.
What a step needs to know of a tensor, :func:`beginning` works out once for all its elements.
"""

import ast
import math
import operator
import zlib
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import torch
from numba.extending import intrinsic, overload

from svag.compiled.instructions import array_at, fetch, pointer, take
from svag.compiled.machine_code import compiled
from svag.optim.engines.half_precision import NEAREST, STORAGE, narrow, widen
from svag.optim.engines.kernel_spec import ADDRESSES, OPTIONS, Kernel
from svag.optim.engines.numba_noise import LOW, NEXT, key, mix
from svag.optim.engines.work_partition import CHUNK, PORTION, RANGE
from svag.optim.rule import Arithmetic, Numbers, Switches, element_of, numbers_of

NUMBERS: Final = np.dtype([(name, np.float64) for name in (*Numbers._fields, "step")])
"""The numbers of one tensor's step, the same for all its elements."""

JOB: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("tensors", "chunks", "portions", "ranges", "groups"),  # how many
            "begun",  # how many threads have
            # Where tables are:
            *("gradients", "addresses", "numbers", "chunk_table", "portion_table", "range_table"),
            *("group_table", "stream_table", "options"),
        )
    ]
)

_BEGUN: Final = (JOB.names or ()).index("begun") * 8
_RANGE_BYTES: Final = RANGE.itemsize


@compiled
def _sign(x):
    zero, one = type(x)(0), type(x)(1)
    # Without the last term a NaN would freeze a coordinate unseen.
    return (one if x > zero else zero) - (one if x < zero else zero) + zero * x


def _select(context, builder, signature, args, condition):
    """Choose the second or the third of some arguments, without a branch."""
    x, y = (
        context.cast(builder, arg, kind, signature.return_type)
        for arg, kind in zip(args[-2:], signature.args[-2:], strict=True)
    )
    return builder.select(condition, x, y)


@intrinsic
def _choose(typing, condition, x, y):
    """X if a condition holds, else y."""

    def generate(context, builder, signature, args):
        return _select(context, builder, signature, args, args[0])

    return typing.unify_types(x, y)(condition, x, y), generate


@intrinsic
def _least(typing, x, bound):
    """x, or a bound where x is not below it."""

    def generate(context, builder, signature, args):
        below = builder.fcmp_ordered("<", *args)
        return _select(context, builder, signature, args, below)

    return x(x, x), generate


@intrinsic
def _greatest(typing, x, bound):
    """x, or a bound where x is below it."""

    def generate(context, builder, signature, args):
        below = builder.fcmp_ordered("<", *args)
        return builder.select(below, args[1], args[0])

    return x(x, x), generate


@compiled
def _debiasing(beta, step):
    return 1.0 if beta == 0.0 else -math.expm1(step * math.log(beta))


def _bound(key: str) -> Callable[..., Any]:
    """Return what compiles the functions that a factory makes for one key.

    Compiled functions are linked by their names. Two of one name, kept on disk by two processes,
    would be taken for one function in a third, whatever their closures hold.
    """

    def compile_(function: Any) -> Any:
        function.__qualname__ += f"_{zlib.crc32(key.encode()):08x}"
        return compiled(function)

    return compile_


def _arithmetic(key: str, real: Any) -> Arithmetic:
    """Return the rule's operations on single numbers of a dtype of NumPy."""
    return Arithmetic(
        static=bool,
        function=_bound(key),
        number=real,
        tiny=float(np.finfo(real).tiny),
        huge=float(np.finfo(real).max),
        divide=operator.truediv,
        sqrt=math.sqrt,
        erf=math.erf,
        sign=_sign,
        least=cast(Any, _least),
        greatest=cast(Any, _greatest),
        choose=cast(Any, _choose),
        debiasing=_debiasing,
        root=math.sqrt,
    )


# Numba keeps machine code by the constants in a loop's closure, not by the functions there. So the
# loop has its switches as text, from which these two make their functions while it is compiled.


def _element(switches, param, grad, mean, square, largest, variance, sample, numbers):
    """Update an element, as :func:`svag.optim.rule.element_of`."""


@overload(_element)
def _element_for(switches, param, grad, mean, square, largest, variance, sample, numbers):
    if not hasattr(switches, "literal_value"):
        return None
    real = np.dtype(param.name).type
    key = f"{switches.literal_value} {param.name}"
    update = element_of(_switches(switches.literal_value), _arithmetic(key, real))
    update = _bound(key)(update)

    def element(switches, param, grad, mean, square, largest, variance, sample, numbers):
        return update(param, grad, mean, square, largest, variance, sample, numbers)

    element.__qualname__ = update.py_func.__qualname__ + "_"
    return element


def _numbers(switches, options, step):
    """Return the numbers of a step, as :func:`svag.optim.rule.numbers_of`."""


@overload(_numbers)
def _numbers_for(switches, options, step):
    if not hasattr(switches, "literal_value"):
        return None
    key = switches.literal_value
    work_out = _bound(key)(numbers_of(_switches(key), _arithmetic(key, np.float64)))

    def numbers(switches, options, step):
        o = options
        return work_out(
            *(o.lr, o.beta, o.beta2, o.eps),
            *(o.weight_decay, o.decoupled_weight_decay, o.gradient),
            step,
        )

    numbers.__qualname__ = work_out.py_func.__qualname__ + "_"
    return numbers


def _switches(text: str) -> Switches:
    return Switches(*ast.literal_eval(text))


def _text(switches: Switches) -> str:
    return repr(tuple(switches))


def beginning(switches: Switches) -> Callable[[Any], None]:
    """Return what begins a step, a function of a job's address."""
    text = _text(switches)

    def begin(job_address):
        """Count the step of every tensor, and work out its numbers once for all its elements."""
        job = array_at(job_address, 1, JOB)[0]
        gradients = array_at(job.gradients, job.tensors, np.int64)
        addresses = array_at(job.addresses, job.tensors, ADDRESSES)
        rows = array_at(job.numbers, job.tensors, NUMBERS)
        groups = array_at(job.group_table, job.tensors, np.int64)
        options = array_at(job.options, job.groups, OPTIONS)
        for i in range(job.tensors):
            fetch(addresses[i].step)
        group_before, step_before, last = np.int64(-1), 0.0, np.int64(0)
        for i in range(job.tensors):
            if gradients[i] == 0:
                continue
            group, step = groups[i], 1.0
            if addresses[i].step != 0:
                counter = array_at(addresses[i].step, 1, np.float32)
                counter[0] += np.float32(1)
                step = float(counter[0])
            if group == group_before and step == step_before:
                rows[i] = rows[last]
            else:
                row = rows[i]
                (
                    row.gradient, row.weight_decay, row.shrink, row.lr,
                    row.keep, row.take, row.keep2, row.take2,
                    row.before, row.of_square, row.of_mean_square, row.of_deviation, row.ceiling,
                    row.mean, row.eps,
                ) = _numbers(text, options[group], step)  # fmt: skip
                row.step = step
                group_before, step_before, last = group, step, i
        ranges = array_at(job.range_table, job.ranges, RANGE)
        for i in range(job.ranges):
            ranges[i].next = ranges[i].begin
        job.begun = 0

    return begin


def loop_of(kernel: Kernel) -> Callable[[Any], None]:
    """Return the loop over all elements for one kernel, a function of a job's address.

    The switches are constants in it, and Numba leaves out what they exclude.
    """
    switches = kernel.switches
    text = _text(switches)
    momentum, within_batch, amsgrad = switches.momentum, switches.within_batch, switches.amsgrad
    averages_gradient, averages_square = switches.averages_gradient, switches.averages_square
    dither_param, dither_state = kernel.dither_param, kernel.dither_state
    dithers = dither_param or dither_state
    real = np.float64 if kernel.param == torch.float64 else np.float32
    stored, kept = STORAGE[kernel.param], STORAGE[kernel.state]
    stored_bytes, kept_bytes = kernel.param.itemsize, kernel.state.itemsize
    real_bytes = np.dtype(real).itemsize

    def loop(job_address):
        job = array_at(job_address, 1, JOB)[0]
        gradients = array_at(job.gradients, job.tensors, np.int64)
        address_table = array_at(job.addresses, job.tensors, ADDRESSES)
        number_table = array_at(job.numbers, job.tensors, NUMBERS)
        chunks = array_at(job.chunk_table, job.chunks, CHUNK)
        portions = array_at(job.portion_table, job.portions, PORTION)
        ranges = array_at(job.range_table, job.ranges, RANGE)
        groups = array_at(job.group_table, job.tensors, np.int64)
        streams = array_at(job.stream_table, job.tensors, np.int64)
        options = array_at(job.options, job.groups, OPTIONS)
        zero = real(0)
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
                gradient = gradients[chunk.tensor]
                if gradient == 0:
                    continue
                at, row = address_table[chunk.tensor], number_table[chunk.tensor]
                params = array_at(at.param + begin * stored_bytes, n, stored)
                grads = array_at(gradient + begin * stored_bytes, n, stored)
                means = array_at(at.exp_avg + begin * kept_bytes, n, kept)
                squares = array_at(at.exp_avg_sq + begin * kept_bytes, n, kept)
                maxima = array_at(at.max_exp_avg_sq + begin * kept_bytes, n, kept)
                variances = array_at(at.exp_avg_var + begin * kept_bytes, n, kept)
                samples = array_at(at.grad_var + begin * real_bytes, n, real)
                numbers = (
                    real(row.gradient), real(row.weight_decay), real(row.shrink), real(row.lr),
                    real(row.keep), real(row.take), real(row.keep2), real(row.take2),
                    real(row.before), real(row.of_square), real(row.of_mean_square),
                    real(row.of_deviation), real(row.ceiling), real(row.mean), real(row.eps),
                )  # fmt: skip
                count = np.uint32(0)
                if dithers:
                    seed = options[groups[chunk.tensor]].seed
                    start = key(seed, streams[chunk.tensor], row.step)
                    count = np.uint32(start + np.uint32(np.uint32(begin) * NEXT))
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
                    param, mean, square, largest, variance = _element(
                        text,
                        widen(params[i]),
                        widen(grads[i]),
                        widen(means[i]) if averages_gradient else zero,
                        widen(squares[i]) if averages_square else zero,
                        widen(maxima[i]) if amsgrad else zero,
                        widen(variances[i]) if within_batch and momentum else zero,
                        samples[i] if within_batch else zero,
                        numbers,
                    )
                    if averages_gradient:
                        means[i] = narrow(mean, means[i], noise)
                    if averages_square:
                        squares[i] = narrow(square, squares[i], noise2)
                    if amsgrad:
                        maxima[i] = narrow(largest, maxima[i], noise3)
                    if within_batch and momentum:
                        variances[i] = narrow(variance, variances[i], noise2)
                    params[i] = narrow(param, params[i], noise4)

    return loop
