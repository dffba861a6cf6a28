"""The variance of an accumulated gradient, from the micro-batches it is accumulated over.

Each micro-batch's gradient is removed from ``p.grad`` and added to two running sums by the updating
formulas of Youngs and Cramer. They avoid subtracting large numbers to get a small variance.
"""

from types import TracebackType
from typing import TypeAlias, cast

import torch
from torch import Tensor

from svag.errors import SparseGradient, TooFewSamples
from svag.variance.grad_var import Parameters, attach, clear, listed, widened
from svag.variance.rescaling import follow_torch

Buffers: TypeAlias = dict[Tensor, Tensor]


class micro_batch_variance:  # noqa: N801 - reads as the function it is used as
    """Accumulates gradients over micro-batches and estimates the variance of the sum.

        grad_var = (B sum_k c_k^2 - grad^2) / (B - 1)
                 = B / (B - 1) sum_k (c_k - grad / B)^2,    grad = c_1 + ... + c_B

    c_k is the contribution of micro-batch k to ``p.grad``, so no option is needed for a loss that
    is a sum, is divided by the number of micro-batches or weighted otherwise. The estimate is
    unbiased for independent micro-batches of the same size and weight; if the last one is smaller,
    the different mean of its contribution counts as variance. It works for every model: examples
    may be coupled within a micro-batch (BatchNorm in training mode, contrastive losses).

    Between micro-batches ``p.grad`` is None: :meth:`micro_step` adds each gradient to the sums and
    frees it. At the end ``p.grad`` is the same as with plain accumulation, bit for bit. A gradient
    that exists before the first micro-batch counts as part of the first contribution, so begin
    after ``zero_grad()``, or call it inside before the first backward pass.

    Memory: two buffers for each parameter, the accumulated gradient and the one that becomes
    ``grad_var``, and during a backward pass the micro-batch's own gradient, which plain
    accumulation adds to ``p.grad`` layer by layer. With B = 2 there are never more than two.

    A parameter may have no gradient in some micro-batches: its contribution there is zero.
    ``backward()`` may run several times in a micro-batch. With a ``GradScaler``, do not change its
    scale before the end (call ``update()`` after the step), and unscale by :func:`svag.unscale_`.
    Under ``DistributedDataParallel`` every backward pass has to synchronise: with ``no_sync()`` the
    contributions before the last one would not be reduced. The sum has the gradient's dtype, as in
    plain accumulation, so in half precision many micro-batches have large rounding errors. The
    variance of half-precision gradients is in float32.

    Args:
        parameters: a tensor or an iterable of tensors.

    Raises:
        TooFewSamples: (a RuntimeError) at the end, after fewer than two micro-batches or with a
            gradient after which :meth:`micro_step` was not called.
        SparseGradient: (a RuntimeError) a gradient is sparse.

    Example:
        >>> import torch, svag
        >>> model = torch.nn.Linear(2, 1)
        >>> batch = torch.randn(8, 2)
        >>> with svag.micro_batch_variance(model.parameters()) as micro_batches:
        ...     for micro_batch in batch.split(2):
        ...         (model(micro_batch).pow(2).mean() / 4).backward()
        ...         micro_batches.micro_step()
        >>> model.weight.grad_var.shape
        torch.Size([1, 2])

        As a plain object, with :meth:`finish` where the ``with`` statement would end:

        >>> micro_batches = svag.micro_batch_variance(model.parameters())
        >>> for _ in range(2):
        ...     model.zero_grad()
        ...     for micro_batch in batch.split(2):
        ...         (model(micro_batch).pow(2).mean() / 4).backward()
        ...         micro_batches.micro_step()
        ...     micro_batches.finish()

    References:
        Youngs and Cramer, Some results relevant to choice of sum and sum-of-product algorithms,
        Technometrics 13, 1971.
    """

    def __init__(self, parameters: Parameters) -> None:
        follow_torch()
        self._params = listed(parameters)
        self._reset()

    def __enter__(self) -> "micro_batch_variance":
        self._reset()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._give_back()

    @torch.no_grad()
    def micro_step(self) -> None:
        """Add the gradients of one micro-batch to the sums; call it after its last ``backward()``.

        Raises:
            SparseGradient: (a RuntimeError) a gradient is sparse.
        """
        arrived = {p: _owned(p) for p in self._params if p.grad is not None}
        for param in arrived:
            param.grad = None
        if self._count == 0:
            clear(self._params)  # frees the memory of earlier variances
        self._count += 1
        late = {p: g for p, g in arrived.items() if p not in self._sums}
        self._fold({p: g for p, g in arrived.items() if p in self._sums})
        self._fold_zeros([p for p in self._sums if p not in arrived])
        self._begin(late)

    @torch.no_grad()
    def finish(self) -> None:
        """Set ``p.grad`` to the accumulated gradients and ``p.grad_var`` to their variances.

        A parameter without a gradient in any micro-batch gets neither.

        Raises:
            TooFewSamples: (a RuntimeError) there were fewer than two micro-batches, or there are
                gradients after the last :meth:`micro_step`. ``p.grad`` then holds the sums so far.
        """
        count, spreads = self._count, self._spreads
        left = sum(p.grad is not None for p in self._params)
        self._give_back()
        if left:
            raise TooFewSamples(
                f"{left} of {len(self._params)} parameters have a gradient that came after the "
                f"last of {count} micro_step() calls; call micro_step() after the backward pass "
                "of every micro-batch"
            )
        if count < 2:
            raise TooFewSamples(
                f"a variance needs at least 2 micro-batches and micro_step() was called {count} "
                "times; split the batch, and call micro_step() after each backward pass. The last "
                "step of an epoch may have fewer than the others: leave it out"
            )
        for param, spread in spreads.items():
            attach(param, _shaped(spread.mul_(count / (count - 1)), param))

    def _begin(self, gradients: Buffers) -> None:
        """Start the sums of parameters whose contributions so far were zero."""
        self._sums.update(gradients)
        if self._count > 1:
            past = (self._count - 1) / self._count
            spreads = {p: widened(g).square().mul_(past) for p, g in gradients.items()}
            self._spreads.update(spreads)

    def _fold(self, gradients: Buffers) -> None:
        """Add c to the sums S and (k c - S)^2 / (k (k-1)) to the spreads, for micro-batch k.

        The memory of the gradients is the scratch space, and at k = 2 becomes that of the spreads;
        gradients in half precision are converted to float32 first.
        """
        if not gradients:
            return
        k, sums = self._count, [self._sums[p] for p in gradients]
        torch._foreach_add_(sums, list(gradients.values()))
        scratch = [widened(gradient) for gradient in gradients.values()]
        torch._foreach_mul_(scratch, k)
        torch._foreach_sub_(scratch, [widened(total) for total in sums])
        if k == 2:
            torch._foreach_mul_(scratch, scratch)
            torch._foreach_mul_(scratch, 0.5)
            self._spreads.update(zip(gradients, scratch, strict=True))
        else:
            spreads = [self._spreads[p] for p in gradients]
            torch._foreach_addcmul_(spreads, scratch, scratch, value=1 / (k * (k - 1)))

    def _fold_zeros(self, params: list[Tensor]) -> None:
        """Add S^2 / (k (k-1)) to the spreads of parameters without a gradient, for which c = 0."""
        for param in params:
            total = widened(self._sums[param])
            if self._count == 2:
                self._spreads[param] = torch.zeros_like(total)
            weight = 1 / (self._count * (self._count - 1))
            self._spreads[param].addcmul_(total, total, value=weight)

    def _give_back(self) -> None:
        """Set ``p.grad`` to the accumulated gradients."""
        with torch.no_grad():
            for param, total in self._sums.items():
                total = _shaped(total, param)
                param.grad = total if param.grad is None else total.add_(param.grad)
        self._reset()

    def _reset(self) -> None:
        self._count = 0
        self._sums: Buffers = {}
        self._spreads: Buffers = {}


def _owned(param: Tensor) -> Tensor:
    """Return the gradient as reals in memory that is not shared with other tensors."""
    grad = cast(Tensor, param.grad)
    if grad.layout != torch.strided:
        raise SparseGradient(
            f"a parameter of shape {tuple(param.shape)} has a {grad.layout} gradient, whose "
            "variance micro_batch_variance cannot keep; make the layer's gradient dense "
            "(nn.Embedding(..., sparse=False))"
        )
    if grad.requires_grad or grad._is_view():  # after create_graph=True; view of a DDP bucket
        grad = grad.detach().clone()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def _shaped(reals: Tensor, param: Tensor) -> Tensor:
    return torch.view_as_complex(reals) if param.is_complex() else reals
