"""The part of a tensor that this process holds.

The update of an element depends on nothing but that element, so a shard is updated as any tensor
is: what FSDP2 and tensor parallelism distribute (DTensor) is unwrapped before an engine sees it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.nn import Parameter

PLAIN = (Tensor, Parameter)


def is_distributed(tensor: Tensor) -> TypeGuard[Any]:
    """Whether a tensor is a DTensor; asked without importing torch.distributed."""
    return type(tensor) not in PLAIN and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the local shard of a DTensor, and any other tensor as it is."""
    return cast(Tensor, tensor.to_local()) if is_distributed(tensor) else tensor


def distributed_as(shard: Tensor, like: Tensor) -> Tensor:
    """Return this process's part as a DTensor that is distributed as another; else as it is."""
    if not is_distributed(like):
        return shard
    whole = {"shape": like.shape, "stride": like.stride()}
    placed = type(like).from_local(
        shard, like.device_mesh, like.placements, run_check=False, **whole
    )
    return cast(Tensor, placed)


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two plain tensors lie in one storage."""
    plain = type(one) in PLAIN and type(other) in PLAIN
    return plain and bool(cast(Any, torch._C)._is_alias_of(one, other))


def local_gradient(param: Tensor) -> Tensor:
    """Return the gradient as ``param`` is distributed, which need not be how it came."""
    grad = param.grad
    assert grad is not None
    if is_distributed(param) and is_distributed(grad) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local(grad)


@contextmanager
def gradients_placed_as_parameters(params: Iterable[Tensor]) -> Iterator[None]:
    """Have each gradient distributed as its parameter is, until the context is left.

    Ranks talk for that, so it is done once a step, whatever else a rank has to do. And nothing but
    ``p.grad`` refers to the result, whose address a fused engine is told.
    """
    strayed: list[tuple[Any, Any]] = [
        (param, param.grad)
        for param in params
        if is_distributed(param)
        and is_distributed(param.grad)
        and param.grad.placements != param.placements
    ]
    try:
        for param, grad in strayed:
            param.grad = grad.redistribute(param.device_mesh, param.placements)
        yield
    finally:
        for param, grad in strayed:
            param.grad = grad
