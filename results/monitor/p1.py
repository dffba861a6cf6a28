"""Compares the Monitor's figures with the variance inside a mini-batch: a table of docs/monitor.md.

    SVAG_DATA=DIR python results/monitor/p1.py

P1's network on Fashion-MNIST, batches of 100, after 250 steps; figures are means over the last 50.
"""

import statistics
from contextlib import nullcontext

import torch

import svag
from svag import problems
from svag.lab.batches import Batches
from svag.problems.seeding import seed_everything

STEPS, SHOWN = 250, 50
OPTIMIZERS = {
    "M-SVAG, `lr=0.1`": lambda params: svag.MSVAG(params, lr=0.1),
    "M-SVAG, `lr=0.003`": lambda params: svag.MSVAG(params, lr=0.003),
    "AdamW, `lr=1e-3`": lambda params: torch.optim.AdamW(params, lr=1e-3),
}


def row(make, problem, data) -> tuple[float, float, float]:
    """Return variance and grad_sq by the Monitor, and the variance inside the mini-batch."""
    seed_everything(0)
    model = problem.model()
    optimizer, records, within = make(model.parameters()), [], []
    batches = Batches(data.train, 100, seed=0, augment=problem.augment, prepare=problem.prepare)
    options = {"every": 1, "budget": 1.0, "batch_size": 100, "by_layer": False}
    for step in range(STEPS):
        if step == STEPS - SHOWN:
            monitor = svag.Monitor(optimizer, to=records.append, **options)
        x, y = next(batches)
        optimizer.zero_grad()
        with svag.within_batch_variance(model) if step >= STEPS - SHOWN else nullcontext():
            problem.loss(model(x), y).backward()
        if step >= STEPS - SHOWN:
            within.append(sum(float(p.grad_var.sum()) for p in model.parameters()))
        optimizer.step()
    monitor.close()
    last = records[-SHOWN:]
    return (*(statistics.fmean(r[k] for r in last) for k in ("variance", "grad_sq")),
            statistics.fmean(within))  # fmt: skip


def main() -> None:
    """Print the table."""
    problem = problems.get("fmnist-2c2d")
    data = problems.load(problem)
    print("| | `variance` | `grad_sq` | `variance` inside a mini-batch |\n|---|---|---|---|")
    for name, make in OPTIMIZERS.items():
        figures = " | ".join(f"{value:.2g}" for value in row(make, problem, data))
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
