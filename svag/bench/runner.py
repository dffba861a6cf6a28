"""Times the lab's training loop, without evaluations, against a hand-written one."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from svag import optim
from svag.errors import InvalidOption
from svag.lab.base_run import base_run
from svag.lab.session import Session, captures
from svag.lab.studies import Study
from svag.problems import Data, Problem


@dataclass(frozen=True)
class Overhead:
    """Median milliseconds per step, and the median of the ratios of neighbouring timings."""

    problem: str
    device: str
    runner: float
    by_hand: float
    ratio: float
    rounds: int

    def __str__(self) -> str:
        return (
            f"{self.problem} on {self.device}: {1e3 / self.runner:.4g} steps/s "
            f"({self.runner:.3f} ms a step), by hand {1e3 / self.by_hand:.4g} "
            f"({self.by_hand:.3f} ms); overhead {100 * (self.ratio - 1):+.1f} % "
            f"(median of {self.rounds} interleaved ratios)"
        )


def measure(
    problem: Problem, data: Data, *, steps: int, rounds: int, device: str = "cpu"
) -> Overhead:
    """Time ``steps`` steps of M-SGD in the lab's loop and by hand, ``rounds`` times in turn.

    Both loops augment and prepare batches of data that are on the device.

    Args:
        problem: the problem.
        data: its data.
        steps: steps of each timing.
        rounds: number of pairs of timings.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Raises:
        InvalidOption: the problem carries state or has its own step, so that there is no
            hand-written loop for it, or it diverges.
    """
    if problem.carry_state or problem.step or problem.optimizers:
        raise InvalidOption(
            f"{problem.name!r} carries state or takes steps of its own; time a problem that takes "
            "the usual step"
        )
    base = base_run(problem, data, steps=10**9, device=device)
    run = replace(Study(base=base, methods=("m-sgd",), seeds=1).run("m-sgd"), lr=1e-3)
    on_gpu = device == "cuda"
    session = Session(problem, data, run, captured=on_gpu and captures(problem, data, run))

    def by_lab() -> None:
        if not session.advance(session.step + steps):
            raise InvalidOption(f"{problem.name!r} diverged after {session.step} steps; time fewer")

    by_hand = _by_hand(problem, data.to(torch.device(device)), steps)
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
    return Overhead(
        problem.name, device, statistics.median(lab), statistics.median(hand), ratio, rounds
    )


def _by_hand(problem: Problem, data: Data, steps: int) -> Callable[[], None]:
    torch.manual_seed(1)
    inputs, targets = data.train.inputs, data.train.targets
    device = data.train.device
    model = problem.model().to(device)
    if problem.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator(device).manual_seed(1)
    optimizer = optim.MSGD(model.parameters(), lr=1e-3, weight_decay=problem.weight_decay)

    def loop() -> None:
        model.train()
        for _ in range(steps):
            chosen = torch.randint(len(inputs), (problem.batch_size,))
            batch = inputs[chosen]
            batch = problem.augment(batch, generator) if problem.augment else batch
            batch = problem.prepare(batch) if problem.prepare else batch
            optimizer.zero_grad()
            loss = problem.loss(model(batch), targets[chosen])
            loss.backward()
            optimizer.step()

    return loop


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
