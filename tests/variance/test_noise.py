"""Noise summaries against the theory, brute force and known distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from svag.errors import InvalidOption, MissingVariance
from svag.theory import expected_sign_confidence, factors
from svag.variance.grad_var import attach
from svag.variance.noise import (
    NoiseScale,
    noise_scale,
    relative_variance,
    sign_confidence,
    signal_to_noise,
    summarize,
    two_batch_noise_scale,
)

GRADS = torch.tensor([-3.0, -1e-3, 0.0, 0.0, 0.5, 2.0, 1e-200], dtype=torch.float64)
VARIANCES = torch.tensor([1.0, 4.0, 0.0, 1.0, 0.0, 1e-8, 1e-300], dtype=torch.float64)


def test_sign_confidence_is_equation_10_at_the_gradient() -> None:
    expected = factors.success_probability(GRADS.numpy(), VARIANCES.sqrt().numpy())
    np.testing.assert_allclose(sign_confidence(GRADS, VARIANCES), expected, rtol=1e-14)


def test_relative_variance_gives_the_theorys_factor() -> None:
    eta = relative_variance(GRADS, VARIANCES).sqrt().numpy()
    expected = factors.optimal_factor(GRADS.numpy(), VARIANCES.numpy())
    np.testing.assert_allclose(factors.gamma_svag(eta), expected, rtol=1e-14, atol=0.0)


def test_nan_is_not_hidden_and_a_negative_variance_gives_it() -> None:
    nan = math.nan
    grad = torch.tensor([nan, nan, 1.0, 0.0, 2.0])
    var = torch.tensor([0.0, 1.0, nan, nan, -1.0])
    for function in (relative_variance, signal_to_noise, sign_confidence):
        assert function(grad, var).isnan().all()
    assert math.isnan(noise_scale(nan, 1.0, 4).simple)
    assert math.isnan(noise_scale(1.0, nan, 4).simple)
    assert math.isnan(NoiseScale(nan, nan).simple)
    assert math.isnan(NoiseScale(-1.0, nan).simple)
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([nan, 1.0, 2.0])
    attach(weight, torch.tensor([0.0, 1.0, 1.0]))
    [row] = summarize([("weight", weight)])
    for number in (row.relative_variance, row.signal_to_noise, row.sign_confidence, row.grad_sq):
        assert math.isnan(number)


@pytest.mark.parametrize(
    ("ratio", "examples", "mean"),
    [(0.0, None, 0.75), (1.0, None, 0.818), (2.0, None, 0.928), (0.0, 2, 0.814), (1.0, 2, 0.863)],
)
def test_the_confidence_in_a_sign_is_biased_as_its_docstring_says(
    ratio: float, examples: int | None, mean: float
) -> None:
    """Gaussian examples, 400,000 gradients: not the success probability, which is Phi(ratio)."""
    generator, n = torch.Generator().manual_seed(0), 400_000
    count = examples or 1
    scale = count**0.5
    drawn = ratio + scale * torch.randn(n, count, generator=generator, dtype=torch.float64)
    grad = drawn.mean(1)
    var = torch.ones(n).double() if examples is None else drawn.var(1) / count
    seen = float(sign_confidence(grad, var).mean())
    assert seen == pytest.approx(mean, abs=2e-3)
    assert seen == pytest.approx(float(expected_sign_confidence(ratio, examples)), abs=1.5e-3)
    assert abs(seen - float(factors.success_probability(ratio, 1.0))) > 0.02


def test_limits() -> None:
    assert relative_variance(GRADS, VARIANCES)[2:5].tolist() == [0.0, math.inf, 0.0]
    assert signal_to_noise(GRADS, VARIANCES)[2:5].tolist() == [math.inf, 0.0, math.inf]
    assert sign_confidence(GRADS, VARIANCES)[2:5].tolist() == [1.0, 0.5, 1.0]
    assert relative_variance(GRADS, VARIANCES)[6] == pytest.approx(1e100)


@given(grad=st.floats(-1e6, 1e6).filter(lambda g: abs(g) > 1e-6), var=st.floats(1e-6, 1e6))
def test_the_three_are_one_quantity(grad: float, var: float) -> None:
    g, s = torch.tensor([grad]).double(), torch.tensor([var]).double()
    ratio = signal_to_noise(g, s)
    torch.testing.assert_close(relative_variance(g, s), ratio**-2)
    torch.testing.assert_close(2 * sign_confidence(g, s) - 1, torch.erf(ratio / 2**0.5))
    assert 0.5 <= sign_confidence(g, s) <= 1.0


def test_signs_of_gaussian_gradients_are_right_that_often() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, std, draws = torch.tensor([-0.3, 0.1, 1.0]), 0.5, 40_000
    drawn = mean + std * torch.randn(draws, 3, generator=generator)
    right = (drawn.sign() == mean.sign()).float().mean(0)
    expected = sign_confidence(mean, torch.full((3,), std**2))
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
    with pytest.raises(InvalidOption, match="batch_size=nan"):
        noise_scale(1.0, 1.0, math.nan)
    with pytest.raises(InvalidOption, match="batch_size=inf"):
        noise_scale(1.0, 1.0, math.inf)
    with pytest.raises(InvalidOption, match=r"variance=-1\.0 is a sum of squares"):
        noise_scale(1.0, -1.0, 4)
    with pytest.raises(InvalidOption, match=r"big_sq=-1\.0 is a sum of squares"):
        two_batch_noise_scale(1.0, -1.0, 4, 8)
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
    assert first.sign_confidence == pytest.approx(sum(phi) / 4)
    assert (second.entries, second.grad_sq, second.variance) == (2, 25.0, 5.0)


def test_a_summary_needs_current_variances() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.sum().backward()
    with pytest.raises(MissingVariance):
        summarize([("weight", weight)])
