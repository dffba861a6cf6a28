"""Noise summaries against the theory, brute force and known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from svag.errors import InvalidOption, MissingVariance
from svag.theory import factors
from svag.variance.attachment import attach
from svag.variance.noise import (
    NoiseScale,
    noise_scale,
    relative_variance,
    signal_to_noise,
    success_probability,
    summarize,
    two_batch_noise_scale,
)

GRADS = torch.tensor([-3.0, -1e-3, 0.0, 0.0, 0.5, 2.0, 1e-200], dtype=torch.float64)
VARIANCES = torch.tensor([1.0, 4.0, 0.0, 1.0, 0.0, 1e-8, 1e-300], dtype=torch.float64)


def test_success_probability_is_the_theorys() -> None:
    expected = factors.success_probability(GRADS.numpy(), VARIANCES.sqrt().numpy())
    np.testing.assert_allclose(success_probability(GRADS, VARIANCES), expected, rtol=1e-14)


def test_relative_variance_gives_the_theorys_factor() -> None:
    eta = relative_variance(GRADS, VARIANCES).sqrt().numpy()
    expected = factors.optimal_factor(GRADS.numpy(), VARIANCES.numpy())
    np.testing.assert_allclose(factors.gamma_svag(eta), expected, rtol=1e-14, atol=0.0)


def test_limits() -> None:
    assert relative_variance(GRADS, VARIANCES)[2:5].tolist() == [0.0, math.inf, 0.0]
    assert signal_to_noise(GRADS, VARIANCES)[2:5].tolist() == [math.inf, 0.0, math.inf]
    assert success_probability(GRADS, VARIANCES)[2:5].tolist() == [1.0, 0.5, 1.0]
    assert relative_variance(GRADS, VARIANCES)[6] == pytest.approx(1e100)


@given(grad=st.floats(-1e6, 1e6).filter(lambda g: abs(g) > 1e-6), var=st.floats(1e-6, 1e6))
def test_the_three_are_one_quantity(grad: float, var: float) -> None:
    g, s = torch.tensor([grad]).double(), torch.tensor([var]).double()
    ratio = signal_to_noise(g, s)
    torch.testing.assert_close(relative_variance(g, s), ratio**-2)
    torch.testing.assert_close(2 * success_probability(g, s) - 1, torch.erf(ratio / 2**0.5))
    assert 0.5 <= success_probability(g, s) <= 1.0


def test_signs_of_gaussian_gradients_are_right_that_often() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std, draws = torch.tensor([-0.3, 0.1, 1.0]), 0.5, 40_000
    drawn = mean + std * torch.randn(draws, 3, generator=generator)
    right = (drawn.sign() == mean.sign()).float().mean(0)
    expected = success_probability(mean, torch.full((3,), std**2))
    assert ((right - expected).abs() < 4 * 0.5 / draws**0.5).all()


def test_the_noise_scale_is_that_of_two_batches_one_of_single_examples() -> None:
    generator = np.random.default_rng(0)
    examples = generator.normal(size=(12, 5)) + 0.4
    grad = examples.mean(0)
    variance = ((examples - grad) ** 2).sum(0) / (12 * 11)
    mine = noise_scale(float(grad @ grad), float(variance.sum()), 12)
    small_sq = float((examples**2).sum(1).mean())
    two = two_batch_noise_scale(small_sq, float(grad @ grad), small_batch=1, big_batch=12)
    assert mine.grad_sq == pytest.approx(two.grad_sq, rel=1e-12)
    assert mine.trace == pytest.approx(two.trace, rel=1e-12)
    assert mine.trace == pytest.approx(np.trace(np.cov(examples.T)), rel=1e-12)


def test_both_estimates_are_unbiased() -> None:
    generator = np.random.default_rng(1)
    mean, std = np.array([0.3, -0.1, 0.2]), np.array([1.0, 0.5, 2.0])
    ones, twos = [], []
    for _ in range(4_000):
        examples = mean + std * generator.normal(size=(8, 3))
        grad = examples.mean(0)
        variance = examples.var(0, ddof=1) / 8
        ones.append(noise_scale(float(grad @ grad), float(variance.sum()), 8))
        half = examples[:4].mean(0)
        twos.append(two_batch_noise_scale(float(half @ half), float(grad @ grad), 4, 8))
    for scales in (ones, twos):
        for name, truth in (("grad_sq", mean @ mean), ("trace", std @ std)):
            values = np.array([getattr(scale, name) for scale in scales])
            assert abs(values.mean() - truth) < 3.5 * values.std() / len(values) ** 0.5


def test_noise_that_outweighs_the_gradient_has_no_finite_scale() -> None:
    assert noise_scale(grad_sq=1.0, variance=2.0, batch_size=4) == NoiseScale(-1.0, 8.0)
    assert noise_scale(grad_sq=1.0, variance=2.0, batch_size=4).simple == math.inf


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(InvalidOption, match="batch_size=0"):
        noise_scale(1.0, 1.0, 0)
    with pytest.raises(InvalidOption, match="small_batch=8 and big_batch=8"):
        two_batch_noise_scale(1.0, 1.0, 8, 8)


def test_the_summary_of_parameters() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    attach(weight, torch.tensor([[1.0, 1.0], [1.0, 4.0]]))
    rotation = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    rotation.grad = torch.tensor([3.0 + 4.0j])
    attach(rotation, torch.tensor([1.0 + 4.0j]))
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    named = {"weight": weight, "rotation": rotation, "frozen": frozen}
    first, second = summarize(named.items())
    assert (first.name, first.entries, first.grad_sq, first.variance) == ("weight", 4, 14.0, 7.0)
    assert first.relative_variance == 0.25
    assert first.signal_to_noise == 1.0
    phi = [0.5 + 0.5 * math.erf(x / math.sqrt(2)) for x in (1.0, 2.0, 3.0, 0.0)]
    assert first.success_probability == pytest.approx(sum(phi) / 4)
    assert (second.entries, second.grad_sq, second.variance) == (2, 25.0, 5.0)


def test_a_summary_needs_current_variances() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.sum().backward()
    with pytest.raises(MissingVariance):
        summarize([("weight", weight)])
