"""Generated shapes, dtypes, rows, betas and gradients: the oracle's bound, and invariants.

What is claimed, for a dtype of unit eps: |theta - ref| <= 64 eps (|theta_0| + sum |updates|), each
coordinate by itself, and half of that between engines. Half types keep parameter and state in half
precision, so their errors grow with the number of steps; here it is at most 6. Gradients lie where
g^2 and (1 - beta) g^2 are normal numbers of the dtype (float16: |g| in [1/2, 8]); what happens
outside is tested at the end. A beta below 0.1 other than 0 is left out: s then multiplies v - m^2,
and its round-off, by 1/beta.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from measured import assert_within

from svag import Anatomy
from svag.variance.grad_var import attach, current

from .cases import (
    ADAPTED,
    CASES,
    CORRECTED,
    ENGINES,
    EVERY_KIND,
    FEW,
    WITHIN_BATCH,
    Case,
    by_name,
    flat,
    give,
    named,
)

STEPS = 6
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REAL = {torch.complex64: torch.float32}
SHAPES = ((), (1,), (0,), (3,), (3,), (17,), (2, 3), (4, 0), (5, 1, 2), (3, 4, 9, 7), (1025,))

betas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]) | st.floats(0.1, 0.999)
seeds = st.integers(0, 2**32 - 1)
engines = st.sampled_from(list(ENGINES.values()))


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


# ------------------------------------------------------------------- against the oracle


@dataclass(frozen=True)
class Made:
    """One parameter: its shape, how it and its gradients are stored, its options, and when it has
    gradients."""

    shape: tuple[int, ...]
    layout: str
    gradient_layout: str
    group: int
    present: tuple[bool, ...]


@dataclass(frozen=True)
class Problem:
    """Everything that is generated."""

    case: Case
    dtype: torch.dtype
    tensors: tuple[Made, ...]
    beta: float
    scale: float
    noise: float
    sparse: bool
    groups: tuple[tuple[tuple[str, Any], ...], ...]
    in_place: bool
    seed: int

    @property
    def unit(self) -> float:
        return eps(REAL.get(self.dtype, self.dtype))

    def coupled_decay(self, group: int) -> float:
        options = dict(self.groups[group])
        return 0.0 if options["decoupled_weight_decay"] else options["weight_decay"]


layouts = st.sampled_from(["contiguous", "contiguous", "channels last", "reversed"])
groups_of_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-3, 0.01, 0.1]),
        "weight_decay": st.sampled_from([0.0, 0.05]),
        "decoupled_weight_decay": st.booleans(),
        "maximize": st.booleans(),
    }
).map(lambda options: tuple(options.items()))


@st.composite
def tensors(draw):
    steps = draw(st.integers(1, STEPS))
    presence = st.one_of(
        st.just((True,) * steps),
        st.integers(1, STEPS).map(lambda late: tuple(t >= late for t in range(steps))),
        st.tuples(*[st.booleans()] * steps),
    )
    one = st.builds(Made, st.sampled_from(SHAPES), layouts, layouts, st.integers(0, 2), presence)
    return draw(st.lists(one, min_size=1, max_size=5).map(tuple))


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from([*DTYPES, *REAL]))
    exponents = st.integers(-15, 15) if dtype != torch.float16 else st.just(0)
    groups = draw(st.tuples(*[groups_of_options] * 3))
    couples = any(o["weight_decay"] and not o["decoupled_weight_decay"] for o in map(dict, groups))
    return Problem(
        case=draw(st.sampled_from(FEW) | st.sampled_from(CASES + WITHIN_BATCH)),
        dtype=dtype,
        tensors=draw(tensors()),
        beta=draw(betas),
        # Coupled decay adds wd * theta to g. It is kept smaller than any gradient but zero, so that
        # the sum never cancels: its digits would be those of theta's round-off.
        scale=2.0 ** draw(exponents) if not couples else 1.0,
        noise=draw(st.sampled_from([0.0, 0.01, 1.0])),
        sparse=draw(st.booleans()),
        groups=groups,
        in_place=draw(st.booleans()),
        seed=draw(seeds),
    )


def generate(problem: Problem, rng: np.random.Generator, shape: tuple[int, ...]):
    """A start and STEPS gradients: |g| / scale in {0} and [1/2, 8], of any or of constant sign."""
    size = (STEPS, *shape)
    constant = rng.uniform(1.0, 4.0, shape) * rng.choice([-1.0, 1.0], shape)
    if problem.noise < 1.0:
        gradients = constant * (1.0 + problem.noise * rng.uniform(-1.0, 1.0, size))
    else:
        gradients = rng.choice([-1.0, 1.0], size) * 2.0 ** rng.uniform(-1.0, 3.0, size)
    if problem.sparse:
        gradients = gradients * rng.choice([0.0, 1.0], size)
    start = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    if problem.scale != 1.0:
        start = start * rng.choice([0.0, 1.0], shape)
    return start, problem.scale * gradients


def stored(values, dtype: torch.dtype, layout: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(values)).to(REAL.get(dtype, dtype))
    if dtype.is_complex:
        tensor = torch.complex(tensor[..., 0], tensor[..., 1])
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order) if layout == "reversed" else tensor


def round_off_of_momentum(steps, beta: float, unit: float, reach, weight_decay: float):
    """How far m may be from its exact value, at each step.

    Each of the t + 1 recurrences rounds m~ once or twice, each time by at most unit |m~|, and with
    coupled decay g inherits wd times theta's own round-off. So with n = 2 (t + 1):
    n unit (sum_s c_s |g_s| + wd (|theta_0| + sum |updates|)).
    """
    magnitude = np.zeros_like(reach)
    bounds = []
    for t, step in enumerate(steps):
        magnitude = beta * magnitude + (1.0 - beta) * np.abs(step.gradient)
        average = magnitude / (1.0 - beta ** (t + 1))
        bounds.append(2 * (t + 1) * unit * (average + weight_decay * reach))
    return bounds


def undecided(problem: Problem, decay: float, steps, reach):
    """Coordinates in which the sign of m was, at some step, below round-off.

    Only M-SSD jumps there; with a variance-adapted factor the update is continuous in m. A
    coordinate whose gradients have all been zero is decided: m = 0 exactly.
    """
    anatomy = problem.case.anatomy
    lost = np.zeros(reach.shape, bool)
    if anatomy.direction == "momentum" and anatomy.sign and anatomy.factor == "none":
        bounds = round_off_of_momentum(steps, problem.beta, problem.unit, reach, decay)
        for step, bound in zip(steps, bounds, strict=True):
            lost |= (np.abs(step.m) <= bound) & (bound > 0)
    return lost


def followed(problem: Problem, **flags: Any):
    """The optimizer, its parameters, where they started and ended, and what each was given."""
    rng = np.random.default_rng(problem.seed)
    pair = (2,) if problem.dtype.is_complex else ()
    drawn = [generate(problem, rng, (*of.shape, *pair)) for of in problem.tensors]
    params = [
        torch.nn.Parameter(stored(start, problem.dtype, of.layout))
        for (start, _), of in zip(drawn, problem.tensors, strict=True)
    ]
    groups = [{"params": [], **dict(options)} for options in problem.groups]
    for of, param in zip(problem.tensors, params, strict=True):
        groups[of.group]["params"].append(param)
    optimizer = problem.case.build(
        [g for g in groups if g["params"]], **problem.case.decay(problem.beta), **flags
    )
    starts, held = list(map(flat, params)), []
    seen, samples = ([[] for _ in params] for _ in range(2))
    for t in range(len(problem.tensors[0].present)):
        for i, ((_, gradients), of) in enumerate(zip(drawn, problem.tensors, strict=True)):
            gradient, param = stored(gradients[t], problem.dtype, of.gradient_layout), params[i]
            if not of.present[t]:
                param.grad = None
            elif problem.in_place and param.grad is not None:
                param.grad.copy_(gradient)
            else:
                held.append(param.grad)  # so that the new one lies elsewhere
                param.grad = gradient
            seen[i].append(flat(gradient) if of.present[t] else None)
            if of.present[t] and problem.case.within_batch:
                samples[i].append(rng.exponential(seen[i][-1] ** 2).astype(np.float32))
                variance = torch.from_numpy(samples[i][-1]).reshape((*of.shape, *pair))
                variance = torch.view_as_complex(variance) if pair else variance
                attach(param, variance)
                samples[i][-1] = flat(current(param))
            else:
                samples[i].append(None)
        optimizer.step()
    return optimizer, params, starts, list(map(flat, params)), seen, samples


# What None chooses leaves to the eager engine whatever is not laid out as its gradient.
@given(problem=problems())
@settings(max_examples=150)
def test_within_64_eps_of_the_reference_and_32_of_each_other(problem):
    case = problem.case
    ways = {"eager": {"foreach": False}, "lists": {"foreach": True}}
    if case in FEW:  # so that some 100 loops are compiled and not 1000
        ways["chosen"] = {}
    runs = {way: followed(problem, **flags) for way, flags in ways.items()}
    _, first, starts, eager, seen, samples = runs["eager"]
    for i, of in enumerate(problem.tensors):
        options = {**case.decay(problem.beta), **dict(problem.groups[of.group])}
        sample = {"variances": samples[i]} if case.within_batch else {}
        steps = case.reference(seen[i], starts[i], **sample, **options)
        taken = [step for step in steps if step is not None]
        reach = sum((np.abs(step.update) for step in taken), np.abs(starts[i]))
        end = taken[-1].theta if taken else starts[i]
        kept = ~undecided(problem, problem.coupled_decay(of.group), taken, reach)
        event(f"kept all coordinates: {kept.all()}")
        unit = np.where(reach > 0, problem.unit * reach, np.finfo(float).tiny)
        for way, (optimizer, params, _, ends, *_) in runs.items():
            off = (np.abs(ends[i] - end) / unit)[kept].max(initial=0.0)
            apart = (np.abs(ends[i] - eager[i]) / unit)[kept].max(initial=0.0)
            assert off <= 64, way
            assert_within(f"engines' agreement in eps, {way}", apart, 32.0, str(case))
            mine, theirs = optimizer.state[params[i]], runs["eager"][0].state[first[i]]
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                assert value.stride() == theirs[name].stride()
                assert name != "step" or value == sum(of.present)


# ------------------------------------------------------------------------------ invariants


def noisy(seed: int, size: int = 40) -> list[torch.Tensor]:
    """STEPS gradients of mixed relative variance, some of them zero, some zero throughout."""
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(size=size), 10.0 ** rng.uniform(-2.0, 1.0, size)
    gradients = mean + deviation * rng.standard_normal((STEPS, size))
    gradients *= rng.choice([0.0, 1.0], gradients.shape, p=[0.1, 0.9])
    gradients[:, :2] = 0.0
    return [torch.from_numpy(g).float() for g in gradients]


def path(case: Case, gradients, start=None, variances=None, **options) -> list[torch.Tensor]:
    """Theta after each step, from zero unless told otherwise."""
    start = torch.zeros_like(gradients[0]) if start is None else start
    param = torch.nn.Parameter(start.clone())
    optimizer = case.build([param], **options)
    thetas = []
    for t, gradient in enumerate(gradients):
        give(param, gradient, None if variances is None else variances[t])
        optimizer.step()
        thetas.append(param.detach().clone())
    return thetas


def assert_equal_paths(ours, theirs):
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=lambda m, t=t: f"step {t}: {m}")


def assert_paths_within(ours, theirs, units: int):
    """Within ``units`` eps of the length of the way."""
    unit = eps(theirs[0].dtype)
    length, last = torch.zeros_like(theirs[0]), torch.zeros_like(theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        length += (b - last).abs()
        last = b
        assert bool(((a - b).abs() <= units * unit * length).all())


def plain(case: Case) -> Case:
    """The same direction without a factor."""
    anatomy = Anatomy(case.anatomy.direction, case.anatomy.sign)
    return next(c for c in CORRECTED if c.anatomy == anatomy)


@by_name([case for case in CASES + WITHIN_BATCH if not case.amsgrad])
@given(seed=seeds, beta=betas, exponent=st.integers(-8, 8), engine=engines)
@settings(max_examples=10)
def test_only_the_sign_is_free_of_the_gradients_scale(case, seed, beta, exponent, engine):
    """Exactly so: powers of two scale every intermediate quantity without rounding."""
    eps = {"eps": 0.0} if case.raw else {}
    options = {"lr": 0.3, **engine, **case.decay(beta), **eps}
    gradients, scale = noisy(seed), 2.0**exponent
    variances = [g.square() for g in noisy(seed + 1)] if case.within_batch else None
    thetas = path(case, gradients, variances=variances, **options)
    if variances:
        variances = [scale**2 * s for s in variances]
    scaled = path(case, [scale * g for g in gradients], variances=variances, **options)
    expected = thetas if case.anatomy.sign else [scale * theta for theta in thetas]
    assert_equal_paths(scaled, expected)


@by_name(ADAPTED + WITHIN_BATCH)
@given(
    seed=seeds,
    beta=betas,
    # As they are stored has no part in it, and a loop is compiled for each pair and case.
    of=st.sampled_from(
        [
            *((d, e) for d in DTYPES[:2] for e in ENGINES.values()),
            *((d, ENGINES["eager"]) for d in DTYPES[2:]),
        ]
    ),
)
@settings(max_examples=15)
def test_without_variance_nothing_is_adapted(case, seed, beta, of):
    """Constant gradients, or mini-batches that agree: M-SVAG is M-SGD, Adam* M-SSD, and so on."""
    dtype, engine = of
    rng = np.random.default_rng(seed)
    gradient = torch.from_numpy(rng.choice([-1, 1], 40) * rng.uniform(0.5, 8.0, 40)).to(dtype)
    none = [torch.zeros(40)] * STEPS if case.within_batch else None
    ours, theirs = (
        path(c, [gradient] * STEPS, None, none, lr=0.1, **c.decay(beta), **engine)
        for c in (case, plain(case))
    )
    assert_paths_within(ours, theirs, 32)


@by_name(CORRECTED)
@given(seed=seeds, beta=betas)
@settings(max_examples=15)
def test_the_first_step_and_every_one_with_beta_zero_is_a_gradient_step(case, seed, beta):
    gradients, gradient_case = noisy(seed), named("ssd" if case.anatomy.sign else "sgd")[0]
    expected = path(gradient_case, gradients, lr=0.1)
    assert_paths_within(path(case, gradients[:1], lr=0.1, **case.decay(beta)), expected[:1], 2)
    assert_equal_paths(path(case, gradients, lr=0.1, **case.decay(0.0)), expected)


@by_name(FEW)
def test_gradients_and_variances_are_left_alone(case, engine):
    """A step changes what it moves and nothing else, by the version counters, too."""
    param, still = torch.nn.Parameter(torch.ones(40)), torch.nn.Parameter(torch.ones(3))
    options = {"weight_decay": 0.1, "maximize": True}
    optimizer = case.build([param, still], **options, **engine)
    variance = torch.linspace(0.0, 4.0, 40)
    for gradient in noisy(0):
        give(param, gradient, variance if case.within_batch else None)
        given_gradient, before = param.grad, [x._version for x in (param, still, param.grad)]
        optimizer.step()
        after = [x._version for x in (param, still, param.grad)]
        assert [b > a for a, b in zip(before, after, strict=True)] == [True, False, False]
        assert param.grad is given_gradient
        assert torch.equal(param.grad, gradient)
        assert not case.within_batch or torch.equal(current(param), variance)
    assert torch.equal(still, torch.ones(3))


@by_name(CASES + WITHIN_BATCH)
def test_zero_gradients_move_nothing(case, engine):
    """m = v = 0, even without an eps, and in every dtype and upwards where a loop is no matter."""
    options = {"eps": 0.0} if case.raw else {}
    few = "fused" in engine and case not in EVERY_KIND
    for dtype, maximize in ((d, m) for d in DTYPES[: 1 if few else 4] for m in (False, not few)):
        start = torch.linspace(-1.0, 1.0, 9).to(dtype)
        zeros = [torch.zeros_like(start)] * 3
        variances = [torch.ones(9)] * 3 if case.within_batch else None
        flags = {"maximize": maximize, **engine, **options}
        assert_equal_paths(path(case, zeros, start, variances, **flags), [start] * 3)


# ---------------------------------------------------------------------------- out of range

RANGE = {torch.float32: (-30.0, 30.0), torch.bfloat16: (-30.0, 30.0), torch.float16: (-7.0, 4.75)}


@by_name(CASES)
@given(
    seed=seeds, dtype=st.sampled_from(list(RANGE)), beta=betas, wild=st.booleans(), engine=engines
)
@settings(max_examples=25)
def test_no_gradient_makes_a_nan(case, seed, dtype, beta, wild, engine):
    """Tiny, huge and zero gradients, mixed within a coordinate (wild) or not.

    Corrected rows stay finite too. A raw factor has no bound, so a raw row may leave the range.
    """
    if "fused" in engine and case not in EVERY_KIND:
        dtype = torch.float32  # one loop of each row is enough
    rng = np.random.default_rng(seed)
    low, high = RANGE[dtype]
    exponents = rng.uniform(low, high, (STEPS, 60) if wild else (1, 60))
    gradients = rng.choice([-1.0, 0.0, 1.0], (STEPS, 60), p=[0.4, 0.2, 0.4]) * 10.0**exponents
    gradients = [torch.from_numpy(g).to(dtype) for g in gradients]
    thetas = path(case, gradients, lr=0.1, **case.decay(beta), **engine)
    assert not any(bool(theta.isnan().any()) for theta in thetas)
    if not case.raw:
        assert all(bool(theta.isfinite().all()) for theta in thetas)


@by_name(ADAPTED)
@given(seed=seeds, beta=st.floats(0.1, 0.999), engine=engines)
@settings(max_examples=6)
def test_where_the_square_underflows_nothing_is_adapted(case, seed, beta, engine):
    gradients = [1e-25 * g for g in noisy(seed)]
    ours = path(case, gradients, lr=0.1, **case.decay(beta), **engine)
    theirs = path(plain(case), gradients, lr=0.1, **plain(case).decay(beta))
    assert_paths_within(ours, theirs, 8)


@by_name(ADAPTED)
@given(seed=seeds, beta=st.floats(0.1, 0.999), engine=engines)
@settings(max_examples=6)
def test_where_the_square_overflows_nothing_moves(case, seed, beta, engine):
    rng = np.random.default_rng(seed)
    gradients = torch.from_numpy(rng.choice([-1.0, 1.0], (STEPS, 20)) * rng.uniform(0.5, 2.0, 20))
    options = {"lr": 0.1, **case.decay(beta), **engine}
    first, *others = path(case, list((1e25 * gradients).float()), **options)
    assert bool((first != 0).all())  # gamma = 1 at t = 0 whatever the variance
    assert all(torch.equal(theta, first) for theta in others)
