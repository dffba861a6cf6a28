"""Noise of gradients against NumPy on the whole history, and against what is known of Gaussians."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional

from svag.diagnosis.noise_summary import QUANTILES, SAMPLED, NoiseSummary
from svag.diagnosis.objective import Objective
from svag.theory import gamma_erf, gamma_sqrt, gamma_svag


class Vectors(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in sizes])

    def forward(self, x):
        return sum(part.sum() for part in self.parts) + x


def summary_of(histories, batch_size=10):
    """Summarize given gradients, one array (K, n) a parameter."""
    objective = Objective(Vectors(*(h.shape[1] for h in histories)), functional.mse_loss)
    noise = NoiseSummary(objective, batch_size)
    for grads in zip(*histories, strict=True):
        noise.observe([torch.tensor(g, dtype=torch.float32) for g in grads])
    return noise.rows()


def gaussian(mean, std, count, seed=0):
    rng = np.random.default_rng(seed)
    return mean + std * rng.standard_normal((count, len(mean)))


def test_sums_are_those_of_the_whole_history():
    history = [
        gaussian(np.ones(5), np.full(5, 3.0), 50),
        100 + gaussian(np.zeros(7), np.ones(7), 50),
    ]
    rows = summary_of(history)
    assert [row.name for row in rows] == ["parts.0", "parts.1", "all"]
    for row, values in zip(rows, history, strict=False):
        variance = values.var(axis=0, ddof=1).sum()
        assert row.variance == pytest.approx(variance, rel=1e-4)
        assert row.grad_sq == pytest.approx((values.mean(0) ** 2).sum() - variance / 50, rel=1e-4)
        assert row.noise_scale == pytest.approx(10 * row.variance / row.grad_sq, rel=1e-6)
        assert row.gradients == 50
    assert rows[-1].variance == pytest.approx(rows[0].variance + rows[1].variance)
    assert rows[-1].entries == 12


def test_squares_and_success_are_unbiased():
    """Over many repetitions the means are |grad L|^2, and Eq. (10) where the noise is Gaussian."""
    mean, std = np.array([0.0, 0.1, 0.5, 2.0]), np.ones(4)
    rows = [summary_of([gaussian(mean, std, 20, seed)])[0] for seed in range(300)]
    squares = np.array([row.grad_sq for row in rows])
    assert abs(squares.mean() - (mean**2).sum()) < 4 * squares.std() / math.sqrt(300)
    variances = np.array([row.variance for row in rows])
    assert abs(variances.mean() - 4) < 4 * variances.std() / math.sqrt(300)
    many = summary_of([gaussian(mean[1:], std[1:], 20000)])[0]
    assert many.success == pytest.approx(norm.cdf(mean[1:]).mean(), abs=0.01)
    assert many.gaussian_success == pytest.approx(norm.cdf(mean[1:]).mean(), abs=0.01)


def test_counted_success_is_half_where_there_is_only_noise():
    rows = [summary_of([gaussian(np.zeros(30), np.ones(30), 24, seed)])[0] for seed in range(40)]
    counted = np.array([row.success for row in rows])
    assert abs(counted.mean() - 0.5) < 4 * counted.std() / math.sqrt(40)


def test_eta_and_factors_are_those_of_the_distribution():
    std = np.linspace(0.2, 3, 400)
    row = summary_of([gaussian(np.ones(400), std, 4000)])[0]
    np.testing.assert_allclose(row.eta, np.quantile(std, QUANTILES), rtol=0.05)
    expected = [gamma(std).mean() for gamma in (gamma_svag, gamma_sqrt, gamma_erf)]
    np.testing.assert_allclose(row.factors, expected, rtol=0.02)
    assert row.unresolved == 0


def test_still_and_unresolved_coordinates_are_counted_apart():
    history = np.zeros((100, 4))
    history[:, 1] = 1.0  # no noise
    history[:, 2] = np.tile([1.0, -1.0], 50)  # no mean
    history[:, 3] = gaussian(np.array([1.0]), np.array([0.5]), 100)[:, 0]
    row = summary_of([history])[0]
    assert row.still == 0.25
    assert row.unresolved == 0.25
    assert row.eta[0] == 0
    assert row.eta[-1] == math.inf
    assert row.eta[2] == pytest.approx(0.5, rel=0.3)


def test_without_any_gradient_all_is_still():
    row = summary_of([np.zeros((10, 3))])[0]
    assert (row.still, row.grad_sq, row.variance, row.noise_scale) == (1, 0, 0, 0)
    assert all(math.isnan(q) for q in row.eta)
    assert row.success == 0


def test_heavy_tails_show():
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(5, (4000, 50))
    assert summary_of([heavy])[0].kurtosis > 1
    assert abs(summary_of([gaussian(np.zeros(50), np.ones(50), 4000)])[0].kurtosis) < 0.1


def test_a_sample_of_coordinates_stands_for_all():
    sizes = (40_000, 3)
    mean = [np.where(np.arange(n) % 2, 1.0, 0.1) for n in sizes]
    history = [gaussian(m, np.full(len(m), 0.5), 64) for m in mean]
    *layers, whole = summary_of(history)
    exact = layers[0]
    assert exact.entries == 40_000
    assert whole.eta[0] == pytest.approx(0.5, rel=0.2)
    assert whole.success == pytest.approx((norm.cdf(2.0) + norm.cdf(0.2)) / 2, abs=0.02)
    assert SAMPLED < 40_000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_gradients_have_no_summary(count):
    assert summary_of([np.ones((count, 2))]) == []


def test_without_a_batch_size_there_is_no_noise_scale():
    assert summary_of([np.ones((5, 2))], batch_size=None)[0].noise_scale is None
