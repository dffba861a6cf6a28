"""The variance of an accumulated gradient against brute force over its contributions."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measured import assert_within
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from svag.errors import MissingVariance, SparseGradient, TooFewSamples
from svag.variance.grad_var import current, is_current
from svag.variance.micro_batches import micro_batch_variance


def oracle(contributions: np.ndarray) -> np.ndarray:
    """B/(B-1) sum_k (c_k - mean c)^2, in two passes."""
    c = np.asarray(contributions)
    return len(c) / (len(c) - 1) * ((c - c.mean(0)) ** 2).sum(0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(7, 4), nn.LSTM(4, 5, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        indices = (x.abs() * 3).long() % 7
        return self.lstm(self.embedding(indices))[0] @ self.lstm.weight_hh_l1[:5]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten()
    )


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, int], Tensor]
    sizes: tuple[int, ...]


def mean(out: Tensor, micro_batches: int) -> Tensor:
    return out.pow(2).mean() / micro_batches


def total(out: Tensor, micro_batches: int) -> Tensor:
    return out.pow(2).sum()


CASES = {
    "linear, mean": Case(lambda: nn.Linear(6, 2), mean, (4, 4, 4)),
    "linear, sum, two": Case(lambda: nn.Linear(6, 2), total, (3, 3)),
    "last one smaller": Case(lambda: nn.Linear(6, 2), total, (4, 4, 4, 1)),
    "BatchNorm": Case(convolutional, mean, (4, 4, 4, 4)),
    "recurrent, tied": Case(Recurrent, mean, (2, 2, 2, 2, 2)),
}


def batches(sizes: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("name", CASES)
def test_models_against_brute_force(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model = case.model().double()
    apart, plain = copy.deepcopy(model), copy.deepcopy(model)
    contributions: list[list[np.ndarray]] = [[] for _ in model.parameters()]
    with micro_batch_variance(model.parameters()) as micro_batches:
        for batch in batches(case.sizes):
            case.loss(model(batch), len(case.sizes)).backward()
            micro_batches.micro_step()
            case.loss(plain(batch), len(case.sizes)).backward()
            loss = case.loss(apart(batch), len(case.sizes))
            for past, grad in zip(
                contributions, torch.autograd.grad(loss, list(apart.parameters())), strict=True
            ):
                past.append(grad.numpy())
    for param, other, c in zip(model.parameters(), plain.parameters(), contributions, strict=True):
        assert torch.equal(param.grad, other.grad)
        np.testing.assert_allclose(current(param).numpy(), oracle(c), rtol=1e-10, atol=1e-20)
    for mine, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, other)


def accumulated(contributions: Tensor, missing: Sequence[int] = ()) -> nn.Parameter:
    """A parameter whose micro-batches have these gradients, exactly."""
    param = nn.Parameter(torch.zeros_like(contributions[0]))
    with micro_batch_variance(param) as micro_batches:
        for k, c in enumerate(contributions):
            if k not in missing:
                (param * c).sum().backward()
            micro_batches.micro_step()
    return param


@pytest.mark.parametrize("count", [2, 3, 8, 100, 1000])
@pytest.mark.parametrize("ratio", [1e-2, 1.0, 1e2, 1e4, 1e6])
def test_float32_also_where_the_mean_dwarfs_the_spread(ratio: float, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    offset = ratio * (1 + torch.rand(500, generator=generator))
    c = offset + torch.randn(count, 500, generator=generator)
    exact = c.double().numpy()
    s, got = oracle(exact), current(accumulated(c)).double().numpy()
    assert (got >= 0).all()
    error = np.abs(got - s)
    bound = 1e-4 * s + 1e-6 * (exact**2).mean(0)  # c_k and not g_k = B c_k: the tighter reading
    assert_within("micro-batches, float32, over 1e-4 s + 1e-6 c^2", (error / bound).max(), 1.0)
    # Deviations are off by the round-off of the accumulated gradient, as it is used by itself.
    off = np.abs(np.sqrt(got) - np.sqrt(s)) / np.abs(exact).sum(0)
    assert_within("micro-batches, float32, deviation over sum |c_k|", off.max(), 3e-7)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1), (2,), (0, 2), (1, 3, 4)])
def test_a_missing_gradient_is_a_zero_contribution(missing: tuple[int, ...], count: int) -> None:
    c = torch.randn(count, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    missing = tuple(k for k in missing if k < count)
    param = accumulated(c, missing)
    c[list(missing)] = 0.0
    if len(missing) == count:
        assert param.grad is None
        assert not hasattr(param, "grad_var")
        return
    torch.testing.assert_close(param.grad, c.sum(0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(current(param).numpy(), oracle(c.numpy()), rtol=1e-12)


def test_equal_micro_batches_have_no_variance() -> None:
    c = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert not current(accumulated(c.expand(2, -1))).any()
    for count in (3, 7, 50):
        error = current(accumulated(c.expand(count, -1))).max().item()
        assert_within("micro-batches, variance of equal ones", error, 1e-10)
    assert not current(accumulated(torch.zeros(4, 3))).any()


@given(data=st.data(), count=st.integers(2, 6), power=st.integers(-15, 15))
def test_invariants(data: st.DataObject, count: int, power: int) -> None:
    values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    c = torch.tensor(data.draw(st.lists(values, min_size=count, max_size=count)))[:, None]
    variance = current(accumulated(c))
    assert variance >= 0
    if variance > 1e-20:  # no underflow: powers of two scale exactly
        assert torch.equal(current(accumulated(c * 2.0**power)), variance * 4.0**power)
    order = data.draw(st.permutations(range(count)))
    slack = 1e-6 * c.square().mean().item() + 1e-30
    permuted = current(accumulated(c[order]))
    torch.testing.assert_close(permuted, variance, rtol=1e-4, atol=slack)


def test_it_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(5)
    c = 2.0 + 0.5 * torch.randn(4, 40_000, generator=generator)
    variance = current(accumulated(c))
    error = variance.std() / 40_000**0.5
    assert abs(variance.mean() - 4 * 0.25) < 3 * error


def test_several_backward_passes_in_a_micro_batch_and_the_plain_object() -> None:
    param = nn.Parameter(torch.zeros(1))
    micro_batches = micro_batch_variance([param])
    for _ in range(2):  # the object may be used again
        param.grad = None
        for first, second in ((1.0, 2.0), (3.0, 4.0), (-1.0, 0.5)):
            (first * param).sum().backward()
            (second * param).sum().backward()
            micro_batches.micro_step()
        micro_batches.finish()
        assert param.grad.item() == 9.5
        np.testing.assert_allclose(current(param).numpy(), oracle([[3.0], [7.0], [-0.5]]))


def test_a_gradient_from_before_counts_in_the_first_contribution() -> None:
    param = nn.Parameter(torch.zeros(1))
    param.grad = torch.tensor([10.0])
    with micro_batch_variance([param]) as micro_batches:
        for c in (1.0, 2.0):
            (c * param).sum().backward()
            micro_batches.micro_step()
    assert param.grad.item() == 13.0
    assert current(param).item() == oracle([11.0, 2.0])


def test_gradients_may_be_zeroed_inside_and_in_place() -> None:
    param = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param])
    param.grad = kept = torch.tensor([10.0])
    with micro_batch_variance([param]) as micro_batches:
        optimizer.zero_grad(set_to_none=False)
        for c in (1.0, 2.0):
            (c * param).sum().backward()
            micro_batches.micro_step()
    assert param.grad is kept
    assert param.grad.item() == 3.0
    assert current(param).item() == 1.0


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_micro_batches(count: int) -> None:
    param = nn.Parameter(torch.zeros(1))

    def use() -> None:
        with micro_batch_variance([param]) as micro_batches:
            for _ in range(count):
                (3.0 * param).sum().backward()
                micro_batches.micro_step()

    with pytest.raises(TooFewSamples, match=f"at least 2.*called {count} times; split the batch"):
        use()
    assert not is_current(param)
    assert (param.grad.item() if count else param.grad) == (3.0 if count else None)


def test_a_forgotten_micro_step() -> None:
    param = nn.Parameter(torch.zeros(1))
    micro_batches = micro_batch_variance([param])
    for c in (1.0, 2.0, 4.0):
        (c * param).sum().backward()
        if c < 4.0:
            micro_batches.micro_step()
    with pytest.raises(TooFewSamples, match=r"1 of 1 parameters .* after the last of 2"):
        micro_batches.finish()
    assert param.grad.item() == 7.0
    with pytest.raises(MissingVariance):
        current(param)


def test_an_exception_leaves_what_plain_accumulation_would_have_left() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def use() -> None:
        with micro_batch_variance([first, second]) as micro_batches:
            for c in (1.0, 2.0, 4.0):
                (c * first).sum().backward()
                if c == 4.0:
                    raise KeyboardInterrupt
                micro_batches.micro_step()

    with pytest.raises(KeyboardInterrupt):
        use()
    assert first.grad.item() == 7.0
    assert second.grad is None
    assert not hasattr(first, "grad_var")


def test_earlier_variances_are_freed_at_the_first_step() -> None:
    param = accumulated(torch.tensor([[1.0], [2.0]]))
    param.grad = None
    micro_batches = micro_batch_variance([param])
    (3.0 * param).sum().backward()
    micro_batches.micro_step()
    assert not hasattr(param, "grad_var")


def test_what_needs_no_gradient_gets_none() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    with micro_batch_variance(model.parameters()) as micro_batches:
        for _ in range(2):
            model(torch.randn(3, 2)).sum().backward()
            micro_batches.micro_step()
    assert is_current(model.weight)
    assert model.bias.grad is None
    assert not hasattr(model.bias, "grad_var")


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    micro_batches = micro_batch_variance(embedding.parameters())
    with pytest.raises(SparseGradient, match="sparse=False"):
        micro_batches.micro_step()
    assert embedding.weight.grad is not None


def test_complex_parameters_are_pairs_of_reals() -> None:
    c = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    param = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
    with micro_batch_variance([param]) as micro_batches:
        for part in c:
            (torch.view_as_real(param) * part).sum().backward()
            micro_batches.micro_step()
    assert param.grad.dtype == current(param).dtype == torch.complex128
    np.testing.assert_allclose(torch.view_as_real(param.grad.detach()), c.sum(0), rtol=1e-12)
    np.testing.assert_allclose(torch.view_as_real(current(param)), oracle(c.numpy()), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_half_precision(scale: float, count: int, dtype: torch.dtype) -> None:
    """In float32: gradients of 1e-4 have variances of 1e-8, which are nothing in float16."""
    c = (scale * torch.randn(count, 100, generator=torch.Generator().manual_seed(2))).to(dtype)
    variance = current(accumulated(c))
    assert variance.dtype == torch.float32
    expected, slack = oracle(c.double().numpy()), 16 * torch.finfo(dtype).eps
    close = {"rtol": slack, "atol": slack * scale**2}
    np.testing.assert_allclose(variance.double().numpy(), expected, **close)
    assert bool(variance.any())


def test_gradients_with_a_graph_are_left_to_it() -> None:
    param = nn.Parameter(torch.tensor([1.0, 2.0]))
    with micro_batch_variance([param]) as micro_batches:
        for c in (1.0, 2.0, 3.0):
            (grad,) = torch.autograd.grad((c * param.pow(3)).sum(), param, create_graph=True)
            param.grad = grad
            micro_batches.micro_step()
            (second,) = torch.autograd.grad(grad.square().sum(), param)
            torch.testing.assert_close(second, 36 * c**2 * param.detach() ** 3)
    torch.testing.assert_close(param.grad, 18 * param.detach() ** 2)
    assert is_current(param)


def test_a_parameter_given_twice_counts_once() -> None:
    param = nn.Parameter(torch.zeros(1))
    with micro_batch_variance([param, param]) as micro_batches:
        for c in (1.0, 2.0):
            (c * param).sum().backward()
            micro_batches.micro_step()
    assert (param.grad.item(), current(param).item()) == (3.0, 1.0)


class Allocations(TorchDispatchMode):
    """Collects what operations return that they were not given, single numbers apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: list[str] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        flat = [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]
        given = {x.data_ptr() for x in flat if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        new = isinstance(result, Tensor) and result.data_ptr() not in given
        if new and result.numel() > 1:
            self.fresh.append(str(func))
        return result


def test_two_buffers_a_parameter_and_nothing_is_allocated_to_fold() -> None:
    params = [nn.Parameter(torch.zeros(50)) for _ in range(3)]
    micro_batches = micro_batch_variance(params)
    held = []
    for k in range(4):
        sum(((k + 1.0) * p.pow(2) + p).sum() for p in params).backward()
        with Allocations() as allocations:
            micro_batches.micro_step()
        assert allocations.fresh == []
        kept = [*micro_batches._sums.values(), *micro_batches._spreads.values()]
        held.append(len({t.data_ptr() for t in kept}))
        assert all(p.grad is None for p in params)
    assert held == [3, 6, 6, 6]
    sums, spreads = (
        [t.data_ptr() for t in d.values()] for d in (micro_batches._sums, micro_batches._spreads)
    )
    with Allocations() as allocations:
        micro_batches.finish()
    assert allocations.fresh == []
    assert [p.grad.data_ptr() for p in params] == sums
    assert [current(p).data_ptr() for p in params] == spreads
