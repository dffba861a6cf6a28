"""The lab's training loop against the loop one would write by hand, evaluations aside."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from svag import optim
from svag.lab.session import Session
from svag.lab.studies import Study
from svag.lab.template import template
from svag.problems import Data, Problem


@dataclass(frozen=True)
class Overhead:
    """Milliseconds a step (medians), and the median of the ratios of neighbouring timings."""

    problem: str
    runner: float
    by_hand: float
    ratio: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"{self.problem}: {self.runner:.3f} ms a step, {self.by_hand:.3f} ms by hand; "
            f"overhead {100 * (self.ratio - 1):+.1f} % (median of {self.rounds} interleaved ratios)"
        )


def measure(problem: Problem, data: Data, *, steps: int, rounds: int) -> Overhead:
    """Time ``steps`` steps of M-SGD in the lab's loop and by hand, ``rounds`` times in turn."""
    study = Study(base=template(problem, data, steps=10**9), methods=("m-sgd",), seeds=1)
    session = Session(problem, data, replace(study.run("m-sgd"), lr=1e-3))

    def by_lab() -> None:
        session.advance(session.step + steps)

    by_hand = _by_hand(problem, data, steps)
    by_lab()
    by_hand()
    lab: list[float] = []
    hand: list[float] = []
    turns: list[tuple[Callable[[], None], list[float]]] = [(by_lab, lab), (by_hand, hand)]
    for _ in range(rounds):
        for timed, times in turns:
            times.append(_seconds(timed) / steps * 1e3)
        turns.reverse()
    ratio = statistics.median(a / b for a, b in zip(lab, hand, strict=True))
    return Overhead(problem.name, statistics.median(lab), statistics.median(hand), ratio, rounds)


def _by_hand(problem: Problem, data: Data, steps: int) -> Callable[[], None]:
    torch.manual_seed(1)
    model = problem.model()
    optimizer = optim.MSGD(model.parameters(), lr=1e-3)
    inputs, targets = data.train.inputs, data.train.targets

    def loop() -> None:
        model.train()
        for _ in range(steps):
            chosen = torch.randint(len(inputs), (problem.batch_size,))
            optimizer.zero_grad()
            loss = problem.loss(model(inputs[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()

    return loop


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
