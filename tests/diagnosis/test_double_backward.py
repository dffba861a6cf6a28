"""Losses that torch cannot differentiate twice, or does wrongly, are refused."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diagnosis.curved_models import ctc
from diagnosis.test_curvature import same, state
from svag.diagnosis.curvature.double_backward import refusing
from svag.diagnosis.curvature.products import Curvature
from svag.diagnosis.objective import Batch, Objective
from svag.errors import DissectionError


def slope(x):
    """Derivative of SiLU."""
    s = x.sigmoid()
    return s + x * s * (1 - s)


class Right(torch.autograd.Function):
    """SiLU, with a backward pass of differentiable operations on its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * slope(*ctx.saved_tensors)


class Once(Right):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * slope(*ctx.saved_tensors)


class Kernel(Right):
    """As if the backward pass were a kernel of another language."""

    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            return grad * slope(*ctx.saved_tensors)


class Saving(Right):
    """Saves its derivative, which torch then takes for constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(slope(x))
        return functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Keeping(Saving):
    """Keeps it as an attribute."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = slope(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope


class Scaling(Right):
    """Saves a constant that it has computed."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, torch.ones_like(x))
        return functional.silu(x)

    @staticmethod
    def backward(ctx, grad):
        x, one = ctx.saved_tensors
        return grad * one * slope(x)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return checkpoint(self.second, self.first(x), use_reentrant=True)


class Length(nn.Module):
    def __init__(self):
        super().__init__()
        self.at_zero = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x[:, :3] * torch.linalg.vector_norm(self.at_zero)


def activated(function):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), Applied(function), nn.Linear(5, 3)).double()


class Checkpointed(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body = activated(function)

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
TOKENS = torch.arange(12).view(6, 2) % 5
ENTROPY = functional.cross_entropy
REFUSED = {
    "once differentiable": (activated(Once.apply), ENTROPY, X, Y, "Once.*once_differen"),
    "last": (nn.Linear(4, 1).double(), lambda z, y: Once.apply(z).mean(), X, Y, "once_differen"),
    "kernel": (activated(Kernel.apply), ENTROPY, X, Y, "not symmetric"),
    "saved": (activated(Saving.apply), ENTROPY, X, Y, "Function Saving keeps"),
    "kept": (activated(Keeping.apply), ENTROPY, X, Y, "Function Keeping keeps"),
    "recomputed": (Checkpointed(Saving.apply), ENTROPY, X, Y, "Function Saving keeps"),
    "hard sigmoid": (activated(functional.hardsigmoid), ENTROPY, X, Y, "hardsigmoid_backward"),
    "checkpoint": (Reentrant().double(), ENTROPY, X, Y, "use_reentrant=True"),
    "bag": (nn.EmbeddingBag(5, 3), ENTROPY, TOKENS, Y, "_embedding_bag_backward"),
    "ctc": (nn.Linear(4, 5), ctc, torch.ones(6, 3, 4), TOKENS[:3] + 1, "_ctc_loss_backward"),
    "norm at 0": (Length().double(), ENTROPY, X, Y, "not finite at 'at_zero'"),
    "detached": (nn.Linear(4, 3).double(), lambda z, y: z.detach().sum(), X, Y, "was cut"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason_and_all_is_restored(name):
    model, loss_fn, inputs, targets, reason = REFUSED[name]
    model.eval()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    before = state(model)
    with (
        pytest.raises(DissectionError, match=reason) as caught,
        Curvature(Objective(model, loss_fn), [Batch((inputs, targets), 0)]),
    ):
        pass
    assert same(state(model), before)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    "model",
    [activated(Right.apply), activated(Scaling.apply), Checkpointed(Right.apply)],
)
def test_custom_functions_that_are_right_are_not_refused(model):
    def product(model):
        with Curvature(Objective(model, functional.cross_entropy), [Batch((X, Y), 0)]) as curvature:
            return curvature.hessian_product([torch.ones_like(p) for p in model.parameters()])

    for found, expected in zip(product(model), product(activated(functional.silu)), strict=True):
        torch.testing.assert_close(found, expected)


def test_kinks_do_not_refuse_a_custom_function_that_saves_its_input_only():
    class Rectified(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Right.apply(functional.relu(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 300), Rectified(), nn.Linear(300, 3))
    with Curvature(
        Objective(model, functional.cross_entropy), [Batch((X.float(), Y), 0)]
    ) as curvature:
        assert curvature.operator("hessian")(curvature.start()[None]).isfinite().all()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("It failed. See the manual."), "curved: It failed$"),
        (NotImplementedError("aten::x.out has none\nmore"), "curved: aten::x.out has none more$"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "memory: CUDA out.*smaller batches"),
        (DissectionError("as it was"), "^as it was$"),
    ],
)
def test_a_reason_is_one_sentence(error, message):
    with pytest.raises(DissectionError, match=message), refusing("curved"):
        raise error


def test_where_torch_forbids_to_set_its_flags():
    """As in processes that have imported torch's own test suites."""
    code = """
import torch
from torch import nn
from svag.diagnosis.curvature.products import Curvature
from svag.diagnosis.objective import Batch, Objective

torch.backends.disable_global_flags()
model = nn.LSTM(2, 3)
objective = Objective(model, lambda outputs, targets: outputs[0].square().mean())
with Curvature(objective, [Batch((torch.ones(4, 1, 2), None), 0)]) as curvature:
    assert not torch.backends.mkldnn.enabled
    curvature.hessian_product([torch.ones_like(p) for p in objective.params])
assert torch.backends.mkldnn.enabled and torch.backends.cudnn.enabled
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
