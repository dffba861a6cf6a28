"""Steps that autograd differentiates, that torch.compile traces, and that autograd must see."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import svag
from svag import Anatomy, Dissected
from svag.errors import MissingVariance
from svag.optim.engines import eager
from svag.variance.grad_var import attach

from .cases import CASES, ENGINES, EVERY_KIND, ROWS, Case, by_name, named
from .stepping import assert_all_close, give_gradients, held, parameter, train

# ----------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("maximize", [False, True])
@by_name([*ROWS, *named("adam-amsgrad", "raw-m-sgd-svag", "m-ssd-erf/batch")])
def test_steps_have_the_derivative_of_the_step(case, maximize):
    """Along gradients that depend on the parameter, and by every buffer that is written and read.

    torch's ``test_differentiable``; a variance is a constant.
    """
    variance = torch.full((4,), 0.3, dtype=torch.float64)

    def end(start: Tensor, lr: Tensor, *factors: Tensor) -> Tensor:
        param = start.clone()
        optimizer = case.build([param], lr=lr, differentiable=True, maximize=maximize)
        for factor in (*factors, factors[0] * factors[1]):
            param.grad = factor * (param + 2)
            if case.within_batch:
                attach(param, variance)
            optimizer.step()
        return param

    values = [torch.linspace(a, b, 4, dtype=torch.float64) for a, b in ((1, 2), (1, 3), (2, 0.5))]
    values.insert(1, torch.tensor(0.1, dtype=torch.float64))
    assert torch.autograd.gradcheck(end, [value.requires_grad_() for value in values])


@pytest.mark.parametrize("decoupled", [False, True])
def test_hyperparameters_are_differentiable(decoupled):
    def end(lr: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
        p = torch.linspace(-1, 1, 3, dtype=torch.float64, requires_grad=True).clone()
        options = {"weight_decay": decay, "decoupled_weight_decay": decoupled}
        optimizer = svag.Adam([p], lr, (beta, beta * 0.9), differentiable=True, **options)
        for n in range(2):
            p.grad = (p + n + 2) ** 2  # not 0, where sqrt(v) has no derivative
            optimizer.step()
        return p.sum()

    values = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.8, 0.05))
    assert torch.autograd.gradcheck(end, tuple(values))


@pytest.mark.parametrize("factor", ["svag", "sqrt", "erf"])
def test_factors_differentiate_to_finite_values_at_zero_variance(factor):
    p = torch.ones(2, dtype=torch.float64, requires_grad=True).clone()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    anatomy = Anatomy("momentum", factor=factor)
    optimizer = Dissected([p], 0.1, anatomy=anatomy, differentiable=True)
    for _ in range(3):
        p.grad = torch.ones(2, dtype=torch.float64) * scale
        optimizer.step()
    (slope,) = torch.autograd.grad(p.sum(), scale)
    assert slope.item() == pytest.approx(-0.6)


# ---------------------------------------------------------------------------------------- graphs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize(
    ("case", "flags"),
    [
        *((case, {}) for case in named("ssd", "m-svag", "adam", "svag/batch", "ssd-sqrt/batch")),
        *((case, flags) for case in named("m-svag/batch") for flags in ENGINES.values()),
    ],
    ids=str,
)
def test_a_compiled_step_takes_at_most_two_graphs(case, flags, scheduled):
    from torch._dynamo.testing import CompileCounter

    if scheduled and flags == {"foreach": True}:
        pytest.skip("torch refuses a tensor as the step size here")
    torch.compiler.reset()
    shapes = ((12, 5), (5,), ())
    params, others = ([parameter(*shape) for shape in shapes] for _ in range(2))
    lr: Any = torch.tensor(0.1) if scheduled else 0.1
    optimizer = case.build(params, lr=lr, **flags)
    reference = case.build(others, lr=0.1, foreach=False)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for n in range(10):
        for tensors in (params, others):
            give_gradients(tensors, n, variances=case.within_batch)
        step()
        reference.step()
        if scheduled:
            lr.mul_(0.9)
            reference.param_groups[0]["lr"] *= 0.9
    assert_all_close(params, others)
    assert 1 <= counter.frame_count <= 2
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_without_a_variance_is_the_same_error():
    torch.compiler.reset()
    p = nn.Parameter(torch.ones(3))
    optimizer = svag.MSVAG([p], variance="within-batch")
    p.grad = torch.ones(3)
    step = torch.compile(optimizer.step, backend="eager")
    with pytest.raises(MissingVariance, match=r"svag\.within_batch_variance"):
        step()
    assert torch.equal(p.detach(), torch.ones(3))


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_step(case: Case, count: int, **options: Any) -> Counter[str]:
    optimizer = case.build([parameter(3) for _ in range(count)], foreach=True, **options)
    train(optimizer, steps=1)
    give_gradients(held(optimizer), 1)
    calls = Calls()
    with calls:
        optimizer.step()
    del calls.count["aten._local_scalar_dense.default"]  # reads each step, as torch does
    return calls.count


@by_name(CASES)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_the_number_of_operations_on_lists_is_that_of_one_tensor(case, options, monkeypatch):
    """On an accelerator each is a launch."""
    monkeypatch.setattr(eager, "_joinable", lambda rows: False)
    assert calls_of_a_step(case, 20, **options) == calls_of_a_step(case, 2, **options)


@by_name(CASES)
def test_lists_as_an_accelerator_has_them_step_as_joined_tensors(case, monkeypatch):
    """Of several sizes, layouts and steps; a CPU joins them, part by part."""

    def run() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((), (3, 4), (0,), (70_000,), (65_536,), (5,))
        params = [nn.Parameter(torch.randn(s, generator=generator).double()) for s in shapes]
        params[1] = nn.Parameter(params[1].detach().t())
        optimizer = case.build(params, **case.decay(0.9), foreach=True)
        for n in range(3):
            for i, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator).double()
                param.grad = None if (i, n) == (5, 0) else grad
            optimizer.step()
        return [param.detach() for param in params]

    joined = run()
    monkeypatch.setattr(eager, "_joinable", lambda rows: False)
    for one, other in zip(joined, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


# ------------------------------------------------------------------------------ autograd's guard


@by_name([*EVERY_KIND, *named("adam-amsgrad", "m-svag/batch")])
def test_autograd_sees_that_parameters_and_averages_have_changed(case, flags):
    """By a graph through them; torch's own fused Adam (2.13, CPU) does not count its steps."""
    for p in (parameter(50), parameter(3, 10_907), parameter(4, dtype=torch.bfloat16)):
        optimizer, weight = case.build([p], **flags), torch.ones(p.shape, requires_grad=True)
        train(optimizer, steps=1)
        for name in ("", *case.anatomy.buffers, *["max_exp_avg_sq"] * case.amsgrad):
            loss = ((weight if name else p) * (optimizer.state[p][name] if name else p)).sum()
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
