"""Made-up inputs of the lab's tests: data, runs of a problem, a task that obeys."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svag.lab.base_run import base_run
from svag.lab.records import Record, find
from svag.lab.run import Run
from svag.lab.session import Session
from svag.lab.studies import Study
from svag.lab.train import train
from svag.problems import Data, Problem, Split


def points(train: int = 43, test: int = 20, dtype: torch.dtype = torch.float32) -> Data:
    """Points around three centres, every one of them different."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(train + test) % 3
    noise = torch.randn(train + test, 3, generator=generator, dtype=dtype)
    inputs = torch.eye(3, dtype=dtype)[targets] + noise / 2
    return Data(Split(inputs[:train], targets[:train]), Split(inputs[train:], targets[train:]))


def classification(model: Callable[[], nn.Module], data: Data, **changes: Any) -> Problem:
    settings = {"batch_size": 8, "steps": 20, "quick_steps": 20, "select": "test", **changes}
    return Problem(
        name="points", description="", model=model, load=lambda data_dir: data, **settings
    )


def run_of(problem: Problem, data: Data, method: str = "m-sgd", **changes: Any) -> Run:
    """A run of the problem as the protocol plans it, but for the changes."""
    base = base_run(problem, data, steps=problem.steps)
    run = Study(base=base, methods=(method,), seeds=1).run(method)
    return replace(run, **{"lr": 0.1, "seed": 1, **changes})


def trained(directory: Path, problem: Problem, data: Data, **changes: Any) -> Record:
    """Train once; return the record."""
    run = run_of(problem, data, **changes)
    train(problem, data, run, directory)
    record = find(directory, run)
    assert record is not None
    return record


def after(problem: Problem, data: Data, **changes: Any) -> list[torch.Tensor]:
    """Train in a session of its own; return the model's parameters at the end."""
    session = Session(problem, data, run_of(problem, data, **changes))
    for _ in session:
        session.evaluate()
    assert not session.diverged
    return [p.detach().clone() for p in session.model.parameters()]


def equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


TASK = '''
"""A task that does what the files beside it say."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from svag.problems import Data, Problem, Split

HERE = Path(__file__).parent


def task():
    if (HERE / "dead-on-arrival").exists() and os.getpid() != int(os.environ["TESTED_BY"]):
        os._exit(3)
    return Problem(name="task", description="three clouds of points", model=Model, load=load,
                   batch_size=8, steps=20, quick_steps=20)


def load(data_dir):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    inputs = torch.eye(3)[targets] + torch.randn(60, 3, generator=generator) / 2
    return Data(Split(inputs[:40], targets[:40]), Split(inputs[40:], targets[40:]))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seed = torch.initial_seed()

    def forward(self, inputs):
        if self.training:
            self.obey()
        return self.linear(inputs)

    def obey(self):
        if self.seed == 2147483647:  # svag.lab.timing.SEED: a step is timed, no run is made
            return
        (HERE / f"training-{os.getpid()}").touch()
        while (HERE / "hold").exists():
            time.sleep(0.01)
        if (HERE / f"kill-{self.seed}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (HERE / "interrupt").exists():
            raise KeyboardInterrupt
        if (HERE / "raise").exists():
            raise RuntimeError((HERE / "raise").read_text())
'''


def write_task(folder: Path) -> str:
    """Write the task into a folder; return what the command line calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.py").write_text(TASK)
    return f"{folder / 'task.py'}:task"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for what is certain to come; the limit only ends a test that would never end."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"still not: {what}"
        time.sleep(0.02)
