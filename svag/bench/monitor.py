"""Times training steps with a monitor against steps without one."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from svag import optim
from svag.diagnosis.monitoring.monitor import Monitor
from svag.problems import models

BATCH: Final = 100
OVERHEAD_AT_MOST: Final = 0.03
"""Target: most of the time of steps without a monitor that one may add."""


@dataclass(frozen=True)
class Overhead:
    """Median milliseconds per step, and the median of the ratios of neighbouring timings.

    Attributes:
        monitored: with the monitor.
        plain: without it.
        ratio: of the former to the latter.
        readings: how often the monitor has read the averages in the monitored steps.
        steps: number of monitored steps that were timed.
        own: share of the monitored steps' time that the monitor took by its own clock.
        rounds: number of pairs of timings.
    """

    monitored: float
    plain: float
    ratio: float
    readings: int
    steps: int
    own: float
    rounds: int

    def __str__(self) -> str:
        met = "met" if self.ratio - 1 <= OVERHEAD_AT_MOST else "missed"
        return (
            f"2c2d, batch {BATCH}, M-SVAG: {self.monitored:.3f} ms a step with a monitor, "
            f"{self.plain:.3f} ms without; overhead {100 * (self.ratio - 1):+.1f} % (median of "
            f"{self.rounds} interleaved ratios; target <= {100 * OVERHEAD_AT_MOST:g} %: {met}). "
            f"{self.readings} readings in {self.steps} steps took {100 * self.own:.1f} % by the "
            "monitor's own clock"
        )


def measure(*, steps: int, rounds: int, every: int = 1, budget: float = 0.02) -> Overhead:
    """Time ``steps`` training steps with and without a monitor, ``rounds`` times in turn.

    The model is P1's, its data are random. While plain steps are timed, the monitor's pause goes
    on, so each timing of monitored steps begins with a reading: this counts against the monitor.

    Args:
        steps: steps of each timing.
        rounds: number of pairs of timings.
        every: least number of steps between two readings; at 1 the budget alone bounds them.
        budget: of the monitor.
    """
    torch.manual_seed(0)
    model = models.conv_2c2d()
    plain, monitored = Loop(deepcopy(model), steps), Loop(model, steps)
    with Monitor(
        monitored.optimizer, every, budget, model=model, batch_size=BATCH, to=_nowhere
    ) as monitor:
        times: dict[Loop, list[float]] = {plain: [], monitored: []}
        turns = [plain, monitored]
        for loop in turns:
            loop.run()  # compiles, and creates the state
        spent, readings = monitor.spent, monitor.readings
        for _ in range(rounds):
            for loop in turns:
                times[loop].append(_seconds(loop.run))
            turns.reverse()
        spent, readings = monitor.spent - spent, monitor.readings - readings
    pairs = zip(times[monitored], times[plain], strict=True)
    return Overhead(
        monitored=1e3 * statistics.median(times[monitored]) / steps,
        plain=1e3 * statistics.median(times[plain]) / steps,
        ratio=statistics.median(a / b for a, b in pairs),
        readings=readings,
        steps=steps * rounds,
        own=spent / sum(times[monitored]),
        rounds=rounds,
    )


class Loop:
    """Training steps of M-SVAG on one mini-batch."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._model, self._steps = model, steps
        self._inputs, self._targets = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
        self.optimizer = optim.MSVAG(model.parameters(), lr=1e-3)

    def run(self) -> None:
        """Take the steps."""
        for _ in range(self._steps):
            self.optimizer.zero_grad()
            functional.cross_entropy(self._model(self._inputs), self._targets).backward()
            self.optimizer.step()


def _nowhere(record: object) -> None:
    """Take a record."""


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
