"""The variance of half-precision gradients, in float32 beside them: it must not underflow.

Gradients of 1e-4, as those of a float16 model are, have variances of 1e-8: nothing in float16.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import svag
from svag.variance.grad_var import attach, current

from .cases import ENGINES, WITHIN_BATCH, by_name, every_engine, flat

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
SIZE = 200


def noisy(dtype: torch.dtype, scale: float = 1e-4) -> tuple[torch.Tensor, torch.Tensor]:
    """A gradient and its variance, of relative variances from 0.01 to 100."""
    generator = torch.Generator().manual_seed(0)
    grad = (scale * (1 + torch.rand(SIZE, generator=generator))).to(dtype)
    ratio = 10.0 ** torch.linspace(-2, 2, SIZE)
    return grad, grad.float().square() * ratio


def give(param: Any, grad: torch.Tensor, variance: torch.Tensor) -> None:
    param.grad = grad.clone()
    attach(param, variance.clone())


@HALVES
def test_it_is_kept_in_float32(dtype):
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    grad, variance = noisy(dtype)
    for given in (variance, variance.double()):
        give(param, grad, given)
        assert current(param).dtype == torch.float32
        torch.testing.assert_close(current(param), variance)
    for full in (torch.float32, torch.float64, torch.complex64):
        param = nn.Parameter(torch.zeros(2, dtype=full))
        param.grad = torch.ones(2, dtype=full)
        attach(param, torch.ones(2))
        assert current(param).dtype == full


@HALVES
@every_engine
@by_name([case for case in WITHIN_BATCH if case.name in ("svag", "sgd-sqrt", "sgd-erf")])
def test_a_float16_gradient_is_adapted_by_a_variance_beyond_float16(case, engine, dtype):
    """One step from zero, which stores the update itself: gamma = 1/(1 + r) and its relatives."""
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    optimizer = case.build([param], lr=1.0, **ENGINES[engine])
    grad, variance = noisy(dtype)
    assert dtype != torch.float16 or not variance.half()[: SIZE // 4].any()
    give(param, grad, variance)
    optimizer.step()
    expected = case.reference([flat(grad)], np.zeros(SIZE), variances=[flat(variance)], lr=1.0)
    unit = torch.finfo(dtype)
    bound = 2 * unit.eps * np.abs(expected[0].theta) + unit.smallest_normal * unit.eps
    assert (np.abs(flat(param) - expected[0].theta) <= bound).all()
    assert current(param).dtype == torch.float32


@HALVES
@every_engine
@by_name([case for case in WITHIN_BATCH if case.name in ("m-svag", "adam-star", "m-ssd-erf")])
def test_averages_in_float32_keep_it(case, engine, dtype):
    """The docs' recipe: exp_avg_var has the state's dtype, which state_dtype makes float32."""
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    options = {"beta": 0.9, "lr": 1.0}
    optimizer = case.build([param], **options, state_dtype=torch.float32, **ENGINES[engine])
    grad, variance = noisy(dtype)
    for _ in range(3):
        give(param, grad, variance)
        optimizer.step()
    kept = optimizer.state[param]["exp_avg_var"]
    assert kept.dtype == torch.float32
    shares = ((0.1 * 0.9 ** np.arange(3)) ** 2).sum()
    np.testing.assert_allclose(flat(kept), shares * flat(variance), rtol=1e-5)
    steps = case.reference(
        [flat(grad)] * 3, np.zeros(SIZE), variances=[flat(variance)] * 3, **options
    )
    reach = sum(np.abs(step.update) for step in steps)
    unit = torch.finfo(dtype)
    bound = 4 * unit.eps * reach + 4 * unit.smallest_normal * unit.eps
    assert (np.abs(flat(param) - steps[-1].theta) <= bound).all()


@every_engine
def test_the_state_has_the_parameters_dtype_by_default(engine):
    param = nn.Parameter(torch.zeros(SIZE, dtype=torch.float16))
    optimizer = svag.MSVAG([param], variance="within-batch", **ENGINES[engine])
    give(param, *noisy(torch.float16))
    optimizer.step()
    assert optimizer.state[param]["exp_avg_var"].dtype == torch.float16


@HALVES
@pytest.mark.parametrize("count", [2, 3, 5])
def test_micro_batches_leave_it(count, dtype):
    generator = torch.Generator().manual_seed(1)
    parts = (1e-4 * torch.randn(count, 50, generator=generator)).to(dtype)
    param, late = (nn.Parameter(torch.zeros(50, dtype=dtype)) for _ in range(2))
    with svag.micro_batch_variance([param, late]) as micro_batches:
        for k, part in enumerate(parts):
            loss = (part * param).sum()
            (loss + (part * late).sum() if k else loss).backward()
            micro_batches.micro_step()
    without_first = parts.double() * (torch.arange(count) > 0)[:, None]
    for p, c in ((param, parts.double()), (late, without_first)):
        assert current(p).dtype == torch.float32
        exact = count * c.var(0, unbiased=True)
        scale = c.square().sum(0)
        error = ((current(p).double() - exact).abs() / scale).max()
        assert error < 8 * torch.finfo(dtype).eps
        assert bool(current(p).any())


@HALVES
@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_norm_, svag.clip_grad_norm_])
def test_clipping_by_norm_and_value_leaves_it(clip, dtype):
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    svag.micro_batch_variance([param])
    grad, variance = noisy(dtype)
    give(param, grad, variance)
    clip([param], 1e-4)
    factor = param.grad.double() / grad.double()
    ratio = current(param).double() / (variance.double() * factor.square())
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.2, atol=0.0)
    give(param, grad, variance)
    svag.clip_grad_value_([param], 1.2e-4)
    assert current(param).dtype == torch.float32
    factor = param.grad.double() / grad.double()
    ratio = current(param).double() / (variance.double() * factor.square())
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-5, atol=0.0)


@HALVES
def test_the_compiled_step_takes_it(dtype):
    """Not left to the eager engine for a dtype beside the parameter's."""
    pytest.importorskip("numba")
    param = nn.Parameter(torch.zeros(SIZE, dtype=dtype))
    optimizer = svag.MSVAG([param], variance="within-batch")
    for _ in range(2):
        give(param, *noisy(dtype))
        optimizer.step()
    assert optimizer._plan is not None
    assert len(optimizer._plan.fused) == 1
    assert not optimizer._plan.rest


@every_engine
@by_name(WITHIN_BATCH[:6])
def test_a_variance_of_nan_shows_in_every_engine(case, engine):
    param = nn.Parameter(torch.zeros(3))
    optimizer = case.build([param], lr=0.1, **ENGINES[engine])
    give(param, torch.ones(3), torch.tensor([1.0, float("nan"), 1.0]))
    optimizer.step()
    assert param.isnan().tolist() == [False, True, False]
