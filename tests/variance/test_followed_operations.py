"""Operations of published models that svag has rules for, in a verified and in a later pass."""

import dataclasses
from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pad_sequence

from svag import within_batch_variance
from tests.variance.attribution import (
    Calls,
    assert_refused,
    assert_right,
    calling,
    every_size,
    layer,
    sequences,
    table,
    terms,
)

Size = tuple[int, int, int]


def spectral(s: Any, x: Tensor) -> Tensor:
    """A Fourier layer with complex weights."""
    waves = torch.fft.rfft(x, dim=1)
    weight = torch.view_as_complex(s.weights)
    return torch.fft.irfft(torch.einsum("bfi,io->bfo", waves, weight), n=x.shape[1], dim=1)


def complex_product(s: Any, x: Tensor) -> Tensor:
    turned = torch.fft.fft(x, dim=-1) @ torch.view_as_complex(s.weights)
    return torch.view_as_real(turned).flatten(-2)


def inner(s: Any, x: Tensor) -> Tensor:
    return torch.inner(x, s.square)


def summed_letter(s: Any, x: Tensor) -> Tensor:
    return torch.einsum("btd,kde->bte", x, s.square.unsqueeze(0))


def unequal_lengths(s: Any, x: Tensor) -> Tensor:
    h = s.start(x)
    parts = [h[k, : 1 + k % x.shape[1]] for k in range(len(x))]
    return s.end(pad_sequence(parts, batch_first=True))


def searched(s: Any, x: Tensor) -> Tensor:
    edges = torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)
    return s.end(x) + s.square[torch.searchsorted(edges, x[..., 0].contiguous()) % len(s.square)]


def taken_along(s: Any, x: Tensor) -> Tensor:
    places = (x[..., 0] > 0).long()
    return s.end(x) * torch.take_along_dim(s.row[None], places, 1).unsqueeze(-1)


def solved(s: Any, x: Tensor) -> Tensor:
    eye = 9 * torch.eye(x.shape[-1], dtype=x.dtype)
    y = torch.linalg.solve(s.square + eye, x.mT)
    return torch.linalg.solve_triangular(s.square.tril() + eye, y, upper=False).mT


def normal_density(s: Any, x: Tensor) -> Tensor:
    scale = s.square.tril(-1) + torch.diag(s.row.exp())
    density = torch.distributions.MultivariateNormal(s.row, scale_tril=scale)
    return density.log_prob(x).unsqueeze(-1)


def modulated(s: Any, x: Tensor) -> Tensor:
    """A convolution with weights of each example's own, as one with groups."""
    b, t, d = x.shape
    weight = s.square.unsqueeze(-1) * s.start(x).mean(1).unsqueeze(1).unsqueeze(-1)
    flat = functional.conv1d(x.mT.reshape(1, b * d, t), weight.reshape(b * d, d, 1), groups=b)
    return flat.view(b, d, t)


def quantised(s: Any, x: Tensor) -> Tensor:
    return s.end(torch.fake_quantize_per_tensor_affine(s.start(x), 0.1, 0, -8, 7))


def graph(s: Any, x: Tensor) -> Tensor:
    """Messages along edges, divided by the number of edges that arrive."""
    b, t, d = x.shape
    first = torch.arange(b).unsqueeze(1) * t
    of, to = (first + torch.arange(t)).flatten(), (first + torch.arange(t).roll(1)).flatten()
    h = s.start(x).flatten(0, 1)
    arrived = torch.zeros_like(h).index_add(0, to, h[of].sin())
    count = torch.zeros(b * t, dtype=x.dtype).index_add(0, to, torch.ones(b * t, dtype=x.dtype))
    return s.end(arrived / count.unsqueeze(1)).view(b, t, d)


def resized(s: Any, x: Tensor) -> Tensor:
    h = functional.interpolate(s.start(x), scale_factor=2, mode="nearest-exact").unsqueeze(1)
    for mode in ("bilinear", "bicubic"):
        h = functional.interpolate(h, x.shape[1:], mode=mode, antialias=True)
    return s.end(h)


USES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    f.__name__: f
    for f in (
        *(spectral, complex_product, inner, summed_letter, unequal_lengths, searched, resized),
        *(taken_along, solved, normal_density, modulated, quantised, graph),
    )
}


@every_size
@pytest.mark.parametrize("name", USES)
def test_an_operation(name: str, size: Size) -> None:
    torch.manual_seed(0)
    width = size[2]
    parts = {"start": layer(width), "end": layer(width), "row": table(width)}
    more = {"square": table(width, width), "weights": table(width, width, 2)}
    model = calling(USES[name], **parts, **more)
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences(size)))


@every_size
def test_losses_times_their_weights(size: Size) -> None:
    torch.manual_seed(0)
    x, weights = sequences(size), torch.rand(size[0], dtype=torch.float64)
    model = Calls(lambda s, x: s.end(x).sin().sum((1, 2)), end=layer(size[2]))
    for _ in range(2):
        model.zero_grad()
        assert_right(model, lambda m: m(x) * weights, lambda m: m(x) @ weights)


@every_size
@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("steps", [False, True])
def test_weight_norm(size: Size, dim: int | None, steps: bool) -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(layer(size[2]).double(), dim=dim)
    model, x = Calls(lambda s, x: s.end(x), end=normed), sequences(size)
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(x if steps else x[:, 0]))


def test_experts_by_a_grouped_product() -> None:
    torch.manual_seed(0)
    if not hasattr(functional, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")

    def call(s: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        chosen = s.router(tokens).argmax(-1)
        order = chosen.argsort(stable=True)
        ends = torch.bincount(chosen, minlength=2).cumsum(0).to(torch.int32)
        out = functional.grouped_mm(tokens[order].float(), s.experts.float(), offs=ends)
        back = torch.empty_like(out)
        back[order] = out
        return back.view(x.shape).to(x.dtype)

    x = torch.randn(4, 3, 8)
    model = Calls(call, router=layer(8, 2), experts=table(2, 8, 8))

    def one_by_one(m: nn.Module) -> Tensor:
        chosen = m.router(x.double()).argmax(-1)
        return torch.einsum("btd,btde->bte", x.double(), m.experts[chosen]).sin().sum((1, 2))

    rows = torch.stack(
        [torch.autograd.grad(t, model.experts, retain_graph=True)[0] for t in one_by_one(model)]
    )
    for _ in range(2):
        model.zero_grad()
        with within_batch_variance(model):
            model(x.double()).sin().sum().backward()
        known = len(rows) * rows.var(0)
        torch.testing.assert_close(model.experts.grad_var, known, rtol=1e-4, atol=1e-5)


ACTIVATIONS = [
    *(nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU),
    *(nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: Callable[[], nn.Module]) -> None:
    """Whatever the version of torch says about the operation."""
    torch.manual_seed(0)
    act = activation().double()
    wide = 6 if activation is nn.GLU else 3
    model = Calls(
        lambda s, x: s.end(act(s.start(x))), start=nn.Linear(5, wide).double(), end=layer(3)
    )
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(sequences((4, 3, 5))))


Pair = namedtuple("Pair", "x mask")


@dataclasses.dataclass
class Batch:
    x: Tensor
    mask: Tensor


class Record(UserDict[str, Tensor]):
    x = property(lambda self: self["x"])
    mask = property(lambda self: self["mask"])


@pytest.mark.parametrize("kind", [Pair, Batch, lambda x, mask: Record(x=x, mask=mask)])
def test_inputs_in_one_object(kind: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    batch = kind(x=sequences((4, 3, 5)), mask=torch.rand(4, 3, dtype=torch.float64))
    model = Calls(lambda s, b: s.end(b.x) * b.mask.unsqueeze(-1), end=layer(5))
    for _ in range(2):
        model.zero_grad()
        assert_right(model, terms(batch))
    mixed = Calls(lambda s, b: s.end(b.x) * float(b.mask.sum()), end=layer(5))
    assert_refused(mixed, lambda m: m(batch).sin().sum(), "the model mixes examples")


def test_a_model_inside_vmap_is_refused() -> None:
    model, x = Calls(lambda s, x: s.end(x), end=layer(5)), sequences((4, 3, 5))
    assert_refused(model, lambda m: torch.vmap(m)(x).sin().sum(), "torch.vmap")
