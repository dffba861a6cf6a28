"""Generated shapes, dtypes, anatomies, betas and gradients: the oracle's bound, and invariants.

What is claimed, for a dtype of unit eps: |theta - ref| <= 64 eps (|theta_0| + sum |updates|), each
coordinate by itself. Half types keep parameter and state in half precision, so their errors grow
with the number of steps; here it is at most 6. Gradients lie where g^2 and (1 - beta) g^2 are
normal numbers of the dtype (float16: |g| in [1/2, 8]); what happens outside is tested at the end.
A beta below 0.1 other than 0 is left out: s then multiplies v - m^2, and its round-off, by 1/beta.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

import svag

from .cases import ADAPTED, CASES, CORRECTED, ENGINES, Case, by_name, descend, flat, named

STEPS = 6
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((), (1,), (0,), (3,), (3,), (17,), (2, 3), (4, 0), (5, 1, 2), (8, 8), (1025,))

betas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]) | st.floats(0.1, 0.999)
seeds = st.integers(0, 2**32 - 1)
engines = st.sampled_from(list(ENGINES))


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


# ------------------------------------------------------------------- against the oracle


@dataclass(frozen=True)
class Tensor:
    """One parameter: its shape, which of it and its gradients are stored transposed, and when it
    has gradients."""

    shape: tuple[int, ...]
    transposed: bool
    gradients_transposed: bool
    present: tuple[bool, ...]


@dataclass(frozen=True)
class Problem:
    """Everything that is generated."""

    case: Case
    dtype: torch.dtype
    tensors: tuple[Tensor, ...]
    beta: float
    lr: float
    scale: float
    noise: float
    sparse: bool
    options: tuple[tuple[str, object], ...]
    seed: int

    @property
    def weight_decay(self):
        return dict(self.options)["weight_decay"]

    @property
    def coupled(self):
        return bool(self.weight_decay) and not dict(self.options)["decoupled_weight_decay"]


@st.composite
def tensors(draw):
    steps = draw(st.integers(1, STEPS))
    presence = st.one_of(
        st.just((True,) * steps),
        st.integers(1, STEPS).map(lambda late: tuple(t >= late for t in range(steps))),
        st.tuples(*[st.booleans()] * steps),
    )
    one = st.builds(Tensor, st.sampled_from(SHAPES), st.booleans(), st.booleans(), presence)
    return draw(st.lists(one, min_size=1, max_size=5).map(tuple))


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from(DTYPES))
    exponents = st.integers(-15, 15) if dtype != torch.float16 else st.just(0)
    options = {
        "weight_decay": draw(st.sampled_from([0.0, 0.0, 0.05])),
        "decoupled_weight_decay": draw(st.booleans()),
        "maximize": draw(st.booleans()),
    }
    coupled = bool(options["weight_decay"]) and not options["decoupled_weight_decay"]
    return Problem(
        case=draw(st.sampled_from(CASES)),
        dtype=dtype,
        tensors=draw(tensors()),
        beta=draw(betas),
        lr=draw(st.sampled_from([1e-3, 0.01, 0.1])),
        # Coupled decay adds wd * theta to g. It is kept smaller than any gradient but zero, so that
        # the sum never cancels: its digits would be those of theta's round-off.
        scale=2.0 ** draw(exponents) if not coupled else 1.0,
        noise=draw(st.sampled_from([0.0, 0.01, 1.0])),
        sparse=draw(st.booleans()),
        options=tuple(options.items()),
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


def stored(values, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype)
    return tensor.T.contiguous().T if transposed and tensor.dim() == 2 else tensor


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


def undecided(problem: Problem, steps, reach):
    """Coordinates in which the sign of m was, at some step, below round-off.

    Only M-SSD jumps there; with a variance-adapted factor the update is continuous in m. A
    coordinate whose gradients have all been zero is decided: m = 0 exactly.
    """
    anatomy = problem.case.anatomy
    lost = np.zeros(reach.shape, bool)
    if anatomy.direction == "momentum" and anatomy.sign and anatomy.factor == "none":
        decay = problem.weight_decay if problem.coupled else 0.0
        bounds = round_off_of_momentum(steps, problem.beta, eps(problem.dtype), reach, decay)
        for step, bound in zip(steps, bounds, strict=True):
            lost |= (np.abs(step.m) <= bound) & (bound > 0)
    return lost


def errors_in_eps(problem: Problem, **flags: object):
    """Of each kept coordinate of each tensor: |theta - ref| / (eps (|theta_0| + sum |updates|))."""
    rng = np.random.default_rng(problem.seed)
    case, dtype = problem.case, problem.dtype
    options = {"lr": problem.lr, **case.decay(problem.beta), **dict(problem.options)}
    drawn = [generate(problem, rng, tensor.shape) for tensor in problem.tensors]
    params = [
        torch.nn.Parameter(stored(start, dtype, tensor.transposed))
        for (start, _), tensor in zip(drawn, problem.tensors, strict=True)
    ]
    starts = [flat(param) for param in params]
    steps = [
        [
            stored(gradients[t], dtype, tensor.gradients_transposed) if tensor.present[t] else None
            for (_, gradients), tensor in zip(drawn, problem.tensors, strict=True)
        ]
        for t in range(len(problem.tensors[0].present))
    ]
    *_, ended = descend(case.build(params, **options, **flags), params, steps)

    for i, start in enumerate(starts):
        seen = [None if step[i] is None else flat(step[i]) for step in steps]
        taken = [step for step in case.reference(seen, start, **options) if step is not None]
        reach = sum((np.abs(step.update) for step in taken), np.abs(start))
        distance = np.abs(ended[i] - (taken[-1].theta if taken else start))
        kept = ~undecided(problem, taken, reach)
        event(f"kept all coordinates: {kept.all()}")
        unit = np.where(reach > 0, eps(dtype) * reach, np.finfo(float).tiny)
        yield (distance / unit)[kept]


# Left to itself, the fused engine takes what is laid out alike, and the eager one the rest.
@pytest.mark.parametrize("flags", [{}, {"foreach": False}, {"foreach": True}], ids=str)
@given(problem=problems())
@settings(max_examples=150)
def test_within_64_eps_of_the_reference(flags, problem: Problem):
    for errors in errors_in_eps(problem, **flags):
        assert errors.max(initial=0.0) <= 64


# ------------------------------------------------------------------------------ invariants


def noisy(seed: int, size: int = 40, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """STEPS gradients of mixed relative variance, some of them zero, some zero throughout."""
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(size=size), 10.0 ** rng.uniform(-2.0, 1.0, size)
    gradients = mean + deviation * rng.standard_normal((STEPS, size))
    gradients *= rng.choice([0.0, 1.0], gradients.shape, p=[0.1, 0.9])
    gradients[:, :2] = 0.0
    return [torch.from_numpy(g).to(dtype) for g in gradients]


def path(case: Case, gradients, start=None, dtype=None, **options) -> list[torch.Tensor]:
    """Theta after each step, from zero unless told otherwise."""
    dtype = dtype or gradients[0].dtype
    start = torch.zeros_like(gradients[0]) if start is None else start
    param = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = case.build([param], **options)
    thetas = []
    for gradient in gradients:
        param.grad = gradient.clone()
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


@by_name(CORRECTED)
@given(seed=seeds, beta=betas, engine=engines)
@settings(max_examples=15)
def test_the_factor_lies_between_0_and_1(case, seed, beta, engine):
    gradients = noisy(seed, dtype=torch.float64)
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = case.build([param], lr=0.5, **case.decay(beta), **ENGINES[engine])
    seen = [flat(gradient) for gradient in gradients]
    references = case.reference(seen, np.zeros(len(param)), lr=0.5, **case.decay(beta))
    for gradient, reference in zip(gradients, references, strict=True):
        param.data.zero_()  # theta is then minus the update, exactly
        param.grad = gradient.clone()
        optimizer.step()
        moved, direction = -flat(param), 0.5 * reference.direction
        assert (moved * direction >= 0).all()
        reach = np.abs(direction) if case.anatomy.sign else np.abs(direction) * (1 + 1e-12)
        assert (np.abs(moved) <= reach + 1e-15 * np.abs(gradient.numpy())).all()


SCALE_FREE = tuple(case for case in CASES if not case.amsgrad)


@by_name(SCALE_FREE)
@given(seed=seeds, beta=betas, exponent=st.integers(-8, 8), engine=engines)
@settings(max_examples=10)
def test_only_the_sign_is_free_of_the_gradients_scale(case, seed, beta, exponent, engine):
    """Exactly so: powers of two scale every intermediate quantity without rounding."""
    options = {
        "lr": 0.3,
        **ENGINES[engine],
        **case.decay(beta),
        **({"eps": 0.0} if case.raw else {}),
    }
    gradients, scale = noisy(seed), 2.0**exponent
    thetas = path(case, gradients, **options)
    scaled = path(case, [scale * g for g in gradients], **options)
    expected = thetas if case.anatomy.sign else [scale * theta for theta in thetas]
    assert_equal_paths(scaled, expected)


@pytest.mark.parametrize(
    ("adapted", "plain"),
    [(c.name, p.name) for c in CORRECTED for p in CORRECTED
     if c.anatomy.factor != "none" and p.anatomy.factor == "none"
     and (c.anatomy.direction, c.anatomy.sign) == (p.anatomy.direction, p.anatomy.sign)],
)  # fmt: skip
@given(seed=seeds, beta=betas, dtype=st.sampled_from(DTYPES))
@settings(max_examples=15)
def test_without_variance_nothing_is_adapted(adapted, plain, seed, beta, dtype):
    """Constant gradients: M-SVAG is M-SGD, Adam* is M-SSD, and so on."""
    rng = np.random.default_rng(seed)
    gradient = torch.from_numpy(rng.choice([-1, 1], 40) * rng.uniform(0.5, 8.0, 40)).to(dtype)
    adapted, plain = named(adapted), named(plain)
    ours = path(adapted, [gradient] * STEPS, lr=0.1, **adapted.decay(beta))
    theirs = path(plain, [gradient] * STEPS, lr=0.1, **plain.decay(beta))
    assert_paths_within(ours, theirs, 32)


@by_name(CORRECTED)
@given(seed=seeds, beta=betas)
@settings(max_examples=15)
def test_the_first_step_is_a_gradient_step(case, seed, beta):
    gradients = noisy(seed)[:1]
    plain = named("ssd" if case.anatomy.sign else "sgd")
    ours = path(case, gradients, lr=0.1, **case.decay(beta))
    assert_paths_within(ours, path(plain, gradients, lr=0.1), 2)


@by_name(CORRECTED)
@given(seed=seeds)
@settings(max_examples=10)
def test_beta_zero_leaves_the_gradient(case, seed):
    gradients = noisy(seed)
    plain = named("ssd" if case.anatomy.sign else "sgd")
    ours = path(case, gradients, lr=0.1, **case.decay(0.0))
    assert_equal_paths(ours, path(plain, gradients, lr=0.1))


@by_name(CASES)
@given(seed=seeds, beta=betas, weight_decay=st.sampled_from([0.0, 0.1]), decoupled=st.booleans())
@settings(max_examples=10)
def test_maximize_negates_the_gradient(case, seed, beta, weight_decay, decoupled):
    gradients = noisy(seed)
    options = {
        "lr": 0.1,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled,
        **case.decay(beta),
    }
    start = torch.linspace(-1.0, 1.0, len(gradients[0]))
    up = path(case, gradients, start, maximize=True, **options)
    assert_equal_paths(up, path(case, [-g for g in gradients], start, **options))


@by_name(CASES)
@given(seed=seeds, maximize=st.booleans(), decoupled=st.booleans())
@settings(max_examples=5)
def test_the_gradient_is_left_alone(case, seed, maximize, decoupled):
    param = torch.nn.Parameter(torch.ones(40))
    decay = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    optimizer = case.build([param], maximize=maximize, **decay)
    for gradient in noisy(seed):
        param.grad = given_gradient = gradient.clone()
        optimizer.step()
        assert param.grad is given_gradient
        assert torch.equal(param.grad, gradient)


@by_name(CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_gradients_move_nothing(case, dtype):
    """m = v = 0, even without an eps."""
    start = torch.linspace(-1.0, 1.0, 9).to(dtype)
    options = {"eps": 0.0} if case.raw else {}
    assert_equal_paths(path(case, [torch.zeros_like(start)] * 3, start, **options), [start] * 3)


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
    rng = np.random.default_rng(seed)
    low, high = RANGE[dtype]
    exponents = rng.uniform(low, high, (STEPS, 60) if wild else (1, 60))
    gradients = rng.choice([-1.0, 0.0, 1.0], (STEPS, 60), p=[0.4, 0.2, 0.4]) * 10.0**exponents
    gradients = [torch.from_numpy(g).to(dtype) for g in gradients]
    thetas = path(case, gradients, lr=0.1, **case.decay(beta), **ENGINES[engine])
    assert not any(bool(theta.isnan().any()) for theta in thetas)
    if not case.raw:
        assert all(bool(theta.isfinite().all()) for theta in thetas)


@by_name(ADAPTED)
@given(seed=seeds, beta=st.floats(0.1, 0.999), engine=engines)
@settings(max_examples=6)
def test_where_the_square_underflows_nothing_is_adapted(case, seed, beta, engine):
    gradients = [1e-25 * g for g in noisy(seed)]
    plain = svag.Anatomy(case.anatomy.direction, case.anatomy.sign)
    plain = next(c for c in CORRECTED if c.anatomy == plain)
    ours = path(case, gradients, lr=0.1, **case.decay(beta), **ENGINES[engine])
    assert_paths_within(ours, path(plain, gradients, lr=0.1, **plain.decay(beta)), 8)


@by_name(ADAPTED)
@given(seed=seeds, beta=st.floats(0.1, 0.999), engine=engines)
@settings(max_examples=6)
def test_where_the_square_overflows_nothing_moves(case, seed, beta, engine):
    rng = np.random.default_rng(seed)
    gradients = torch.from_numpy(rng.choice([-1.0, 1.0], (STEPS, 20)) * rng.uniform(0.5, 2.0, 20))
    options = {"lr": 0.1, **case.decay(beta), **ENGINES[engine]}
    first, *others = path(case, list((1e25 * gradients).float()), **options)
    assert bool((first != 0).all())  # gamma = 1 at t = 0 whatever the variance
    assert all(torch.equal(theta, first) for theta in others)


# ------------------------------------------------------------------------------ many tensors


@by_name(CASES)
@given(seed=seeds, beta=betas, count=st.integers(2, 6))
@settings(max_examples=5)
def test_tensors_do_not_meet(case, seed, beta, count):
    """Several tensors of equal shape with ragged starts move as each would alone."""
    gradients = [noisy(seed + i) for i in range(count)]
    params = [torch.nn.Parameter(torch.zeros(40)) for _ in range(count)]
    steps = [[g[t] if t >= i % 3 else None for i, g in enumerate(gradients)] for t in range(STEPS)]
    history = descend(case.build(params, lr=0.1, **case.decay(beta)), params, steps)
    for i in range(count):
        alone = path(case, gradients[i][i % 3 :], lr=0.1, **case.decay(beta))
        for together, theta in zip(history[i % 3 :], alone, strict=True):
            assert np.array_equal(together[i], flat(theta))
