"""Small studies: records written as a run writes them, with curves from a formula."""

import math
from collections.abc import Sequence
from pathlib import Path

from svag.anatomy import METHODS, PAPER_METHODS
from svag.lab.analysis import Analysis, analyse
from svag.lab.records import Recorder, Run, load

STEPS = 100
NAN = math.nan


def study(
    folder: Path,
    methods: Sequence[str] = PAPER_METHODS,
    *,
    seeds: int = 3,
    searched: bool = True,
    diverging: Sequence[str] = (),
    one_lost: Sequence[str] = (),
    problem: str = "ramp",
    select: str = "test",
    floor: float = 0.01,
) -> Analysis:
    """Write records and analyse them.

    Args:
        folder: where records go.
        methods: keys.
        seeds: replications.
        searched: whether step sizes were searched for, with one that diverged.
        diverging: methods of which every replication diverges.
        one_lost: methods of which the last replication diverges.
        problem: its name.
        select: what step sizes are chosen by.
        floor: roughly the final training loss.
    """
    for key in methods:
        lr = METHODS[key].lr
        for seed in range(1, seeds + 1):
            lost = key in diverging or (key in one_lost and seed == seeds)
            _record(folder, _run(problem, key, lr, seed, select), lost, 1.0, floor)
        if searched:
            for factor in (0.1, 1.0, 10.0, 100.0):
                merit = 1.0 - 0.05 * abs(math.log10(factor))
                run = _run(problem, key, lr * factor, 0, select)
                _record(folder, run, factor == 100.0, merit, floor)
    return analyse(load(folder))


def _run(problem: str, key: str, lr: float, seed: int, select: str) -> Run:
    return Run(
        problem=problem,
        version="1",
        data="0123456789abcdef",
        method=key,
        anatomy=str(METHODS[key].anatomy),
        beta=(*METHODS[key].betas, None)[0],
        beta2=(*METHODS[key].betas, None, None)[1],
        lr=lr,
        seed=seed,
        steps=STEPS,
        batch_size=32,
        eval_every=10,
        select=select,  # type: ignore[arg-type]
    )


def _record(folder: Path, run: Run, lost: bool, merit: float, floor: float) -> None:
    rate = 1 + 0.15 * list(METHODS).index(run.method)
    with Recorder(folder, run) as recorder:
        for step in range(0, 50 if lost else STEPS + 1, 10):
            figures = _figures(step, rate, run.seed, merit, floor)
            recorder.eval(step, **figures)
        if lost:
            recorder.end("diverged", step=40, train_loss=NAN, test_loss=NAN, test_accuracy=NAN)
        else:
            accuracy = figures["test_accuracy"]
            held_out = {"validation_accuracy": accuracy} if run.select == "validation" else {}
            recorder.end("done", step=STEPS, **figures, **held_out, wall_time=1.5)


def _figures(step: int, rate: float, seed: int, merit: float, floor: float) -> dict[str, float]:
    left = math.exp(-rate * 8 * step / STEPS)
    wobble = 1 + 0.1 * math.sin(7 * seed + step)
    loss = (2.3 * left + floor / rate) * wobble
    accuracy = merit * (0.97 + 0.01 * rate - 0.87 * left) - 0.002 * (wobble - 1) * 10
    return {"train_loss": loss, "test_loss": 1.5 * loss, "test_accuracy": min(accuracy, 1.0)}
