"""Lanczos' method against dense eigendecompositions, with random matrices and a Transformer."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from svag.diagnosis.curvature.lanczos import extreme_eigenvalues, spectral_density
from svag.diagnosis.curvature.linear_operator import LinearOperator
from svag.diagnosis.curvature.products import Curvature
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError, InvalidOption


def operator(matrix):
    matrix = torch.as_tensor(matrix)
    return LinearOperator(lambda vectors: vectors @ matrix.T, len(matrix), dtype=matrix.dtype)


def rotated(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    drawn = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    basis, _ = np.linalg.qr(drawn)
    return (basis * np.asarray(eigenvalues)) @ basis.T


def extremes(matrix, *, start_seed=1, **options):
    one = operator(matrix)
    found = extreme_eigenvalues(one, one.gaussian(1, start_seed)[0], **options)
    return {e.which: e for e in found}, one.products


BULK = np.linspace(-0.01, 0.01, 150)
SPECTRA = {
    "outliers": [*BULK, 1.0, 2.0, 5.0, -0.5],
    "negative": [*BULK, -4.0, 3.0],
    "positive semi-definite": [*np.zeros(120), *np.geomspace(1e-3, 1, 20)],
    "uniform": np.linspace(-1, 0.9, 60),
    "double": [*BULK, 3.0, 3.0, -1.0, -1.0],
    "one": [-2.5],
    "two values": [1.0] * 40 + [-3.0] * 60,
    "zero": np.zeros(10),
    "identity": np.ones(10),
    "tiny": 1e-30 * np.linspace(-2, 1, 50) ** 3,
    "huge": 1e30 * np.linspace(-2, 1, 50) ** 3,
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_extreme_eigenvalues_are_within_their_residuals(name, dtype):
    eigenvalues = np.sort(SPECTRA[name])
    found, products = extremes(rotated(eigenvalues).astype(dtype), steps=100)
    scale = np.abs(eigenvalues).max()
    expected = {
        "largest": eigenvalues[-1],
        "smallest": eigenvalues[0],
        "largest magnitude": eigenvalues[np.abs(eigenvalues).argmax()],
    }
    rounding = 1e-6 * scale if dtype == np.float32 else 1e-13 * scale
    for which, value in expected.items():
        one = found[which]
        assert one.converged
        assert one.products <= products <= len(eigenvalues)
        assert abs(one.value - value) <= one.residual + rounding
        assert one.residual <= 0.01 * max(abs(value), 0.01 * scale) + rounding
        assert isinstance(one.value, float)


def test_what_has_not_converged_has_no_value():
    found, products = extremes(rotated(np.linspace(-1, 1, 200)), steps=4)
    assert products == 4
    for one in found.values():
        assert not one.converged
        assert one.value is None
        assert one.residual > 0.01
        assert one.products == 4


def test_a_small_negative_eigenvalue_is_not_taken_for_zero():
    """A Ritz value near 0 soon has a residual of 1 % of the largest eigenvalue."""
    spectrum = [*np.linspace(-1e-3, 1e-3, 400), -0.03, 1.0, 0.6]
    for seed in range(20):
        one = extremes(rotated(spectrum), start_seed=seed, steps=40)[0]["smallest"]
        assert one.value == pytest.approx(-0.03, rel=0.01)


def test_only_what_is_asked_for_is_waited_for():
    matrix = rotated([*BULK, 10.0])
    (largest,) = extremes(matrix, which=["largest"])[0].values()
    _, every = extremes(matrix)
    assert largest.products < every
    assert largest.value == pytest.approx(10, rel=1e-3)


def test_asymmetry_is_part_of_the_residual():
    rng = np.random.default_rng(0)
    matrix = rotated([*BULK, 1.0, -1.0])
    skewed = matrix + 0.05 * np.triu(rng.standard_normal(matrix.shape))
    found, _ = extremes(skewed, steps=40)
    exact, _ = extremes(matrix, steps=40)
    assert all(one.converged for one in exact.values())
    assert not any(one.converged for one in found.values())


def test_memory_limits_the_steps():
    one = operator(rotated(np.linspace(-1, 1, 100)))
    found = extreme_eigenvalues(one, one.gaussian(1, 0)[0], max_bytes=7 * 800 + 799)
    assert one.products == found[0].products == 7
    assert spectral_density(one, starts=2, max_bytes=7 * 800).products == 14
    with pytest.raises(DissectionError, match=r"1599 bytes.*multiple of 800"):
        extreme_eigenvalues(one, one.gaussian(1, 0)[0], max_bytes=1599)


def test_unusable_options_are_refused():
    one = operator(np.eye(3))
    with pytest.raises(InvalidOption, match=r"which='top'.*largest magnitude"):
        extreme_eigenvalues(one, torch.ones(3).double(), which=["top"])
    with pytest.raises(InvalidOption, match="steps=0"):
        spectral_density(one, steps=0)
    with pytest.raises(InvalidOption, match="starts=0"):
        spectral_density(one, starts=0)
    with pytest.raises(DissectionError, match="not finite"):
        spectral_density(operator(np.full((3, 3), np.nan)))


@given(size=st.integers(2, 30), steps=st.integers(1, 8), seed=st.integers(0, 1000))
def test_the_moments_of_a_density_from_one_start_are_exact(size, steps, seed):
    """sum_k w_k x_k^p = v^T H^p v for p < 2 m, with the unit vector v from which it starts."""
    matrix = rotated(np.random.default_rng(seed).uniform(-1, 1, size), seed)
    one = operator(matrix)
    density = spectral_density(one, starts=1, steps=steps, seed=seed)
    v = one.gaussian(1, seed)[0].numpy()
    v = v / np.linalg.norm(v)
    assert density.products == min(steps, size)
    for power in range(2 * density.products):
        expected = v @ np.linalg.matrix_power(matrix, power) @ v
        moment = np.dot(density.weights, np.power(density.nodes, power))
        assert moment == pytest.approx(expected, abs=1e-10)


def test_densities_estimate_traces_and_the_distribution():
    eigenvalues = np.array([*np.random.default_rng(0).normal(0, 0.1, 290), *[2.0] * 9, -1.0])
    size, starts = len(eigenvalues), 200
    density = spectral_density(operator(rotated(eigenvalues)), starts=starts, steps=15)
    nodes, weights = np.array(density.nodes), np.array(density.weights)
    assert (np.diff(nodes) >= 0).all()
    assert weights.sum() == pytest.approx(1)
    for power in (1, 2, 3, 4):
        powers = eigenvalues**power
        error = np.sqrt(2 * powers.var() / (size + 2) / starts)
        assert abs(weights @ nodes**power - powers.mean()) < 4 * error
    for low, high in ((1.9, 2.1), (-1.1, -0.9), (-0.6, 0.6)):
        share = np.mean((eigenvalues > low) & (eigenvalues < high))
        found = weights[(nodes > low) & (nodes < high)].sum()
        assert found == pytest.approx(share, abs=4 * np.sqrt(2 * share / size / starts))


def test_a_density_has_no_copies_of_eigenvalues_that_have_converged():
    """They come with the loss of orthogonality, which rounding brings about."""
    eigenvalues = np.array([*np.zeros(300), *np.geomspace(1e-6, 1, 20)])
    one = operator(rotated(eigenvalues).astype(np.float32))
    nodes = np.array(spectral_density(one, starts=1, steps=200).nodes)
    assert np.sum(nodes > 1e-3) == np.sum(eigenvalues > 1e-3)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def dense_hessian(model, batch):
    """Row by row."""
    params = [*model.parameters()]
    torch.manual_seed(batch.seed)
    with sdpa_kernel(SDPBackend.MATH):
        loss = functional.cross_entropy(model.train()(batch.content[0]), batch.content[1])
    gradient = torch.autograd.grad(loss, params, create_graph=True)
    rows = [
        torch.cat([
            (torch.zeros_like(p) if part is None else part).reshape(-1)
            for part, p in zip(
                torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True),
                params, strict=True,
            )
        ])
        for part in gradient for entry in part.reshape(-1)
    ]  # fmt: skip
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("steps", [0, 100])
def test_the_largest_eigenvalue_of_a_transformer_takes_few_products(steps):
    torch.manual_seed(0)
    model = Classifier()
    tokens = torch.randint(0, 12, (64, 6))
    labels = tokens[:, :2].sum(1) % 4
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
    batch = Batch((tokens[:32], labels[:32]), seed=5)
    expected = np.linalg.eigvalsh(dense_hessian(model, batch))
    extreme = expected[np.abs(expected).argmax()]
    with Curvature(Objective(model, functional.cross_entropy), [batch]) as curvature:
        hessian = curvature.operator("hessian")
        largest, magnitude = extreme_eigenvalues(
            hessian, curvature.start(), which=["largest", "largest magnitude"], steps=15
        )
    for found, value in ((largest, expected[-1]), (magnitude, extreme)):
        assert found.converged
        assert abs(found.value - value) <= 0.01 * abs(value)
        assert np.abs(expected - found.value).min() <= found.residual
        assert found.residual <= 0.01 * abs(value)
    on_entering = 2
    assert_within("products to the largest eigenvalue", hessian.products + on_entering, 15)
