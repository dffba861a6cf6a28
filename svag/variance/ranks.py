"""The variance of a data-parallel gradient, from the gradients of the ranks."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from svag.errors import InvalidOption, TooFewSamples
from svag.variance.grad_var import attach, had_variance, widened
from svag.variance.rescaling import follow_torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Layout: TypeAlias = tuple[Sequence[int], Sequence[int], int]


def rank_variance(model: nn.Module) -> None:
    """Make every backward pass that reduces set ``p.grad_var`` to the variance across ranks.

        grad_var = (R sum_k c_k^2 - grad^2) / (R - 1),    grad = c_1 + ... + c_R

    c_k = g_k / R is the contribution of rank k to the average. The estimate is unbiased if the
    ranks draw batches of the same size independently. It works for every model, also with BatchNorm
    in training mode.

    Under ``DistributedDataParallel`` a communication hook all-reduces c and c^2, bucket by bucket
    and in parallel to the backward pass. Under FSDP2 (``fully_shard``) both are reduce-scattered,
    and ``grad_var`` is a DTensor sharded like ``grad``. The traffic is doubled, and each parameter
    (each shard) needs one more buffer. Reducing squared deviations from the mean instead of squares
    would take a second round after the backward pass. The variance has an error of 2e-7 of the mean
    g_k^2 in float32 and is clamped at zero. Gradients in half precision are reduced in float32.

    Accumulation: under DDP's ``no_sync()`` and FSDP2's ``set_requires_gradient_sync(False)``
    nothing is reduced and there is no variance yet; the backward pass that reduces estimates the
    variance of the whole accumulated gradient. Do not accumulate over several passes that reduce:
    under DDP the gradient reduced earlier counts as a constant, under FSDP2 there is no variance
    then. Under FSDP2 also use ``zero_grad(set_to_none=True)``, the default, and no offloading to
    the CPU.

    Call it once; it stays in effect for the life of the model, since a hook of DDP cannot be
    removed.

    Args:
        model: a model wrapped in ``DistributedDataParallel``, or after ``fully_shard``.

    Raises:
        TooFewSamples: (a RuntimeError) there is only one rank.
        InvalidOption: (a ValueError) the model is neither, or is sharded over a mesh of more than
            one dimension.

    Example:
        Run under ``torchrun --nproc-per-node 2``::

            torch.distributed.init_process_group()
            model = DistributedDataParallel(torch.nn.Linear(2, 1))
            svag.rank_variance(model)
            model(batch_of_this_rank).pow(2).mean().backward()
            model.module.weight.grad_var

        A model that is not data-parallel is refused:

        >>> import svag, torch
        >>> svag.rank_variance(torch.nn.Linear(2, 1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        svag.errors.InvalidOption: Linear is not data-parallel; wrap it in ...
    """
    follow_torch()
    if isinstance(model, DistributedDataParallel):
        group = model.process_group
        _require_two(dist.get_world_size(group))
        model.register_comm_hook(_BucketSquares(group), _reduce_bucket)
        return
    sharded = _sharded(model)
    if not sharded:
        raise InvalidOption(
            f"{type(model).__name__} is not data-parallel; wrap it in DistributedDataParallel or "
            "call fully_shard(model) first, or use svag.micro_batch_variance"
        )
    for module, params in sharded.items():
        cast(Any, module).set_custom_reduce_scatter(_ShardSquares(params))


def _require_two(ranks: int) -> None:
    if ranks < 2:
        raise TooFewSamples(
            f"a variance across ranks needs at least 2 ranks and there is {ranks}; use "
            "svag.micro_batch_variance, or svag.within_batch_variance(model)"
        )


def _spread(squares: Tensor, total: Tensor, ranks: int) -> Tensor:
    """Turn sum_k c_k^2, in place, into the variance of the total."""
    squares.mul_(ranks).addcmul_(total, total, value=-1.0)
    return squares.div_(ranks - 1).clamp_(min=0.0)


class _AfterBackward:
    """Calls a function at the end of the current backward pass."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._task: int | None = None

    def is_new(self) -> bool:
        """Return whether this is the first call in a backward pass; if so, queue the function."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return False
        self._task = task
        engine = cast(Any, torch.autograd.Variable)._execution_engine
        # DDP queues its own callback after its last bucket; queueing twice puts ours after it.
        engine.queue_callback(lambda: engine.queue_callback(self._function))
        return True


class _BucketSquares:
    """The reduced squares of DDP's buckets, kept until DDP has set the gradients."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self._end = _AfterBackward(self._attach)
        self._buckets: list[_Bucket] = []

    def add(self, bucket: "_Bucket") -> None:
        if self._end.is_new():
            self._buckets.clear()  # a backward pass that raised may have left some
        self._buckets.append(bucket)

    @torch.no_grad()
    def _attach(self) -> None:
        while self._buckets:
            bucket = self._buckets.pop()
            bucket.work.wait()
            variance = _spread(bucket.squares, bucket.total, self.ranks)
            for param, layout in zip(bucket.params, bucket.layouts, strict=True):
                if param.grad is not None:
                    attach(param, variance.as_strided(*layout))


@dataclass(frozen=True)
class _Bucket:
    params: list[Tensor]
    layouts: list[Layout]
    total: Tensor
    squares: Tensor
    work: dist.Work


def _reduce_bucket(state: _BucketSquares, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    """All-reduce the contributions of a bucket and their squares."""
    flat, params = bucket.buffer(), bucket.parameters()
    layouts = list(map(_layout, params, bucket.gradients(), itertools.repeat(flat)))
    total = widened(flat).div_(state.ranks)
    squares = total.square()
    work = dist.all_reduce(squares, group=state.group, async_op=True)
    summed = dist.all_reduce(total, group=state.group, async_op=True)
    state.add(_Bucket(params, layouts, total, squares, work))

    def in_place(_: Future[list[Tensor]]) -> Tensor:
        return flat if total is flat else flat.copy_(total)

    return cast(Future[Tensor], summed.get_future().then(in_place))


def _layout(param: Tensor, grad: Tensor, flat: Tensor) -> Layout:
    """Return offset, shape and strides of a gradient in a flat bucket.

    DDP gives a gradient the strides of its parameter, if that is dense, although
    ``bucket.gradients()`` returns all as contiguous.
    """
    stride, offset = param.stride(), int(grad.storage_offset() - flat.storage_offset())
    dense = torch.empty_like(param, device="meta").stride() == stride
    return param.shape, stride if dense else grad.stride(), offset


def _sharded(model: nn.Module) -> dict[nn.Module, list[Tensor]]:
    """Return the modules on which ``fully_shard`` was called, each with its own parameters."""
    from torch.distributed.fsdp import FSDPModule  # slow to import

    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    holder = {p: module for module in modules for p in module.parameters()}  # innermost wins
    for param in holder:
        mesh = cast("DTensor", param).device_mesh
        if mesh.ndim != 1:
            raise InvalidOption(
                f"parameters are sharded over a mesh of shape {tuple(mesh.shape)}; rank_variance "
                "needs a mesh of one dimension"
            )
        _require_two(mesh.size())
    return {module: [p for p in holder if holder[p] is module] for module in modules}


class _ShardSquares:
    """A reduce-scatter for FSDP2 that also estimates the variance of the reduced shards."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._end = _AfterBackward(self._attach)
        self._shards: list[_Shard] = []

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise InvalidOption(
                f"rank_variance cannot follow a reduction by {op}; leave FSDP's gradient divide "
                "factor as it is"
            )
        if self._end.is_new():
            self._shards.clear()
        ranks, wide, total = group.size(), widened(input_tensor), widened(output_tensor)
        squares = torch.empty_like(total)
        dist.reduce_scatter_tensor(total, wide, op=op, group=group)
        dist.reduce_scatter_tensor(squares, wide.square(), op=op, group=group)
        if op == dist.ReduceOp.AVG:  # c = g / R, and the average of g^2 is R times the sum of c^2
            squares.div_(ranks)
        if total is not output_tensor:
            output_tensor.copy_(total)
        variance = _spread(squares, total, ranks)
        norm = widened(output_tensor).norm() if op == dist.ReduceOp.SUM else None
        self._shards.append(_Shard(variance, output_tensor, norm))

    @torch.no_grad()
    def _attach(self) -> None:
        while self._shards:
            shard = self._shards.pop()
            variance = shard.followed()
            for param in self._params:
                if param.grad is not None and not had_variance(param):
                    attach(param, _laid_out(variance, cast("DTensor", param.grad)))


@dataclass(frozen=True)
class _Shard:
    variance: Tensor
    reduced: Tensor
    norm: Tensor | None  # of the summed gradient just after the reduction; None if averaged

    def followed(self) -> Tensor:
        """Return the variance, rescaled if FSDP summed gradients and divided them afterwards."""
        if self.norm is None:
            return self.variance
        factor = (widened(self.reduced).norm() / self.norm).nan_to_num_(nan=1.0)
        return self.variance.mul_(factor).mul_(factor)


def _laid_out(variance: Tensor, grad: "DTensor") -> "DTensor":
    """Return the part of a flat variance that belongs to a gradient, as a DTensor like it."""
    from torch.distributed.tensor import DTensor  # slow to import

    local = grad.to_local()
    if local.untyped_storage().nbytes() != variance.numel() * local.element_size():
        raise InvalidOption(
            f"the gradient of a parameter of shape {tuple(grad.shape)} is not where FSDP reduced "
            "it; rank_variance works without CPUOffloadPolicy"
        )
    part = variance.as_strided(local.shape, local.stride(), local.storage_offset())
    return DTensor.from_local(
        part,
        grad.device_mesh,
        grad.placements,
        run_check=False,
        shape=grad.shape,
        stride=grad.stride(),
    )
