"""Half precision in the state and in the parameters: rounding to nearest, and stochastic rounding.

Whatever is random comes from fixed seeds, so every test here has one outcome.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from torch import Tensor, nn

import svag
from svag.optim import rounding

from .cases import ENGINES, METHODS, Case, by_name, named
from .stepping import step

pytest.importorskip("numba", reason="half of what is compared is Numba's (extra fast)")

from svag.compiled.machine_code import compiled
from svag.optim.engines import half_precision, numba_noise

BF16 = torch.bfloat16
MANY = 2**18
SEEDS = st.integers(0, 2**32 - 1)

STATEFUL = tuple(case for case in METHODS if case.anatomy.buffers)


# --------------------------------------------------------------------------- to nearest


@compiled
def narrow_all(values, out):
    for i in range(len(values)):
        out[i] = half_precision.narrow(values[i], out[i], half_precision.NEAREST)


@compiled
def widen_all(stored, out):
    for i in range(len(stored)):
        out[i] = half_precision.widen(stored[i])


INTEGERS = {torch.bfloat16: np.uint16, torch.float16: np.int16}
PATTERNS = np.arange(2**16, dtype=np.uint16)
halves = pytest.mark.parametrize("dtype", INTEGERS, ids=str)


def as_torch(patterns: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(patterns.view(np.int16).copy()).view(dtype)


def around(patterns: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Every number of the dtype, every middle of two, and what float32 has just beside them."""
    exact = as_torch(patterns, dtype).float().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        between = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        # Towards infinity there is no next number to be in the middle with.
        largest = float(torch.finfo(dtype).max)
        last = [sign * largest * (1 + torch.finfo(dtype).eps / 4) for sign in (1.0, -1.0)]
        values = np.concatenate([exact, between, np.array(last, np.float32)])
        below, above = (np.nextafter(values, np.float32(end)) for end in (-np.inf, np.inf))
    return np.concatenate([below, values, above])


def assert_same_halves(ours: np.ndarray, theirs: Tensor) -> None:
    """To the bit, whichever NaN it is aside."""
    expected = theirs.view(torch.int16).numpy()
    nan = theirs.isnan().numpy()
    assert np.array_equal(as_torch(ours, theirs.dtype).isnan().numpy(), nan)
    assert np.array_equal(ours.view(np.int16)[~nan], expected[~nan])


@halves
def test_every_half_is_read_as_torch_reads_it(dtype):
    out = np.empty(2**16, np.float32)
    widen_all(PATTERNS.view(INTEGERS[dtype]), out)
    theirs = as_torch(PATTERNS, dtype).float().numpy()
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(out), nan)
    assert np.array_equal(out.view(np.int32)[~nan], theirs.view(np.int32)[~nan])


@halves
def test_rounding_to_nearest_is_torchs_around_every_half(dtype):
    """And for a million other floats; subnormal numbers, infinities and NaN are among them."""
    others = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32).view(np.float32)
    values = np.concatenate([around(PATTERNS, dtype), others])
    out = np.empty(len(values), INTEGERS[dtype])
    narrow_all(values, out)
    rounded = torch.from_numpy(values).to(dtype)
    assert_same_halves(out, rounded)
    subnormal = (rounded != 0) & (rounded.abs() < torch.finfo(dtype).tiny)
    assert all(bool(some.any()) for some in (rounded.isinf(), rounded.isnan(), subnormal))


# ----------------------------------------------------------------------------- the noise


@compiled
def noise_of(key, begin, words, others):
    """As the loop over a chunk draws it."""
    count = np.uint32(np.uint32(key) + np.uint32(np.uint32(begin) * numba_noise.NEXT))
    for i in range(len(words)):
        words[i] = numba_noise.mix(count)
        others[i] = numba_noise.mix(words[i])
        count = np.uint32(count + numba_noise.NEXT)


@given(
    seed=SEEDS,
    place=st.integers(0, 10**6),
    step=st.integers(1, 2**24),
    begin=st.sampled_from([0, 1, 8192, 131072, 2**32 - 5]),
)
def test_the_engines_draw_the_same_noise(seed, place, step, begin):
    key = numba_noise.key(float(seed), place, float(step))
    assert int(key) == rounding.key(seed, place, float(step))
    assert int(key) == int(rounding.key(seed, place, torch.tensor(float(step))))
    words, others = np.empty(50, np.uint32), np.empty(50, np.uint32)
    noise_of(key, begin, words, others)
    if begin < 2**20:
        drawn = rounding.noise(int(key), torch.empty(begin + 50))
        assert np.array_equal(drawn.mean[begin:].numpy(), words & 0xFFFF)
        assert np.array_equal(drawn.second[begin:].numpy(), words >> 16)
        assert np.array_equal(drawn.largest[begin:].numpy(), others & 0xFFFF)
        assert np.array_equal(drawn.param[begin:].numpy(), others >> 16)
    else:  # elements beyond 2^32 begin anew, which eager tensors of this size cannot show here
        wrapped = rounding.noise(int(key), torch.empty(45)).mean.numpy()
        assert np.array_equal(words[5:] & 0xFFFF, wrapped)


def drawn(seed: int = 0, place: int = 0, step: int = 1) -> dict[str, np.ndarray]:
    noise = rounding.noise(rounding.key(seed, place, float(step)), torch.empty(MANY))
    return {name: part.numpy() for name, part in noise._asdict().items()}


PARTS = rounding.Noise._fields
STREAMS = {
    "": {},
    "seed": {"seed": 1},
    "large seed": {"seed": 2**32 - 1},
    "place": {"place": 1},
    "step": {"step": 2},
    "late": {"step": 10**6, "place": 500},
}


def deviation(counts: np.ndarray) -> float:
    """Of counts from equal ones: chi-square, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    return float(abs(statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("part", PARTS)
def test_the_noise_is_uniform(part, stream):
    values = drawn(**STREAMS[stream])[part]
    assert values.min() >= 0
    assert values.max() < 2**16
    for counts in (
        np.bincount(values >> 8, minlength=256),  # what decides nearly always
        np.bincount(values & 0xFF, minlength=256),
    ):
        assert deviation(counts) < 5
    for bit in range(16):
        assert abs((values >> bit & 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(MANY)
    assert abs(values.mean() - (2**16 - 1) / 2) < 5 * 2**16 / math.sqrt(12 * MANY)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(abs(np.corrcoef(x, y)[0, 1]))


def dependence(x: np.ndarray, y: np.ndarray) -> float:
    """Excess of chi-square of the two values' first four bits, for each pair: phi^2."""
    counts = np.bincount((x >> 12) * 16 + (y >> 12), minlength=256)
    expected = counts.sum() / 256
    return float((((counts - expected) ** 2 / expected).sum() - 255) / counts.sum())


# Five standard errors, where nothing is to be found.
BY_CHANCE = (5 / math.sqrt(MANY), 5 * math.sqrt(2 * 255) / MANY)


def assert_independent(what: str, part: str, pairs: Any) -> None:
    for x, y in pairs:
        for measure, bound in zip((correlation, dependence), BY_CHANCE, strict=True):
            assert_within(f"noise, {measure.__name__} of {what}, {part}", measure(x, y), bound)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("part", PARTS)
def test_the_noise_of_neighbours_is_independent(part, stream):
    values = drawn(**STREAMS[stream])[part]
    lags = (1, 2, 3, 5, 8, 13, 16, 21, 64, 144, 1024, 4096)
    pairs = [(values[lag:], values[:-lag]) for lag in lags]
    assert_independent("neighbours", part, pairs)


@pytest.mark.parametrize("part", PARTS)
def test_the_noise_of_other_seeds_places_and_steps_is_independent(part):
    others = [drawn(**stream)[part] for name, stream in STREAMS.items() if name]
    assert_independent("streams", part, [(drawn()[part], other) for other in others])


@pytest.mark.parametrize("stream", STREAMS)
def test_the_noise_of_one_elements_tensors_is_independent(stream):
    noise = drawn(**STREAMS[stream])
    pairs = itertools.combinations(PARTS, 2)
    assert_independent("parts", "all", [(noise[one], noise[two]) for one, two in pairs])


@pytest.mark.parametrize("part", PARTS)
def test_the_noise_of_one_element_is_independent_from_step_to_step(part):
    """Successive keys are what an average accumulates over."""
    count, like = 4096, torch.empty(64)
    keys = [rounding.key(0, 3, float(step)) for step in range(1, count + 1)]
    steps = np.array([getattr(rounding.noise(key, like), part).numpy() for key in keys])
    for element in range(64):
        for lag in (1, 2, 7):
            x, y = steps[lag:, element], steps[:-lag, element]
            assert correlation(x, y) < 5 / math.sqrt(count)
            assert dependence(x, y) < 5 * math.sqrt(2 * 255) / count
    mean = (steps.mean(axis=0) - (2**16 - 1) / 2) / (2**16 / math.sqrt(12 * count))
    assert np.abs(mean).max() < 5


# ------------------------------------------------------------- one number, rounded with noise


@compiled
def dither_all(value, noise, out):
    for i in range(len(noise)):
        out[i] = half_precision.narrow(value, out[i], noise[i])


EVERY_NOISE = np.arange(2**16, dtype=np.uint32)
finite = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))


def dithered(value: np.float32) -> tuple[Tensor, Tensor]:
    """A number rounded with every noise there is, by both engines."""
    out = np.empty(2**16, np.uint16)
    dither_all(value, EVERY_NOISE, out)
    stored = torch.zeros(2**16, dtype=BF16)
    rounding.round_(stored, torch.full((2**16,), float(value)), torch.arange(2**16))
    return as_torch(out, BF16), stored


@given(value=finite)
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(value):
    """Over all 65,536 values of the noise, the mean is the number itself, exactly."""
    fused, eager = dithered(value)
    if not np.isfinite(value):
        nearest = torch.tensor(float(value)).to(BF16)
        for rounded in (fused, eager):
            torch.testing.assert_close(rounded, nearest.expand(2**16), equal_nan=True)
        return
    assert torch.equal(fused.view(torch.int16), eager.view(torch.int16))
    pattern = value.view(np.uint32)
    below = np.uint32(pattern & np.uint32(0xFFFF0000)).view(np.float32)  # towards zero
    above = np.uint32((pattern & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    found = set(fused.float().tolist())
    if value == below:
        assert found == {float(value)}
    else:
        assert found == {float(below), float(above)}
    if np.isfinite(above):
        assert float(fused.double().mean()) == float(value)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, math.inf, -math.inf, 2.0**-133, -(2.0**127)])
def test_what_bfloat16_has_stays_as_it_is(value):
    for rounded in dithered(np.float32(value)):
        expected = torch.full((2**16,), value, dtype=BF16)
        assert torch.equal(rounded.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("pattern", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000])
def test_no_payload_turns_a_nan_into_a_number(pattern):
    for rounded in dithered(np.uint32(pattern).view(np.float32)):
        assert bool(rounded.isnan().all())


# --------------------------------------------------------------------------- in the optimizer


def steps_of(
    case: Case, gradients: list[Tensor], start: Tensor | None = None, **options: Any
) -> tuple[nn.Parameter, Any]:
    p = nn.Parameter(torch.zeros_like(gradients[0]) if start is None else start.clone())
    optimizer = case.build([p], **options)
    for gradient in gradients:
        step(optimizer, gradient)
    return p, optimizer


def whole_numbers(count: int = 4, size: int = 140_000) -> list[Tensor]:
    """Gradients with which no operation of an average with beta = 1/2 rounds in float32."""
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(1024, 2048, size)).float() for _ in range(count)]


@pytest.mark.parametrize("engine", ["fused", "lists"])
@by_name(STATEFUL)
def test_engines_keep_the_same_bits_where_float32_is_exact(case, engine):
    """Elsewhere their float32 numbers differ in the last place, before they are rounded."""
    kept = []
    for flags in (ENGINES["eager"], ENGINES[engine]):
        options = {"state_dtype": BF16, "seed": 7, **case.decay(0.5, 0.5)}
        p, optimizer = steps_of(case, whole_numbers(), **options, **flags)
        kept.append([optimizer.state[p][name] for name in case.anatomy.buffers])
        assert all(buffer.dtype == BF16 for buffer in kept[-1])
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(kept[0][0], whole_numbers()[-1].to(BF16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_name(named("m-sgd", "m-svag"))
def test_without_noise_half_precision_state_is_float32_rounded_once_a_step(case, dtype, engine):
    rng = np.random.default_rng(0)
    gradients = [torch.from_numpy(rng.integers(4, 12, 9000)).to(dtype) for _ in range(4)]
    p, optimizer = steps_of(case, gradients, **case.decay(0.5), **engine)
    mean = torch.zeros(9000, dtype=dtype)
    for gradient in gradients:
        mean = (0.5 * mean.float() + 0.5 * gradient.float()).to(dtype)
    assert torch.equal(optimizer.state[p]["exp_avg"], mean)


@by_name(named("sgd", "m-ssd"))
def test_bfloat16_parameters_are_rounded_with_their_own_noise(case, engine):
    start = (torch.rand(140_000, generator=torch.Generator().manual_seed(0)) + 1).to(BF16)
    gradient = torch.ones_like(start)
    options = {"lr": 2.0**-10, "stochastic_rounding": True, "seed": 3}
    p, _ = steps_of(case, [gradient], start, **options, **engine)
    expected = torch.empty_like(start)
    noise = rounding.noise(rounding.key(3, 0, 1.0), start)
    rounding.round_(expected, start.float() - 2.0**-10, noise.param)
    assert torch.equal(p, expected)
    assert not torch.equal(p, start)


@by_name([*STATEFUL, *named("adam-amsgrad")])
def test_bfloat16_state_is_within_a_rounding_of_float32_state(case, engine):
    """After one step from nothing; a float32 parameter moves by what float32 numbers say."""
    gradient = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    options = {**case.decay(0.9, 0.99), **engine}
    p, exact = steps_of(case, [gradient], **options)
    q, rounded = steps_of(case, [gradient], state_dtype=BF16, **options)
    for name in [*case.anatomy.buffers, *["max_exp_avg_sq"] * case.amsgrad]:
        one, other = exact.state[p][name], rounded.state[q][name]
        assert (one.dtype, other.dtype) == (torch.float32, BF16)
        assert bool(((other.float() - one).abs() <= 2.0**-7 * one.abs()).all())
        if name == "exp_avg":
            assert 0.3 < float((other.float().abs() > one.abs()).float().mean()) < 0.7
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_an_average_in_bfloat16_is_right_in_expectation(engine):
    """(1 - beta) (g - m) is below half a unit of m's last place: to nearest, m stands still."""
    size, steps, beta = 20_000, 40, 0.999

    def average(dtype: torch.dtype, **options: Any) -> Tensor:
        p = nn.Parameter(torch.zeros(size, dtype=dtype))
        optimizer = svag.MSGD([p], lr=0.0, beta=beta, **options, **engine)
        step(optimizer, 0.3)
        optimizer.state[p]["exp_avg"].fill_(0.25)
        for _ in range(steps):
            optimizer.step()
        return optimizer.state[p]["exp_avg"].double()

    expected = 0.3 + (0.25 - 0.3) * beta**steps
    assert bool((average(BF16) == 0.25).all())
    dithered = average(torch.float32, state_dtype=BF16)
    error = abs(float(dithered.mean()) - expected)
    assert error < 4 * float(dithered.std()) / math.sqrt(size)
    assert float(dithered.std()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_parameter_in_bfloat16_moves_on_average_by_steps_that_nearest_rounding_loses(
    seed, engine
):
    size, steps, lr = 20_000, 30, 2.0**-11
    ends = {}
    for stochastic in (False, True):
        options = {"lr": lr, "stochastic_rounding": stochastic, "seed": seed, **engine}
        start = torch.full((size,), 1.5, dtype=BF16)
        p, _ = steps_of(*named("sgd"), [torch.ones_like(start)] * steps, start, **options)
        ends[stochastic] = p.detach().double()
    assert bool((ends[False] == 1.5).all())
    error = abs(float(ends[True].mean()) - (1.5 - steps * lr))
    assert error < 4 * float(ends[True].std()) / math.sqrt(size)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {"state_dtype": BF16}), (BF16, {"stochastic_rounding": True})],
    ids=["state_dtype", "stochastic_rounding"],
)
@by_name(STATEFUL)
def test_the_seed_decides(case, dtype, options, engine):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(10_000, generator=generator).to(dtype) for _ in range(4)]
    ends = [
        steps_of(case, gradients, seed=seed, **options, **engine)[1].state_dict()["state"][0]
        for seed in (0, 0, 1)
    ]
    for name in case.anatomy.buffers:
        assert torch.equal(ends[0][name], ends[1][name])
        assert not torch.equal(ends[0][name], ends[2][name])


def test_equal_parameters_in_other_places_are_rounded_otherwise():
    params = [nn.Parameter(torch.zeros(1000)) for _ in range(2)]
    optimizer = svag.MSGD(params, state_dtype=BF16)
    step(optimizer, torch.linspace(0.1, 1.0, 1000))
    one, other = (optimizer.state[p]["exp_avg"] for p in params)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("missing", [False, True])
def test_a_place_is_that_among_all_parameters_whoever_has_a_gradient(missing):
    """So that a parameter's noise does not depend on its neighbours' gradients."""
    params = [nn.Parameter(torch.zeros(100)) for _ in range(2)]
    optimizer = svag.MSGD([{"params": [p]} for p in params], state_dtype=BF16, seed=5)
    step(optimizer, None if missing else 1.0, torch.linspace(0.1, 1.0, 100))
    expected = torch.empty(100, dtype=BF16)
    take = np.float32(1 - 0.9) * np.linspace(0.1, 1.0, 100).astype(np.float32)
    noise = rounding.noise(rounding.key(5, 1, 1.0), expected)
    rounding.round_(expected, torch.from_numpy(take), noise.mean)
    kept = optimizer.state[params[1]]["exp_avg"]
    # take may differ in its last place, which moves a number across its noise now and then
    assert int((kept != expected).sum()) <= 1
