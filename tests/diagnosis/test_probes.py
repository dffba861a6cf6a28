"""The probe of the noise inside a mini-batch: what it measures, and that it leaves no trace."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import svag
from svag.diagnosis.monitoring.probes import within_batch_noise
from svag.errors import DissectionError, InvalidOption
from svag.variance.grad_var import current


def batches_of(count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 4, generator=generator), torch.randn(size, 2, generator=generator))
        for _ in range(count)
    ]


def net(*between: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), *between, nn.Tanh(), nn.Linear(5, 2))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    grads = torch.autograd.grad(mse_loss(model(x), y), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads]).double()


def assert_is_of(found: dict[str, float], rows: Tensor) -> tuple[float, float]:
    """Of the mean of these gradients, and its variance; return the sums."""
    g, s = rows.mean(0), rows.var(0) / len(rows)
    variance, grad_sq = float(s.sum()), float(g.square().sum() - s.sum())
    assert found["variance"] == pytest.approx(variance, rel=1e-4)
    assert found["grad_sq"] == pytest.approx(grad_sq, rel=1e-4)
    eta_sq = (s / g.square()).sort().values
    middle = float(eta_sq[math.ceil(len(eta_sq) / 2) - 1])
    assert found["eta_sq_p50"] == pytest.approx(middle, rel=1e-3)
    return grad_sq, variance


def test_it_measures_the_examples_of_one_batch_after_the_other() -> None:
    model, batches = net(), batches_of(3)
    probe = within_batch_noise(model, batches, mse_loss)
    sums = []
    for x, y in [*batches, batches[0]]:
        examples = torch.stack([gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
        found = probe()
        sums.append(assert_is_of(found, examples))
        weights = 0.9 ** np.arange(len(sums))[::-1]
        grad_sq, variance = weights @ np.array(sums)
        scale = len(x) * variance / grad_sq if grad_sq > 0 else math.inf
        assert found["noise_scale"] == pytest.approx(scale, rel=1e-3)


def test_micro_batches_serve_models_that_couple_their_examples() -> None:
    model, batches = net(nn.BatchNorm1d(5)), batches_of(4)
    probe = within_batch_noise(model, batches, mse_loss, micro_batches=4)
    means = torch.stack([gradient(model, x, y) for x, y in batches])
    found = probe()
    grad_sq, variance = assert_is_of(found, means)
    assert grad_sq > 0
    assert found["noise_scale"] == pytest.approx(24 * variance / grad_sq, rel=1e-4)


def test_a_loss_of_model_and_batch_will_do() -> None:
    model, batches = net(), batches_of(2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mse_loss(model(batch[0]), batch[1])

    one = within_batch_noise(model, batches, batch_loss=loss)()
    assert one == pytest.approx(within_batch_noise(model, batches, mse_loss)())


@pytest.mark.parametrize("micro_batches", [None, 2])
def test_it_leaves_no_trace(micro_batches: int | None) -> None:
    model = net(nn.BatchNorm1d(5) if micro_batches else nn.LayerNorm(5), nn.Dropout(0.5))
    model.eval()
    [(x, y)] = batches_of(1)
    with svag.micro_batch_variance(model.parameters()) as variance:
        for part in (slice(3), slice(3, 6)):
            (mse_loss(model(x[part]), y[part]) / 2).backward()
            variance.micro_step()
    params = list(model.parameters())
    kept = [(p.detach().clone(), p.grad, current(p)) for p in params]
    buffers = [b.clone() for b in model.buffers()]
    torch.manual_seed(5)
    within_batch_noise(model, batches_of(3), mse_loss, micro_batches=micro_batches)()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert not model.training
    for param, (value, grad, grad_var) in zip(params, kept, strict=True):
        assert torch.equal(param, value)
        assert param.grad is grad
        assert current(param) is grad_var
    assert all(map(torch.equal, model.buffers(), buffers))


def test_running_statistics_stay_as_training_has_left_them() -> None:
    model = net(nn.BatchNorm1d(5))
    probe = within_batch_noise(model, batches_of(3), mse_loss, micro_batches=2)
    for x, _ in batches_of(4):  # after the probe was made
        model(x)
    kept = [b.clone() for b in model.buffers()]
    probe()
    assert all(map(torch.equal, model.buffers(), kept))


def test_training_with_the_probe_is_the_same_to_the_bit() -> None:
    ends = []
    for probed in (False, True):
        model = net(nn.Dropout(0.2))
        optimizer = svag.MSVAG(model.parameters(), lr=0.05)
        probes = {"noise": within_batch_noise(model, batches_of(3), mse_loss)} if probed else None
        records: list[dict[str, Any]] = []
        torch.manual_seed(2)
        with svag.Monitor(optimizer, 2, None, probes=probes, to=records.append):
            for x, y in batches_of(6):
                optimizer.zero_grad()
                mse_loss(model(x), y).backward()
                optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
    found = [r for r in records if r.get("probe") == "noise"]
    assert [r["step"] for r in found] == [2, 4, 6]
    assert all(r["variance"] > 0 for r in found)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InvalidOption, match="micro_batches=1: a variance needs at least two"):
        within_batch_noise(net(), batches_of(2), mse_loss, micro_batches=1)
    with pytest.raises(InvalidOption, match="give loss_fn"):
        within_batch_noise(net(), batches_of(2))
    with pytest.raises(DissectionError, match="there is no batch"):
        within_batch_noise(net(), [], mse_loss)
