"""What a verified pass checks, when there is one, and what it leaves behind: nothing."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from svag.bench.variance import Encoder, over_tokens
from svag.errors import InvalidOption, PerExampleError
from svag.problems import models
from svag.variance import within_batch_variance
from svag.variance.per_example import CHECK_EVERY


class Coupled(nn.Module):
    """Mixes examples out of sight, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.mixes = nn.Linear(3, 4), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.dense(x)
        return h * float(h.detach().sum()) if self.mixes else h


class Stateful(nn.Module):
    """Counts its calls in every way that a module can, and drops out."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.drop = nn.Linear(3, 4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.seen, self.generator = 0, [], torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.seen.append(self.count)
        noise = torch.rand(4, generator=self.generator) + random.random()
        return self.drop(self.dense(x)) + noise


def step(model: nn.Module, x: Tensor, **options: object) -> None:
    model.zero_grad()
    with within_batch_variance(model, **options):
        model(x).square().mean().backward()


def test_the_first_pass_and_every_nth_are_verified_over_contexts() -> None:
    """A hook gives gradients to other examples; a refused pass is verified again."""
    torch.manual_seed(0)
    model, x, found = nn.Linear(3, 4), torch.randn(5, 3), []
    weights = torch.arange(1.0, 6.0).unsqueeze(1)
    for n in range(7):
        model.zero_grad()
        try:
            with within_batch_variance(model, check_every=3):
                out = model(x)
                if n:
                    out.register_hook(lambda gradient: gradient.roll(1, 0))
                (out * weights).square().mean().backward()
        except PerExampleError:
            found.append(n)
    assert found == [3, 4, 5, 6]
    assert CHECK_EVERY == 100


class Double(torch.autograd.Function):
    """Adds twice a bias, which no torch operation shows."""

    @staticmethod
    def forward(ctx: object, x: Tensor, bias: Tensor) -> Tensor:
        return x + 2 * bias

    @staticmethod
    def backward(ctx: object, delta: Tensor) -> tuple[Tensor, Tensor]:
        return delta, 2 * delta.sum(0)


double = Double.apply  # not looked up inside the context


def test_a_use_out_of_sight_is_found_in_any_pass() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.randn(5, 3)
    for _ in range(2):
        step(model, x)
    model.zero_grad()
    with (
        pytest.raises(PerExampleError, match="contributions do not add up"),
        within_batch_variance(model),
    ):
        double(model(x), model.bias).square().mean().backward()


def test_mixing_out_of_sight_is_found_where_it_begins_in_a_later_pass() -> None:
    model = Coupled()
    for _ in range(2):
        step(model, torch.randn(5, 3))
    model.mixes = True
    with pytest.raises(PerExampleError, match=r"the model mixes examples: its output for example"):
        step(model, torch.randn(5, 3))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_mixing_out_of_sight_is_found_in_the_first_pass(count: int) -> None:
    model = Coupled()
    model.mixes = True
    with pytest.raises(PerExampleError, match="the model mixes examples"):
        step(model, torch.randn(count, 3))
    step(model, torch.randn(count, 3), check=False)


def test_the_second_run_of_the_model_leaves_nothing() -> None:
    ends = []
    for check in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        model = Stateful()
        features: list[Tensor] = []
        model.dense.register_forward_hook(lambda _, __, out, to=features: to.append(out))
        step(model, torch.randn(5, 3), check=check)
        ends.append((model, len(features), torch.rand(3), random.random()))
    (plain, *one), (verified, *two) = ends
    assert verified.count == plain.count == 1
    assert verified.seen == [1]
    assert verified.calls == 1
    assert one[0] == two[0] == 1
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=0)
    assert one[2] == two[2]
    assert torch.equal(plain.generator.get_state(), verified.generator.get_state())
    torch.testing.assert_close(plain.dense.weight.grad, verified.dense.weight.grad)


def test_a_loss_that_writes_in_place_is_computed_again_on_copies() -> None:
    model, x, total = nn.Linear(3, 4), torch.randn(5, 3), torch.zeros(())
    with within_batch_variance(model, check=True):
        out = model(x)
        loss = torch.zeros(())
        loss += out.square().mean()
        total += loss.detach()
        loss.backward()
    torch.testing.assert_close(total, out.square().mean())


WORKLOADS: dict[str, Callable[[], tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]]] = {
    "2c2d": lambda: (models.conv_2c2d(), torch.randn(6, 1, 28, 28), first_class),
    "3c3d": lambda: (models.conv_3c3d(), torch.randn(4, 3, 32, 32), first_class),
    "lstm": lambda: (models.CharLSTM(20), torch.randint(20, (4, 9)), next_tokens),
    "transformer": lambda: (Encoder(), torch.randint(1000, (4, 16)), first_class),
}


def first_class(out: Tensor) -> Tensor:
    return functional.cross_entropy(out, torch.zeros(len(out), dtype=torch.long))


def next_tokens(out: Tensor) -> Tensor:
    return over_tokens(out, torch.zeros(out.shape[:2], dtype=torch.long))


def gradients(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], check: bool | None
) -> list[Tensor]:
    model.zero_grad()
    if check is None:
        loss(model(x)).backward()
    else:
        with within_batch_variance(model, check=check):
            loss(model(x)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["2c2d", "3c3d", "transformer"])
def test_the_gradient_of_a_verified_pass_is_autograds_bit_for_bit(name: str) -> None:
    """Recurrent layers run one after the other, which rounds otherwise: see the next test."""
    torch.manual_seed(0)
    model, x, loss = WORKLOADS[name]()
    plain = gradients(model, x, loss, None)
    verified = gradients(model, x, loss, True)
    same = [torch.equal(a, b) for a, b in zip(plain, verified, strict=True)]
    assert all(same), same


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_gradient_of_any_pass_is_as_exact_as_torchs(name: str, check: bool) -> None:
    torch.manual_seed(0)
    model, x, loss = WORKLOADS[name]()
    plain, ours = gradients(model, x, loss, None), gradients(model, x, loss, check)
    exact = gradients(model.double(), x.double() if x.is_floating_point() else x, loss, None)
    for a, b, reference in zip(plain, ours, exact, strict=True):
        floor = 1e-6 * float(reference.abs().max())
        error = float((b - reference).abs().max())
        assert error <= 2 * float((a - reference).abs().max()) + floor


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 4)

    def forward(self, table: Tensor, x: Tensor) -> Tensor:
        return self.dense(x) @ table


@pytest.mark.parametrize("examples", [1, "x", [1], ["x"], lambda key, t: key == 1])
def test_arguments_are_named_by_position_name_or_function(examples: object) -> None:
    torch.manual_seed(0)
    model, table, x = Table(), torch.randn(4, 2), torch.randn(5, 3)
    expected = []
    for inputs in ((table, x), (table[:, :2], x)):
        model.zero_grad()
        with within_batch_variance(model, examples=examples):
            model(*inputs).square().mean().backward()
        expected.append(model.dense.weight.grad_var.clone())
    torch.testing.assert_close(expected[0], expected[1])


@pytest.mark.parametrize("narrow", ["the parameter", "the product", "the input"])
def test_rounding_within_a_model_that_computes_more_coarsely_is_no_false_alarm(narrow: str) -> None:
    """In a double precision model, part of which computes in float32, as state-space models do."""

    class Scan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            h, weight = self.first(x), self.weight
            if narrow == "the parameter":
                y = h * weight.float()[None, None, :]
            elif narrow == "the product":
                y = (h * weight[None, None, :]).float().tanh()
            else:
                y = h.float() * weight
            return self.last(y.to(x.dtype))

    for seed in range(5):
        torch.manual_seed(seed)
        model, x = Scan().double(), torch.randn(6, 7, 4, dtype=torch.float64) * 3
        step(model, x)
        plain = copy.deepcopy(model)
        plain.zero_grad()
        plain(x).square().mean().backward()
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)


def test_arguments_that_disagree_are_refused_with_the_remedy() -> None:
    with (
        pytest.raises(InvalidOption, match=r"argument 0 of 4, argument 1 of 5.*examples=0"),
        within_batch_variance(model := Table()),
    ):
        model(torch.randn(4, 2), torch.randn(5, 3))


@pytest.mark.parametrize("examples", [7, "y", []])
def test_a_name_that_no_argument_has_is_refused(examples: object) -> None:
    with (
        pytest.raises(InvalidOption, match="no argument of Table that is a tensor"),
        within_batch_variance(model := Table(), examples=examples),
    ):
        model(torch.randn(4, 2), torch.randn(5, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_models_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(PerExampleError, match=r"the model is compiled.*micro_batch_variance"):
        within_batch_variance(torch.compile(model))  # type: ignore[arg-type]
    model[0].compile()
    with pytest.raises(PerExampleError, match="submodule '0' is compiled"):
        within_batch_variance(model)


def test_the_sampling_of_the_check_is_in_range() -> None:
    with pytest.raises(InvalidOption, match="check_every=0"):
        within_batch_variance(nn.Linear(3, 4), check_every=0)
