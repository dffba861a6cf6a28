"""Compares the loss curves of training with moving averages in bfloat16 and in float32."""

from dataclasses import dataclass, replace

import torch

from svag.anatomy import METHODS
from svag.entrants import entrant
from svag.errors import InvalidOption
from svag.lab.base_run import base_run
from svag.lab.run import Run
from svag.lab.session import Session
from svag.lab.studies import Study
from svag.problems import Data, Problem


@dataclass(frozen=True)
class Difference:
    """The difference of two loss curves, and that between two seeds, for scale.

    Attributes:
        problem: its name.
        method: the method's name.
        lr: step size.
        steps: steps of the runs.
        final: final training losses with averages in float32 and in bfloat16.
        rounding: root mean square, over the evaluations, of the difference in log training loss
            between bfloat16 and float32.
        seeds: the same between float32 runs with two seeds.
    """

    problem: str
    method: str
    lr: float
    steps: int
    final: tuple[float, float]
    rounding: float
    seeds: float

    def __str__(self) -> str:
        full, half = self.final
        return (
            f"{self.problem}, {self.method} at {self.lr:g}, {self.steps} steps: training loss "
            f"{full:.4g} with float32 averages, {half:.4g} with bfloat16; curves apart by "
            f"{100 * self.rounding:.1f} % (two seeds: {100 * self.seeds:.1f} %)"
        )


def measure(problem: Problem, data: Data, *, key: str, lr: float, steps: int) -> Difference:
    """Train with averages in float32, in bfloat16, and in float32 with another seed.

    Args:
        problem: the problem.
        data: its data.
        key: key of the method.
        lr: step size.
        steps: steps of each run.

    Raises:
        InvalidOption: the method keeps no averages.
    """
    anatomy = entrant(key).anatomy
    if anatomy is None or not anatomy.buffers:
        keep = ", ".join(name for name, row in METHODS.items() if row.anatomy.buffers)
        raise InvalidOption(f"method {key!r} keeps no averages to round; those that do: {keep}")
    run = Study(base=base_run(problem, data, steps=steps), methods=(key,), seeds=2).run(key)
    first, second = (replace(run, lr=lr, seed=seed) for seed in (1, 2))
    full, half = _losses(problem, data, first), _losses(problem, data, first, torch.bfloat16)
    other = _losses(problem, data, second)
    return Difference(
        problem=problem.name,
        method=entrant(key).name,
        lr=lr,
        steps=steps,
        final=(full[-1].item(), half[-1].item()),
        rounding=_apart(full, half),
        seeds=_apart(full, other),
    )


def _losses(
    problem: Problem, data: Data, run: Run, state_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the training loss at every evaluation; NaN after a run has diverged."""
    session = Session(problem, data, run)
    for optimizer in session.optimizers:
        for group in optimizer.param_groups:
            group["state_dtype"] = state_dtype
    losses = [session.evaluate()["train_loss"] for _ in session]
    missing = run.steps // run.eval_every + 1 - len(losses)
    return torch.tensor(losses + [float("nan")] * missing, dtype=torch.float64)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the root mean square of the difference in logarithm, without the first values."""
    return float((one[1:].log() - other[1:].log()).square().mean().sqrt().item())
