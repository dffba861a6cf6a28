"""Second derivatives in float64, from differences of first ones."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

STEP = 1e-5


class Oracle:
    """Products with the Hessian and the Gauss-Newton matrix of a mean loss over batches.

    Attention is computed by the plain kernel, whose dropout draws other masks than fused ones.

    Args:
        model: a model of its own; it is put into training mode.
        loss_fn: of outputs and targets.
        batches: each with ``content = (inputs, targets)`` and a seed.
    """

    def __init__(
        self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batches: list[Any]
    ) -> None:
        self.model, self.loss_fn, self.batches = model.train(), loss_fn, batches
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.start = torch.cat([p.detach().reshape(-1) for p in self.params])
        self.buffers = [b.clone() for b in model.buffers()]

    def outputs(self, theta: Tensor, batch: Any) -> Any:
        with torch.no_grad():
            pieces = theta.split([p.numel() for p in self.params])
            for param, piece in zip(self.params, pieces, strict=True):
                param.copy_(piece.view(param.shape))
            for buffer, value in zip(self.model.buffers(), self.buffers, strict=True):
                buffer.copy_(value)
        torch.manual_seed(batch.seed)
        with sdpa_kernel(SDPBackend.MATH):
            return self.model(batch.content[0])

    def gradient(self, theta: Tensor) -> Tensor:
        losses = [self.loss_fn(self.outputs(theta, b), b.content[1]) for b in self.batches[:1]]
        total = self.pulled_back(losses, [torch.ones_like(losses[0])])
        for batch in self.batches[1:]:
            loss = self.loss_fn(self.outputs(theta, batch), batch.content[1])
            total += self.pulled_back([loss], [torch.ones_like(loss)])
        return total / len(self.batches)

    def pulled_back(self, values: list[Tensor], weights: list[Tensor]) -> Tensor:
        """J^T times weights."""
        self.model.zero_grad()
        torch.autograd.backward(values, weights)
        return torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self.params
        ])  # fmt: skip

    def hessian_times(self, vector: Tensor) -> Tensor:
        step = STEP / vector.norm()
        ahead, behind = (self.gradient(self.start + s * step * vector) for s in (1, -1))
        return (ahead - behind) / (2 * step)

    def gauss_newton_times(self, vector: Tensor) -> Tensor:
        total, step = torch.zeros_like(vector), STEP / vector.norm()
        for batch in self.batches:
            ahead, behind = (
                flat(self.outputs(self.start + s * step * vector, batch)) for s in (1, -1)
            )
            outputs = self.outputs(self.start, batch)
            tangent = (ahead - behind) / (2 * step)
            bent = self.loss_hessian_times(outputs, tangent, batch)
            found = [*leaves(outputs)]
            weights = bent.split([real(t).numel() for t in found])
            values = [real(t) for t in found]
            weights = [w.view(v.shape) for w, v in zip(weights, values, strict=True)]
            total += self.pulled_back(values, weights)
        return total / len(self.batches)

    def loss_hessian_times(self, outputs: Any, tangent: Tensor, batch: Any) -> Tensor:
        center, step = flat(outputs), STEP / tangent.norm().clamp_min(1e-300)

        def gradient(values: Tensor) -> Tensor:
            leaf = values.clone().requires_grad_()
            pieces = iter(leaf.split([real(t).numel() for t in leaves(outputs)]))
            loss = self.loss_fn(rebuilt(outputs, pieces), batch.content[1])
            return torch.autograd.grad(loss, leaf)[0]

        if not tangent.any():
            return tangent
        ahead, behind = (gradient(center + s * step * tangent) for s in (1, -1))
        return (ahead - behind) / (2 * step)

    def dense(self, times: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([times(unit) for unit in torch.eye(len(self.start)).double()])


def flat(outputs: Any) -> Tensor:
    return torch.cat([real(t).detach().reshape(-1) for t in leaves(outputs)])


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def leaves(outputs: Any) -> Iterator[Tensor]:
    """Tensors that need a gradient."""
    if isinstance(outputs, Tensor):
        yield from [outputs] if outputs.requires_grad else []
    elif isinstance(outputs, dict):
        yield from leaves(list(outputs.values()))
    elif isinstance(outputs, tuple | list):
        for part in outputs:
            yield from leaves(part)
    elif hasattr(outputs, "__dict__"):
        yield from leaves(vars(outputs))


def rebuilt(outputs: Any, pieces: Iterator[Tensor]) -> Any:
    """The same containers with other tensors."""
    if isinstance(outputs, Tensor):
        if not outputs.requires_grad:
            return outputs
        piece = next(pieces).reshape(real(outputs).shape)
        return torch.view_as_complex(piece) if outputs.is_complex() else piece
    if isinstance(outputs, dict):
        return {key: rebuilt(part, pieces) for key, part in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*(rebuilt(part, pieces) for part in outputs))
    if isinstance(outputs, tuple | list):
        return type(outputs)(rebuilt(part, pieces) for part in outputs)
    if hasattr(outputs, "__dict__"):
        return type(outputs)(**rebuilt(vars(outputs), pieces))
    return outputs
