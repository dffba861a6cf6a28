"""Brute force: one forward and one backward pass for each example, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def one_by_one(
    model: nn.Module, x: Tensor, weights: Tensor, loss: Loss, dim: int = 0
) -> dict[str, Tensor]:
    """Return each example's contribution to each parameter's gradient, ``(B, *shape)``.

    The loss of the batch is ``sum_k loss(output_k, weights_k)``.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for k in range(x.shape[dim]):
        model.zero_grad()
        loss(model(x.narrow(dim, k, 1)), weights.narrow(dim, k, 1)).backward()
        for name, p in model.named_parameters():
            rows[name].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    model.zero_grad()
    return {name: torch.stack(row) for name, row in rows.items()}


def variance_of_sum(contributions: Tensor) -> Tensor:
    """Return B times the sample variance: the variance of the sum of B independent terms."""
    return len(contributions) * contributions.var(0)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return the largest error over the largest entry."""
    scale = float(reference.abs().max())
    return float((value - reference).abs().max()) / (scale or 1.0)
