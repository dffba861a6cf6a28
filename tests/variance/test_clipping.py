"""Clipping and unscaling: torch's gradients, and variances that follow them."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from svag.variance.clipping import clip_grad_norm_, clip_grad_value_
from svag.variance.grad_var import attach, current, is_current
from svag.variance.micro_batches import micro_batch_variance
from svag.variance.unscaling import unscale_

SHAPES = ((3,), (2, 4), (), (0, 2), (5,))


def parameters(seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list:
    """Parameters with gradients and variances; the second has no variance, the last no gradient."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for param in params[:-1]:
        param.grad = scale * torch.randn(param.shape, generator=generator, dtype=dtype)
    for param in (params[0], params[2], params[3]):
        spread = torch.rand(param.shape, generator=generator)
        attach(param, scale**2 * spread.to(dtype))
    return params


def gradients(params: list[Tensor]) -> list[np.ndarray]:
    return [p.grad.double().numpy().copy() for p in params if p.grad is not None]


def carried(params: list[Tensor]) -> list[np.ndarray]:
    return [current(p).double().numpy().copy() for p in params if is_current(p)]


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e6])
def test_clipping_the_norm(max_norm: float, norm_type: float, foreach: bool | None) -> None:
    params = parameters()
    if norm_type == math.inf:
        del params[3]  # torch has no maximum of nothing
    reference = [copy.deepcopy(p) for p in params]
    for mine, other in zip(params, reference, strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    before = carried(params)
    flat = np.concatenate([g.ravel() for g in gradients(params)])
    factor = min(1.0, max_norm / (np.linalg.norm(flat, norm_type) + 1e-6))
    norm = clip_grad_norm_(iter(params), max_norm, norm_type, foreach=foreach)
    expected = nn.utils.clip_grad_norm_(reference, max_norm, norm_type, foreach=foreach)
    assert torch.equal(norm, expected)
    for mine, other in zip(params[:-1], reference[:-1], strict=True):
        assert torch.equal(mine.grad, other.grad)
    for value, past in zip(carried(params), before, strict=True):
        np.testing.assert_allclose(value, factor**2 * past, rtol=1e-6, atol=0.0)
    assert not is_current(params[1])


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("clip_value", [0.0, 0.3, 1e6])
def test_clipping_values(clip_value: float, foreach: bool | None) -> None:
    params = parameters()
    params[0].grad[0] = 0.0
    attach(params[0], params[0].grad_var)
    reference = [copy.deepcopy(p) for p in params]
    for mine, other in zip(params, reference, strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    expected = []
    for param in (p for p in params if is_current(p)):
        grad = param.grad.double().numpy()
        factor = np.ones_like(grad)
        np.divide(np.clip(grad, -clip_value, clip_value), grad, out=factor, where=grad != 0)
        expected.append(factor**2 * current(param).double().numpy())
    assert clip_grad_value_(params, clip_value, foreach=foreach) is None
    nn.utils.clip_grad_value_(reference, clip_value, foreach=foreach)
    for mine, other in zip(params[:-1], reference[:-1], strict=True):
        assert torch.equal(mine.grad, other.grad)
    for value, oracle in zip(carried(params), expected, strict=True):
        np.testing.assert_allclose(value, oracle, rtol=1e-6, atol=0.0)


def test_one_tensor_or_none_at_all() -> None:
    param = parameters()[0]
    clip_grad_norm_(param, 0.1)
    clip_grad_value_(param, 0.01)
    assert is_current(param)
    assert clip_grad_norm_([], 1.0) == 0.0
    assert clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0) == 0.0
    clip_grad_value_([], 1.0)


def test_a_stale_variance_stays_stale() -> None:
    params = parameters()
    params[0].grad.mul_(2.0)
    kept = params[0].grad_var.clone()
    clip_grad_norm_(params, 0.1)
    clip_grad_value_(params, 0.01)
    assert not is_current(params[0])
    assert torch.equal(params[0].grad_var, kept)
    assert is_current(params[2])


def test_a_refused_norm_changes_nothing() -> None:
    params = parameters()
    params[2].grad.fill_(torch.inf)
    attach(params[2], torch.ones(()))
    before = carried(params)
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    for value, past in zip(carried(params), before, strict=True):
        assert np.array_equal(value, past)


def test_an_infinite_norm_does_to_variances_what_it_does_to_gradients() -> None:
    params = parameters()
    params[2].grad.fill_(torch.inf)
    clip_grad_norm_(params, 1.0)
    assert not current(params[0]).any()


def test_clipping_complex_norms() -> None:
    params = parameters(dtype=torch.complex64)[:1]
    before = current(params[0]).clone()
    norm = clip_grad_norm_(params, 0.5)
    torch.testing.assert_close(current(params[0]), before * (0.5 / norm) ** 2)


@given(seed=st.integers(0, 10**6), power=st.integers(-20, 20), tight=st.floats(0.01, 2.0))
def test_the_relative_variance_survives_clipping(seed: int, power: int, tight: float) -> None:
    params = parameters(seed, scale=2.0**power)
    ratios = [current(p) / p.grad.square() for p in params if is_current(p)]
    clip_grad_norm_(params, tight * 2.0**power)
    clip_grad_value_(params, tight * 2.0**power / 2)
    after = [current(p) / p.grad.square() for p in params if is_current(p)]
    for ratio, past in zip(after, ratios, strict=True):
        torch.testing.assert_close(ratio, past, rtol=1e-5, atol=0.0)


def test_gradients_that_are_views_of_one_buffer() -> None:
    flat = torch.arange(1.0, 7.0)
    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for param, part in zip(params, flat.split(2), strict=True):
        param.grad = part
    for param in params:
        attach(param, torch.ones(2))
    clip_grad_norm_(params, 1.0)
    clip_grad_value_(params, 0.1)
    assert all(is_current(p) for p in params)


def accumulate(param: Tensor, scaler: torch.amp.GradScaler) -> None:
    with micro_batch_variance([param]) as micro_batches:
        for target in (1.0, -1.0, 2.5):
            scaler.scale((param - target).pow(3).sum()).backward()
            micro_batches.micro_step()


@pytest.mark.parametrize("enabled", [True, False])
def test_unscaling(enabled: bool) -> None:
    plain, scaled = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    accumulate(plain, torch.amp.GradScaler("cpu", enabled=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
    optimizer = torch.optim.SGD([scaled], lr=0.1)
    accumulate(scaled, scaler)
    assert torch.equal(current(scaled), current(plain) * (1024.0**2 if enabled else 1.0))
    unscale_(scaler, optimizer)
    assert torch.equal(scaled.grad, plain.grad)
    assert torch.equal(current(scaled), current(plain))
    clip_grad_norm_(scaled, 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert is_current(scaled)
    assert not torch.equal(scaled, plain)


def test_a_step_that_the_scaler_skips() -> None:
    param = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with micro_batch_variance([param]) as micro_batches:
        for factor in (1.0, torch.inf):
            scaler.scale((factor * param).sum()).backward()
            micro_batches.micro_step()
    unscale_(scaler, optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert param.tolist() == [3.0, 4.0]
    assert scaler.get_scale() == 512.0
    optimizer.zero_grad()
    accumulate(param, scaler)
    unscale_(scaler, optimizer)
    assert current(param).isfinite().all()


def test_unscaling_twice_is_torchs_error_and_changes_nothing() -> None:
    param = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer, scaler = torch.optim.SGD([param]), torch.amp.GradScaler("cpu")
    accumulate(param, scaler)
    unscale_(scaler, optimizer)
    kept = current(param).clone()
    with pytest.raises(RuntimeError, match="already been called"):
        unscale_(scaler, optimizer)
    assert torch.equal(current(param), kept)
