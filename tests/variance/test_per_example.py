"""Unbiasedness, accuracy in float32, memory, and BackPACK as a second oracle."""

import copy
import doctest
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import assert_within
from torch import Tensor, nn
from torch.nn import functional

from svag.problems import models
from svag.variance import within_batch_variance
from svag.variance.per_example import context
from svag.variance.per_example.contributions.base import (
    Contributions,
    Direct,
    PlacedRows,
    Products,
    Rows,
    Shared,
)
from svag.variance.per_example.owners.placement import Layout
from variance.oracle import one_by_one, relative_error, variance_of_sum


def test_the_mean_of_many_estimates_is_the_variance() -> None:
    """y = w x + noise: the gradient of (w x - y)^2 / 2 has a variance known in closed form."""
    torch.manual_seed(0)
    repeats, batch, noise = 4000, 8, 0.5
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = []
    recorder = within_batch_variance(model).start()
    for _ in range(repeats):
        x = torch.randn(batch, 2, dtype=torch.float64)
        y = x @ target + noise * torch.randn(batch, dtype=torch.float64)
        model.zero_grad()
        (0.5 * (model(x).squeeze(1) - y).square()).mean().backward()
        found.append(model.weight.grad_var[0].clone())
    recorder.stop()
    values = torch.stack(found)
    # g_i = -x_i (x.w + e): E g_i^2 = |w|^2 + 2 w_i^2 + noise^2 and E g_i = -w_i
    known = (target.square().sum() + target.square() + noise**2) / batch
    error = (values.mean(0) - known) / (values.std(0) / repeats**0.5)
    assert_within("standard errors of unbiasedness", float(error.abs().max()), 3)


class Sums(nn.Module):
    """One layer of each way to get at the contributions, fed one input each."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.dense, self.steps = nn.Linear(6, 5), nn.Linear(6, 5)
        self.conv, self.norm = nn.Conv2d(1, 3, 2), nn.LayerNorm(6)
        self.gru, self.scale = nn.GRU(6, 4, batch_first=True), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            self.dense(x[:, 0]),
            self.steps(x).sum(1),
            self.conv(x.unsqueeze(1)).sum((2, 3)),
            self.norm(x - self.offset).sin().sum(1),  # exact; LayerNorm itself would lose digits
            self.gru(x - self.offset + 1)[0][:, -1],
            (x * self.scale).sum(1),
        )
        return torch.cat(parts, 1)


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("batch", [2, 3, 64])
def test_float32_stays_within_the_bound(batch: int, offset: float) -> None:
    """Inputs of spread 1 around an offset: the mean gradient dwarfs its spread."""
    torch.manual_seed(3)
    model, x = Sums(offset), torch.randn(batch, 4, 6) + offset
    exact, weights = copy.deepcopy(model).double(), torch.ones(batch, dtype=torch.float64)
    rows = one_by_one(exact, x.double(), weights, lambda out, _: out.sum() / batch)
    with within_batch_variance(model):
        (model(x).sum() / batch).backward()
    for name, p in model.named_parameters():
        known = variance_of_sum(rows[name])
        bound = 1e-4 * known + 1e-6 * (batch * rows[name]).square().mean(0)
        error = (p.grad_var.double() - known).abs()
        ratio = (error / bound.clamp(min=torch.finfo(torch.float32).tiny)).max()
        assert_within("float32 error over its bound", float(ratio), 1, (name, offset))
        assert bool((p.grad_var >= 0).all())


def test_equal_examples_have_no_variance() -> None:
    model, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5).expand(4, -1, -1, -1)
    with within_batch_variance(model):
        model(x).square().mean().backward()
    assert float(model.weight.grad_var.max()) < 1e-12 * float(model.weight.grad.square().max())


@pytest.mark.parametrize("make", [models.conv_2c2d, models.conv_3c3d])
def test_backpack_agrees(make: Callable[[], nn.Sequential]) -> None:
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    torch.manual_seed(0)
    model = make().double()
    shape = (1, 28, 28) if make is models.conv_2c2d else (3, 32, 32)
    x = torch.randn(4, *shape, dtype=torch.float64)
    y = torch.randint(10, (4,))
    other = backpack.extend(copy.deepcopy(model))
    loss = backpack.extend(nn.CrossEntropyLoss())
    with warnings.catch_warnings(), backpack.backpack(extensions.Variance()):
        warnings.simplefilter("ignore")
        loss(other(x), y).backward()
    with within_batch_variance(model):
        functional.cross_entropy(model(x), y).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # BackPACK: (1/N) sum_k c_k^2 - (mean c_k)^2 of the contributions c_k
        assert_within("BackPACK", relative_error(p.grad_var, 16 / 3 * q.variance), 1e-10)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * dims))
    stride = draw(st.tuples(*[st.integers(1, 3)] * dims))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    transposed = draw(st.booleans())
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = (kinds if transposed else (nn.Conv1d, nn.Conv2d, nn.Conv3d))[dims - 1]
    options: dict[str, object] = {"stride": stride, "dilation": dilation, "groups": groups}
    size = [d * (k - 1) + draw(st.integers(1, 4)) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        limits = zip(stride, dilation, strict=True)
        extra = [draw(st.integers(0, max(a, b) - 1)) for a, b in limits]
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
        options |= {"output_padding": tuple(extra), "padding": tuple(padding)}
    else:
        modes = ["zeros", "circular", "replicate"]
        options |= {
            "padding": draw(st.integers(0, 1)),
            "padding_mode": draw(st.sampled_from(modes)),
        }
    layer = kind(*channels, kernel, bias=draw(st.booleans()), **options)
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    shape = (draw(st.integers(2, 4)), channels[0], *size)
    return layer.double(), torch.randn(shape, generator=generator, dtype=torch.float64)


def square(out: Tensor, _: Tensor) -> Tensor:
    return (out + out.square()).sum()


@settings(max_examples=60)
@given(convolutions(), st.integers(1, 2000))
def test_any_convolution_equals_brute_force(case: tuple[nn.Module, Tensor], room: int) -> None:
    layer, x = case
    rows = one_by_one(layer, x, torch.ones(len(x)), square)
    with within_batch_variance(layer, max_bytes=room):
        square(layer(x), x).backward()
    for name, p in layer.named_parameters():
        error = relative_error(p.grad_var, variance_of_sum(rows[name]))
        assert_within("generated convolutions", error, 1e-10, (layer, x.shape))


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**20), st.floats(0.1, 10))
def test_scaling_the_loss_scales_the_variance_by_its_square(
    batch: int, steps: int, seed: int, factor: float
) -> None:
    torch.manual_seed(seed)
    model, x = nn.Linear(3, 2).double(), torch.randn(batch, steps, 3, dtype=torch.float64)
    found = []
    for scale in (1.0, factor):
        model.zero_grad()
        with within_batch_variance(model):
            (scale * square(model(x), x)).backward()
        found.append(model.weight.grad_var)
    torch.testing.assert_close(found[1], factor**2 * found[0])


def uses() -> Iterator[Contributions]:
    torch.manual_seed(0)
    yield Direct(torch.randn(6, 3, 4))
    yield Products(torch.randn(6, 5, 3), torch.randn(6, 5, 4))
    yield Rows(torch.randn(6, 5, 4), torch.randint(3, (6, 5)), 3)
    yield PlacedRows(torch.randn(3, 6), Layout(1, 6))
    yield Shared(torch.randn(3, 4), 6)


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("room", [1, 100, 2**20])
def test_chunks_stay_within_the_memory_given(which: int, room: int) -> None:
    use = list(uses())[which]
    sizes = [high - low for low, high in use.chunks(room)]
    assert sum(sizes) == use.examples
    assert all(size == 1 or size * use.example_bytes <= room for size in sizes)
    whole = use.estimate(2**30)
    part = use.estimate(room)
    torch.testing.assert_close(part.total, whole.total)
    torch.testing.assert_close(part.variance, whole.variance)
    torch.testing.assert_close(use.total(room), whole.total)


def test_docstring_example_runs() -> None:
    finder = doctest.DocTestFinder()
    tests = [t for t in finder.find(context, "context") if t.examples]
    assert len(tests) == 1
    assert doctest.DocTestRunner().run(tests[0]).failed == 0
