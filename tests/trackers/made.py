"""A folder of runs of every status, and a tracker that keeps what it is sent in memory."""

from dataclasses import replace
from pathlib import Path

from report.studies import BASE

from svag.export import folders
from svag.lab.records import RecordWriter
from svag.lab.run import Run
from svag.trackers.runs import Tracked, tracked

RUN = replace(
    BASE, method="m-svag", anatomy="m", lr=0.1 + 0.2, seed=7, beta=0.9, steps=20, eval_examples=100
)
VALUES = (2.5, 1 / 3, 0.1 + 0.2)


def record(folder: Path, run: Run = RUN, status: str | None = "done", shift: float = 0.0) -> None:
    """Write a run of three evaluations; one without a status is interrupted."""
    with RecordWriter(folder, run) as recorder:
        for number, value in enumerate(VALUES):
            accuracy = 0.25 * (1 + number)
            recorder.eval(
                10 * number,
                train_loss=value + shift,
                test_loss=2 * value,
                test_accuracy=accuracy,
                wall_time=1.5 * number,
            )
        if status == "done":
            final = {"train_loss": 0.125, "test_loss": 0.75, "test_accuracy": 1 / 7}
            recorder.end("done", step=run.steps, **final, wall_time=12.5)
        elif status == "error":
            recorder.end("error", message="ValueError: no", wall_time=1.0)
        elif status is not None:
            recorder.end(status, step=20, train_loss=float("nan"), wall_time=4.0)


def every_status(folder: Path) -> None:
    """Write four runs, one of each status, with seeds 1 to 4."""
    for seed, status in enumerate(("done", "diverged", "error", None), 1):
        record(folder, replace(RUN, seed=seed), status)


def runs_of(folder: Path) -> list[Tracked]:
    found = folders.read(folder)
    return [tracked(one, found.parts.get(name)) for name, one in found.records.items()]


class Memory:
    """A tracker; it fails at the run of the name in ``fails_at``."""

    name = "memory"

    def __init__(self, *, replaces: bool = True, fails_at: str = "") -> None:
        self.replaces, self.fails_at = replaces, fails_at
        self.runs: dict[str, Tracked] = {}

    def sent(self, run: Tracked) -> str | None:
        return self.runs[run.id].digest if run.id in self.runs else None

    def send(self, run: Tracked) -> None:
        if run.id == self.fails_at:
            raise OSError("the line is dead")
        self.runs[run.id] = run
