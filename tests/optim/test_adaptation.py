"""Relative variance and factor of the last step, as an optimizer's state tells them."""

import re
from typing import Any

import numpy as np
import pytest
import reference
import torch
from numpy.typing import NDArray
from torch import nn

import svag
from svag import Anatomy
from svag.errors import InvalidOption, MissingVariance, NoStepYet, SvagError

from .cases import BETAS, CASES, WITHIN_BATCH, Case, by_name, flat, named
from .data import conformance_gradients, conformance_variances
from .stepping import step

LOOKS = (1, 2, 3, 10, 60)
EVERY = CASES + WITHIN_BATCH
SOME = named("svag", "m-svag", "adam", "adam-star", "adam-amsgrad", "m-svag/batch", "svag/batch")
GRADIENTS = conformance_gradients()[:60, ::7]
VARIANCES = conformance_variances()[:60, ::7]


def reference_eta_sq(case: Case, step: Any, t: int, beta: float) -> NDArray[np.float64]:
    """From the reference's averages; 0 where m = v = 0 in corrected rows (docs)."""
    anatomy = case.anatomy
    if case.raw:
        return reference.raw_relative_variance(step.m, step.v, 1e-8)
    if case.within_batch:
        mean = step.m if anatomy.direction == "momentum" else step.gradient
        variance = reference.within_batch_variance(
            anatomy, list(VARIANCES[: t + 1].astype(np.float64)), beta
        )
        eta_sq = reference.ratio_to_squared_mean(variance, mean)
        return np.where((mean == 0) & (variance == 0), 0.0, eta_sq)
    eta_sq = reference.corrected_relative_variance(anatomy, step.m, step.v, beta, t)
    return np.where((step.m == 0) & (step.v == 0), 0.0, eta_sq)


def reference_gamma(case: Case, step: Any, eta_sq: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(eta_sq == 0, 1.0, step.gamma)


def walk(case: Case, beta: float, dtype: torch.dtype, **options: Any) -> Any:
    """Step through the gradients; yield the optimizer, its parameter before and after, and t."""
    param = nn.Parameter(torch.ones(GRADIENTS.shape[1], dtype=dtype))
    optimizer = case.build([param], lr=0.01, **case.decay(beta), **options)
    for t, (gradient, variance) in enumerate(zip(GRADIENTS, VARIANCES, strict=True)):
        before = flat(param)
        step(optimizer, gradient, variance=variance if case.within_batch else None)
        if t + 1 in LOOKS:
            yield optimizer, param, before, t


def references(case: Case, beta: float) -> list[Any]:
    variances = VARIANCES if case.within_batch else None
    start = np.ones(GRADIENTS.shape[1])
    return case.reference(GRADIENTS, start, lr=0.01, variances=variances, **case.decay(beta))


def compare(case: Case, beta: float, dtype: torch.dtype, bound: float) -> None:
    steps = references(case, beta)
    for optimizer, param, _, t in walk(case, beta, dtype):
        expected = reference_eta_sq(case, steps[t], t, beta)
        eta_sq, gamma = flat(optimizer.relative_variance(param)), flat(optimizer.factor(param))
        assert (np.isinf(eta_sq) == np.isinf(expected)).all()
        there = np.isfinite(expected)
        # gamma of svag is 1/(1 + eta_sq), so an error of gamma is one of eta_sq over its square
        scale = (1 + np.abs(expected[there])) ** 2
        assert np.abs((eta_sq[there] - expected[there]) / scale).max() < bound
        errors = np.abs(gamma - reference_gamma(case, steps[t], expected))
        assert errors.max() < bound * max(1.0, np.abs(steps[t].gamma).max())
        if not case.raw:
            assert gamma.min() >= 0.0
            assert gamma.max() <= 1.0


@pytest.mark.parametrize("beta", BETAS)
@by_name(SOME)
def test_they_are_those_of_the_reference_in_float64(case, beta):
    compare(case, beta, torch.float64, 1e-12)


@by_name([case for case in EVERY if case.anatomy.factor != "none" and case not in SOME])
def test_in_every_row(case):
    compare(case, 0.9, torch.float64, 1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.99, 0.999])
@by_name(named("svag", "m-svag", "adam-star", "m-ssd-erf", "m-svag/batch"))
def test_float32_averages_lose_as_little_as_documented(case, beta):
    compare(case, beta, torch.float32, 2e-6 if case.anatomy.direction == "momentum" else 1e-4)


@pytest.mark.parametrize("beta", [0.9, 0.999])
@pytest.mark.parametrize("name", ["svag", "m-svag"])
def test_constant_gradients_are_the_worst_for_float32_averages(name, beta):
    """Averages stop short of their limit by rounding, which looks like variance."""
    param = nn.Parameter(torch.zeros(200))
    optimizer = named(name)[0].build([param], lr=0.0, beta=beta)
    for _ in range(3000):
        step(optimizer, torch.linspace(0.1, 1.0, 200))
    assert float(1 - optimizer.factor(param).min()) < (1e-4 if name == "svag" else 2e-6)


@pytest.mark.parametrize("name", ["svag", "m-svag", "adam"])
def test_bfloat16_averages_lose_as_much_as_documented(name):
    case = named(name)[0]
    steps = references(case, 0.9)
    for optimizer, param, _, t in walk(case, 0.9, torch.float32, state_dtype=torch.bfloat16):
        expected = reference_gamma(case, steps[t], reference_eta_sq(case, steps[t], t, 0.9))
        error = np.abs(flat(optimizer.factor(param)) - expected).max()
        assert error < (0.25 if name == "svag" else 0.07)


@by_name([case for case in EVERY if case.name not in ("sgd", "ssd")])
def test_a_step_is_the_direction_times_the_factor(case, engine):
    """And times lr, to rounding; the engine is whichever steps."""
    steps = references(case, 0.9)
    for optimizer, param, before, t in walk(case, 0.9, torch.float64, **engine):
        update = 0.01 * flat(optimizer.factor(param)) * steps[t].direction
        np.testing.assert_allclose(before - flat(param), update, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("decoupled", [False, True])
@by_name(named("m-svag", "adam", "svag"))
def test_a_step_with_weight_decay_and_ascent_too(case, decoupled):
    options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled, "maximize": True}
    lr = 0.05
    param = nn.Parameter(torch.linspace(-1, 1, 20, dtype=torch.float64))
    optimizer = case.build([param], lr=lr, **case.decay(0.9), **options)
    gradients = np.random.default_rng(0).standard_normal((5, 20)) + 1
    steps = case.reference(gradients, flat(param), lr=lr, **case.decay(0.9), **options)
    for gradient, expected in zip(gradients, steps, strict=True):
        before = flat(param) * (1 - lr * 0.1 * decoupled)
        step(optimizer, gradient)
        moved = lr * flat(optimizer.factor(param)) * expected.direction
        np.testing.assert_allclose(before - flat(param), moved, rtol=1e-9, atol=1e-14)


@by_name(named("svag", "m-svag", "adam-star", "m-ssd-erf"))
def test_the_first_step_has_seen_no_variance_and_beta_0_never_does(case):
    for beta, count in ((0.9, 1), (0.0, 1), (0.0, 4)):
        param = nn.Parameter(torch.zeros(3))
        optimizer = case.build([param], beta=beta)
        for n in range(count):
            step(optimizer, [1.0, -2.0 * n, 0.0])
        assert optimizer.relative_variance(param).tolist() == [0.0, 0.0, 0.0]
        assert optimizer.factor(param).tolist() == [1.0, 1.0, 1.0]


def test_where_there_is_no_mean_and_where_there_is_nothing():
    for case in named("svag", "m-svag"):
        param = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = case.build([param], beta=0.5)
        for gradient in ([2.0, 0.0], [-1.0, 0.0]):  # m~ = 0.5 (0.5 * 2) - 0.5 = 0
            step(optimizer, gradient)
        assert optimizer.relative_variance(param).tolist() == [np.inf, 0.0]
        assert optimizer.factor(param).tolist() == [0.0, 1.0]
    for eps in (1e-8, 0.0):
        adam = svag.Adam([param], betas=(0.5, 0.9), eps=eps)
        for gradient in ([2.0, 0.0], [-1.0, 0.0]):
            step(adam, gradient)
        assert adam.relative_variance(param).tolist() == [np.inf, np.inf]
        assert adam.factor(param).tolist() == [0.0, 0.0]


def test_adam_has_what_torchs_formula_divides_by():
    param = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = svag.Adam([param], lr=1e-3, eps=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(optimizer, torch.randn(50, generator=generator, dtype=torch.float64))
    state = optimizer.state[param]
    m, v = state["exp_avg"] / (1 - 0.9**3), state["exp_avg_sq"] / (1 - 0.999**3)
    torch.testing.assert_close(optimizer.factor(param), m.abs() / (v.sqrt() + 1e-3))
    bound = {"rtol": 1e-9, "atol": 1e-9}
    plain = svag.Adam([param], eps=0.0)
    plain.state[param] = state
    torch.testing.assert_close(plain.relative_variance(param), (v - m * m) / (m * m), **bound)


def test_squares_that_underflow_are_no_variance():
    param = nn.Parameter(torch.ones(1))
    optimizer = svag.MSVAG([param], lr=0.5)
    for _ in range(3):
        step(optimizer, 1e-25)
    assert float(optimizer.factor(param)) == 1.0
    step(optimizer, 1e25)
    assert float(optimizer.factor(param)) == 0.0
    step(optimizer, np.nan)
    assert np.isnan(float(optimizer.factor(param)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@by_name(named("m-svag", "adam", "m-ssd-erf", "svag/batch", "m-svag/batch"))
def test_complex_parameters_are_pairs_of_reals(case, dtype):
    generator = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.zeros(3, 2, dtype=dtype))
    halves = nn.Parameter(torch.zeros(3, 2, 2, dtype=whole.real.dtype))
    one, other = (case.build([p], **case.decay(0.9)) for p in (whole, halves))
    for _ in range(4):
        gradient = torch.randn(3, 2, 2, generator=generator).to(halves.dtype)
        variance = gradient.square()
        for optimizer, seen in ((one, torch.view_as_complex), (other, torch.clone)):
            sample = seen(variance) if case.within_batch else None
            step(optimizer, seen(gradient), variance=sample)
    for name in ("relative_variance", "factor"):
        result, expected = getattr(one, name)(whole), getattr(other, name)(halves)
        assert result.dtype == torch.complex128
        assert result.shape == whole.shape
        assert torch.equal(torch.view_as_real(result), expected)


def test_result_has_the_parameters_shape_in_float64():
    shapes = ((), (0,), (2, 0), (3, 4))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
        for case in named("m-svag", "m-sgd"):
            optimizer = case.build(params)
            step(optimizer, 1.0)
            for param in params:
                factor = optimizer.factor(param)
                assert (factor.shape, factor.dtype) == (param.shape, torch.float64)
                assert bool((factor == 1).all())
                assert not factor.requires_grad


def test_averages_that_were_moved_elsewhere_and_changed_layout_are_read_where_they_are():
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(2, 3, 4, 4))
    optimizer = svag.MSVAG([param])
    for _ in range(3):
        step(optimizer, torch.randn(param.shape, generator=generator))
    expected = optimizer.relative_variance(param)
    state = optimizer.state[param]
    state["exp_avg"] = state["exp_avg"].contiguous(memory_format=torch.channels_last)
    state["step"] = int(state["step"])  # as older versions of torch kept it
    assert torch.equal(optimizer.relative_variance(param), expected)


def test_reading_changes_nothing():
    param = nn.Parameter(torch.zeros(5))
    optimizer = svag.MSVAG([param])
    step(optimizer, 1.0)
    kept = {name: value.clone() for name, value in optimizer.state[param].items()}
    optimizer.factor(param)
    optimizer.relative_variance(param)
    assert all(torch.equal(optimizer.state[param][name], value) for name, value in kept.items())


@by_name(named("m-svag", "adam", "m-svag/batch"))
def test_before_a_step_there_is_nothing_to_read(case):
    param, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))
    optimizer = case.build([param, unused])
    for ask in (optimizer.relative_variance, optimizer.factor):
        with pytest.raises(NoStepYet, match=re.escape("(3,) has had no step")):
            ask(param)
    assert len(optimizer.state) == 0
    step(optimizer, 1.0, None, variance=1.0 if case.within_batch else None)
    optimizer.factor(param)
    with pytest.raises(NoStepYet, match=re.escape("(2, 2)")):
        optimizer.factor(unused)


def test_a_row_without_a_factor_has_1_and_keeps_no_variance():
    for case in named("sgd", "m-sgd", "ssd", "m-ssd"):
        param = nn.Parameter(torch.zeros(3))
        optimizer = case.build([param])
        step(optimizer, 1.0)
        assert optimizer.factor(param).tolist() == [1.0] * 3
        with pytest.raises(InvalidOption, match=r"keeps no .*exp_avg_sq.*svag\.MSVAG"):
            optimizer.relative_variance(param)


def test_a_row_without_a_factor_whose_state_has_squares_knows_the_variance():
    param = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    source, plain = svag.MSVAG([param], beta=0.8), svag.MSGD([param], beta=0.8)
    for gradient in ([1.0, 2.0], [3.0, 1.0]):
        step(source, gradient)
    plain.state[param] = source.state[param]
    assert torch.equal(plain.relative_variance(param), source.relative_variance(param))


def test_what_the_mini_batch_gave_is_gone_with_the_gradient():
    param = nn.Parameter(torch.ones(2))
    optimizer = svag.SVAG([param], variance="within-batch")
    with pytest.raises(MissingVariance):
        optimizer.factor(param)
    step(optimizer, [1.0, 2.0], variance=1.0)
    assert optimizer.relative_variance(param).tolist() == [1.0, 0.25]
    assert optimizer.factor(param).tolist() == [0.5, 0.8]
    optimizer.zero_grad()
    with pytest.raises(MissingVariance):
        optimizer.relative_variance(param)


def test_a_direction_with_weight_decay_in_it_cannot_be_known_afterwards():
    anatomy = Anatomy("gradient", factor="svag", variance="within-batch")
    for decoupled in (False, True):
        param = nn.Parameter(torch.ones(1))
        optimizer = svag.Dissected(
            [param], anatomy=anatomy, weight_decay=0.1, decoupled_weight_decay=decoupled
        )
        step(optimizer, 1.0, variance=1.0)
        if decoupled:
            assert float(optimizer.factor(param)) == 0.5
        else:
            with pytest.raises(InvalidOption, match=r"weight_decay=0\.1.*decoupled_weight_decay"):
                optimizer.factor(param)


def test_only_own_parameters_can_be_asked_for():
    param, other = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    for case in named("sgd", "m-svag"):
        optimizer = case.build([param])
        with pytest.raises(SvagError, match="not one of this optimizer's"):
            optimizer.factor(other)


def test_groups_have_their_own_betas():
    one, other = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [one]}, {"params": [other], "beta": 0.5}]
    optimizer = svag.MSVAG(groups, beta=0.9)
    gradients = np.array([[1.0, 2.0], [2.0, -1.0], [0.5, 3.0]])
    for gradient in gradients:
        step(optimizer, gradient)
    (case,) = named("m-svag")
    for param, beta in ((one, 0.9), (other, 0.5)):
        expected = case.reference(gradients, np.zeros(2), lr=0.1, beta=beta)[-1].gamma
        np.testing.assert_allclose(flat(optimizer.factor(param)), expected)


def test_distributed_parameters_have_distributed_results():
    """One process of two, which hold half of the rows each; nothing is sent."""
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    generator = torch.Generator().manual_seed(0)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        for case in named("m-svag", "adam", "sgd"):
            plain = nn.Parameter(torch.zeros(3, 4))
            spread = nn.Parameter(DTensor.from_local(torch.zeros(3, 4), mesh, [Shard(0)]))
            optimizers = [case.build([p], **case.decay(0.9)) for p in (plain, spread)]
            for _ in range(3):
                plain.grad = torch.randn(3, 4, generator=generator)
                spread.grad = DTensor.from_local(plain.grad.clone(), mesh, [Shard(0)])
                for optimizer in optimizers:
                    optimizer.step()
            for name in ("factor", "relative_variance")[: 1 + case.averages]:
                expected, result = (
                    getattr(o, name)(p) for o, p in zip(optimizers, (plain, spread), strict=True)
                )
                assert result.shape == spread.shape == (6, 4)
                assert result.placements == spread.placements
                torch.testing.assert_close(result.to_local(), expected)
    finally:
        dist.destroy_process_group()
