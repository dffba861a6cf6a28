"""One small training, by hand and by each client: the same batches, the same options.

``by_hand`` is what a client is held against. A client returns the parameters at the end, as one
vector. Batches come in order, without shuffling, epoch after epoch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import svag

EXAMPLES, BATCH = 32, 4


@dataclass(frozen=True)
class Task:
    """What is trained, and how.

    Attributes:
        method: name of a class of svag.
        steps: optimizer steps.
        clip: norm that gradients are clipped to; None for none.
        bf16: whether the forward pass is in autocast.
        accumulate: mini-batches a step.
        within: whether the variance is within-batch.
    """

    method: str = "MSVAG"
    steps: int = 6
    clip: float | None = None
    bf16: bool = False
    accumulate: int = 1
    within: bool = False

    def optimizer(self, params: Any) -> torch.optim.Optimizer:
        variance = {"variance": "within-batch"} if self.within else {}
        return getattr(svag, self.method)(params, lr=0.05, **variance)


class Network(nn.Module):
    """Answers with a loss as transformers' models do, if it is given targets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        out = self.layers(x)
        return out if labels is None else {"loss": loss_of(out, labels), "logits": out}


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.float() - targets).square().mean()


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 4, generator=generator)
    return x, x[:, :1] + 0.5 * torch.randn(EXAMPLES, 1, generator=generator)


def batch(number: int) -> tuple[Tensor, Tensor]:
    x, y = examples()
    start = BATCH * number % EXAMPLES
    return x[start : start + BATCH], y[start : start + BATCH]


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().reshape(-1) for p in model.parameters()])


def following(task: Task, model: nn.Module) -> AbstractContextManager[object]:
    return svag.within_batch_variance(model) if task.within else nullcontext()


def by_hand(task: Task, *, rounded: bool = False) -> Tensor:
    """Train; ``rounded`` gives the model inputs in bfloat16, as Fabric does in autocast."""
    model = Network()
    optimizer = task.optimizer(model.parameters())
    number = 0
    for _ in range(task.steps):
        optimizer.zero_grad()
        for _ in range(task.accumulate):
            x, y = batch(number)
            number += 1
            x = x.bfloat16() if rounded else x
            with following(task, model):
                with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                    out = model(x)
                (loss_of(out, y) / task.accumulate).backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()
    return vector(model)


Client = Callable[[Task, Path], Tensor]
