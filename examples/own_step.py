"""A training step of one's own: two batches accumulated, and the gradient clipped.

Run ``svag compare examples/own_step.py:own_step``. The step does all that a loop would do: it draws
batches, calls ``zero_grad``, ``backward`` and ``step``, and returns the loss.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from svag.problems import Problem, cross_entropy, get
from svag.problems.steps import Batches

ACCUMULATED = 2


def step(model: nn.Module, batches: Batches, optimizers: Sequence[Optimizer]) -> Tensor:
    (optimizer,) = optimizers
    optimizer.zero_grad()
    total = torch.zeros(())
    for _ in range(ACCUMULATED):
        inputs, targets = next(batches)
        loss = cross_entropy(model(inputs), targets) / ACCUMULATED
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    return total


def own_step() -> Problem:
    return replace(
        get("digits"),
        name="digits-clipped",
        description="handwritten digits, two batches a step, clipped gradients",
        step=step,
        batch_size=16,
        quick_steps=200,
        select="validation",
    )
