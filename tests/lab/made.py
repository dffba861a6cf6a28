"""Made-up inputs of the lab's tests: a run, its record, a task that does what it is told to."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svag.lab.protocol import Study, plan, template
from svag.lab.records import Record, Run
from svag.problems import Data, Problem, Split

RUN = Run(
    problem="made-up",
    version="1",
    data="0123456789abcdef",
    method="m-sgd",
    anatomy="m",
    beta=0.9,
    beta2=None,
    lr=0.1,
    seed=0,
    steps=20,
    batch_size=8,
    eval_every=10,
    select="test",
)


def record(
    method: str = "m-sgd",
    *,
    seed: int = 1,
    lr: float = 0.1,
    status: str = "done",
    train_loss: float | None = 0.5,
    test_loss: float | None = 0.6,
    test_accuracy: float | None = 0.8,
    evals: Sequence[tuple[float, float, float]] = (),
    **settings: Any,
) -> Record:
    """A record as it is read back; ``evals`` as (train loss, test loss, test accuracy)."""
    names = ("train_loss", "test_loss", "test_accuracy")
    figures = dict(zip(names, (train_loss, test_loss, test_accuracy), strict=True))
    run = replace(RUN, method=method, seed=seed, lr=lr, **settings)
    lines = [
        {"kind": "eval", "step": 10 * n, **dict(zip(names, values, strict=True))}
        for n, values in enumerate(evals)
    ] or [{"kind": "eval", "step": run.steps, **figures}]
    end = {"kind": "end", "status": status, "step": run.steps, **figures, "wall_time": 1.0}
    return Record({"kind": "run", **asdict(run)}, lines, end)


def points(train: int = 43, test: int = 20, dtype: torch.dtype = torch.float32) -> Data:
    """Points around three centres, every one of them different."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(train + test) % 3
    noise = torch.randn(train + test, 3, generator=generator, dtype=dtype)
    inputs = torch.eye(3, dtype=dtype)[targets] + noise / 2
    return Data(Split(inputs[:train], targets[:train]), Split(inputs[train:], targets[train:]))


def classification(model: Callable[[], nn.Module], data: Data, **changes: Any) -> Problem:
    settings = {"batch_size": 8, "steps": 20, "quick_steps": 20, **changes}
    return Problem(
        name="points", description="", model=model, load=lambda data_dir: data, **settings
    )


def run_of(problem: Problem, data: Data, method: str = "m-sgd", **changes: Any) -> Run:
    """A run of the problem as the protocol plans it, but for the changes."""
    study = Study(methods=(method,), steps=problem.steps, seeds=1, lrs={method: 0.1})
    return replace(next(plan(template(problem, data, study), method, study))[0], **changes)


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
