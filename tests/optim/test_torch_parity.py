"""What torch's own tests of its optimizers found here, and where these differ on purpose."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import svag
from svag.optim.engines import eager

from .cases import CASES, ENGINES, by_name, every_engine, named


@by_name([named("adam"), named("adam-amsgrad"), named("m-svag"), named("raw-m-sgd-svag")])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_step_has_its_derivative_with_the_largest_average_too(case, maximize):
    """torch's test_differentiable, for each buffer that a step writes and reads."""
    amsgrad = {"amsgrad": True} if case.amsgrad else {}

    def end(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
        param = start.clone()
        optimizer = case.build([param], lr=0.1, differentiable=True, maximize=maximize, **amsgrad)
        for gradient in (first, second, first * second):
            param.grad = gradient
            optimizer.step()
        return param

    values = [torch.linspace(a, b, 4, dtype=torch.float64) for a, b in ((1, 2), (1, 3), (2, 0.5))]
    assert torch.autograd.gradcheck(end, [value.requires_grad_() for value in values])


def test_the_derivative_is_that_of_torchs_amsgrad():
    ends = []
    for make in (svag.Adam, torch.optim.Adam):
        start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        param = start.clone()
        optimizer = make([param], lr=0.1, amsgrad=True, differentiable=True)
        param.grad = 3.0 * param
        optimizer.step()  # one, since torch's own second step writes into what autograd has kept
        (derivative,) = torch.autograd.grad(param.sum(), start)
        ends.append(derivative)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_step(case: Any, count: int, **options: Any) -> Counter[str]:
    params = [nn.Parameter(torch.zeros(3)) for _ in range(count)]
    amsgrad = {"amsgrad": True} if case.amsgrad else {}
    optimizer = case.build(params, foreach=True, **amsgrad, **options)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones(3)
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

    def run() -> list[torch.Tensor]:
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


@every_engine
def test_a_scale_set_by_hand_leaves_the_gradient_as_it_is(engine):
    """Unlike in torch, whose fused step leaves the unscaled gradient: see docs/recipes.md."""
    param, plain = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer: Any = svag.Adam([param], **ENGINES[engine])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    param.grad, plain.grad = torch.tensor([8.0, -16.0, 4.0]), torch.tensor([1.0, -2.0, 0.5])
    version = param.grad._version
    optimizer.step()
    svag.Adam([plain], **ENGINES[engine]).step()
    assert param.grad.tolist() == [8.0, -16.0, 4.0]
    assert param.grad._version == version
    assert torch.equal(param, plain)


def test_torchs_fused_step_leaves_the_unscaled_one() -> None:
    """Else the sentence above, and that of the docs, would be out of date."""
    param = nn.Parameter(torch.zeros(2))
    optimizer: Any = torch.optim.Adam([param], fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    param.grad = torch.tensor([8.0, -16.0])
    optimizer.step()
    assert param.grad.tolist() == [1.0, -2.0]


def test_a_sparse_gradient_is_an_error_and_nothing_else_is_said(capfd):
    """Before torch 2.13 asking a sparse tensor for its strides printed a C++ stack."""
    params = [nn.Parameter(torch.zeros(4, 3)) for _ in range(3)]
    optimizer = svag.MSVAG(params)
    for n in range(3):
        for param in params:
            param.grad = torch.ones(4, 3)
        if n == 2:
            params[1].grad = torch.ones(4, 3).to_sparse()
            with pytest.raises(RuntimeError, match="does not support sparse gradients"):
                optimizer.step()
        else:
            optimizer.step()
    assert capfd.readouterr() == ("", "")
