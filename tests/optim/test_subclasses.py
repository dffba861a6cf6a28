"""Tensors of classes of their own: quantised weights, wrappers, and tensors without values."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import svag

from .cases import EVERY_KIND, by_name, named
from .stepping import step

ELEMENTWISE = (
    torch.ops.aten.add_.Tensor,
    torch.ops.aten.sub_.Tensor,
    torch.ops.aten.mul_.Tensor,
    torch.ops.aten.addcdiv_.default,
    torch.ops.aten.copy_.default,
)
READS = (
    torch.ops.aten.add.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.empty_like.default,
)


class Quantised(Tensor):
    """Integers and a scale, with what torch's own Adam needs of a parameter, as torchao has it.

    Operations on lists, views and whatever else are unknown to it.
    """

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "Quantised":
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=scale.dtype)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def of(cls, values: Tensor) -> "Quantised":
        scale = values.abs().amax() / 2**30
        return cls((values.double() / scale).round().to(torch.int64), scale)

    def values(self) -> Tensor:
        return (self.codes.double() * self.scale).to(self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = tree_map_only(cls, cls.values, (args, kwargs or {}))
        if func in ELEMENTWISE:
            new = cls.of(func(*plain[0], **plain[1]))
            args[0].codes.copy_(new.codes)
            args[0].scale.copy_(new.scale)
            return args[0]
        if func in READS:
            return func(*plain[0], **plain[1])
        raise NotImplementedError(f"{func} of a quantised tensor")


def quantised(dtype: torch.dtype = torch.float32, size: int = 6) -> nn.Parameter:
    return nn.Parameter(Quantised.of(torch.linspace(-1.0, 2.0, size).to(dtype)))


@pytest.mark.parametrize("flags", [{}, {"foreach": False}, {"fused": False}], ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("size", [6, 100_000])
@by_name(EVERY_KIND)
def test_quantised_weights_step_by_default(case, size, decoupled, flags):
    options = {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": decoupled, **flags}
    param, plain = quantised(size=size), nn.Parameter(torch.linspace(-1.0, 2.0, size))
    ours, theirs = case.build([param], **options), case.build([plain], **options)
    for n in range(3):
        for optimizer in (ours, theirs):
            step(optimizer, torch.linspace(1.0, 2.0, size) * (n + 1))
    values = param.detach().values()
    torch.testing.assert_close(values, plain.detach(), rtol=1e-5, atol=1e-6)


def test_one_quantised_weight_leaves_the_others_fast():
    pytest.importorskip("numba")
    optimizer = svag.MSVAG([quantised(), nn.Parameter(torch.ones(4))])
    step(optimizer, 1.0)
    assert optimizer._plan is not None
    assert [len(table.places) for table in optimizer._plan.fused] == [1]


class Named(nn.Parameter):
    """A parameter of a user's own class, which does what torch does."""


@by_name(EVERY_KIND)
def test_a_parameter_of_a_users_class_is_one(case):
    own, plain = Named(torch.ones(5)), nn.Parameter(torch.ones(5))
    for p in (own, plain):
        optimizer = case.build([p])
        for n in range(3):
            step(optimizer, torch.linspace(-1.0, 2.0, 5) * (n + 1))
    torch.testing.assert_close(own.detach(), plain.detach(), rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------ without values

FLAGS: tuple[dict[str, Any], ...] = (
    {},
    {"foreach": True},
    {"foreach": False},
    {"fused": False},
    {"capturable": True},
)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@by_name([*EVERY_KIND, *named("adam-amsgrad")])
def test_a_step_can_be_rehearsed_without_memory(case, dtype, flags):
    """Memory estimators run the step under FakeTensorMode."""
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(5000, 3, dtype=dtype), nn.Linear(3, 2, dtype=dtype))
        optimizer = case.build(model.parameters(), **flags)
        for _ in range(3):
            model(torch.randn(4, 5000, dtype=dtype)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for param, state in optimizer.state.items():
        for name in case.anatomy.buffers:
            assert (state[name].shape, state[name].dtype) == (param.shape, dtype)
            assert type(state[name]) is type(param.data)
