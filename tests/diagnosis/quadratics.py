"""Quadratic problems as a user's model, for which svag.theory knows the answers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from svag.diagnosis.objective import Objective
from svag.diagnosis.sampling import Sampling
from svag.theory import StochasticQuadratic

BATCH = 8


class Quadratic(nn.Module):
    """Maps examples x to 1/2 (theta - x)^T Q (theta - x)."""

    def __init__(self, problem: StochasticQuadratic, theta: Any = 0.0) -> None:
        super().__init__()
        start = np.broadcast_to(theta, problem.x_star.shape).copy()
        self.theta = nn.Parameter(torch.tensor(start))
        self.register_buffer("Q", torch.tensor(problem.Q.copy()))

    def forward(self, x: Tensor) -> Tensor:
        away = self.theta - x
        return 0.5 * (away @ self.Q * away).sum(-1)


def drawn(problem: StochasticQuadratic, seed: int) -> Iterator[tuple[Tensor, None]]:
    """Yield batches whose gradients are g ~ N(Q (theta - x*), nu^2 Q Q)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor(problem.x_star.copy())
    while True:
        noise = torch.randn(BATCH, len(centre), generator=generator, dtype=torch.float64)
        yield centre + problem.noise * BATCH**0.5 * noise, None


def mean(outputs: Tensor, targets: None) -> Tensor:
    return outputs.mean()


def sampled(problem: StochasticQuadratic, seed: int, theta: Any = 0.0) -> tuple[Any, Any]:
    """Return the objective of a problem, and its batches."""
    objective = Objective(Quadratic(problem, theta), mean)
    return objective, Sampling(objective, drawn(problem, seed))
