"""Executors: the same records in this process and in others, whatever happens to those."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from lab.made import run_of, wait_until, write_task
from svag import problems
from svag.lab import pool
from svag.lab.pool import Here, Place, Pool
from svag.lab.records import Record, Recorder, Run, find


class Task:
    """The task of a folder, its runs, and what its workers left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = write_task(folder)
        self.problem = problems.get(self.spec)
        self.data = problems.load(self.problem)
        self.pools: list[Pool] = []

    def runs(self, *seeds: int, method: str = "m-sgd", **changes):
        run = run_of(self.problem, self.data, method, **changes)
        return [replace(run, seed=seed) for seed in seeds]

    def order(self, name: str, text: str = "") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def pool(self, workers: int) -> Pool:
        self.pools.append(Pool(Place(self.spec, None, self.folder / "out"), workers))
        return self.pools[-1]

    def here(self, directory: str = "out") -> Here:
        return Here(self.problem, self.data, self.folder / directory)

    def record(self, run: Run, directory: str = "out") -> Record | None:
        return find(self.folder / directory, run)

    def statuses(self, runs) -> list[str]:
        return [self.record(run).status for run in runs]

    def trained(self) -> list[str]:
        """Names of files, one for each process that has trained."""
        return sorted(path.name for path in self.folder.glob("training-*"))

    def close(self) -> None:
        for used in self.pools:
            used.close()


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTED_BY", str(os.getpid()))
    made = Task(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """A task and a pool of one worker, which several tests use in turn."""
    made = Task(tmp_path_factory.mktemp("crew"))
    yield made, made.pool(1)
    made.close()


def carry_out(executor, runs):
    for run in runs:
        executor.submit(run)
    return list(executor.events())


def ended(events):
    return [event.run.seed for event in events if event.ended]


def without_time(record):
    return record.evals, {**record.end, "wall_time": None}


def workers():
    return set(multiprocessing.active_children())


def test_the_same_records_here_and_in_a_pool(task):
    before = workers()
    runs = task.runs(1, 2) + task.runs(1, method="adam", lr=0.01) + task.runs(1, lr=1e10)
    pooled = task.pool(2)
    events = [carry_out(executor, runs) for executor in (task.here("here"), pooled)]
    pooled.close()
    for run in runs:
        first, second = (task.record(run, name) for name in ("here", "out"))
        assert without_time(first) == without_time(second)
        assert first.run == second.run
        assert first.run["source"] == task.spec
    assert task.statuses(runs) == ["done", "done", "done", "diverged"]
    for seen in events:
        assert sorted(e.run.id for e in seen if e.ended) == sorted(run.id for run in runs)
    steps = [event.step for event in events[1] if event.run == runs[0] and not event.ended]
    assert steps == list(range(21))
    assert len(task.trained()) <= 3  # this process and two workers, which served four runs
    assert workers() == before


def test_a_model_that_raises_is_an_error_of_its_run(crew):
    task, pooled = crew
    runs = task.runs(11, 12)
    message = "no [/bracket] [red]is markup\nin a message"
    order = task.order("raise", message)
    assert ended(carry_out(pooled, runs)) == [11, 12]
    assert task.statuses(runs) == ["error", "error"]
    for run in runs:
        assert task.record(run).end["message"] == f"RuntimeError: {message}"
    order.unlink()
    carry_out(pooled, runs)
    assert task.statuses(runs) == ["done", "done"]
    assert len(task.trained()) == 1  # the worker lived through all this


def test_a_killed_worker_takes_one_run_with_it(crew):
    task, pooled = crew
    runs = task.runs(1, 2, 3)
    order = task.order("kill-2")
    assert ended(carry_out(pooled, runs)) == [1, 2, 3]
    assert task.statuses(runs) == ["done", "error", "done"]
    record = task.record(runs[1])
    assert record.end["message"] == f"the worker process died (exit code {-signal.SIGKILL})"
    order.unlink()
    carry_out(pooled, runs[1:2])
    assert task.statuses(runs) == ["done"] * 3


def test_a_worker_that_dies_idle_is_replaced(crew):
    task, pooled = crew
    carry_out(pooled, task.runs(21))
    for idle in workers():
        os.kill(idle.pid, signal.SIGKILL)
        idle.join()
    assert ended(carry_out(pooled, task.runs(22))) == [22]
    assert task.statuses(task.runs(21, 22)) == ["done", "done"]


def test_a_worker_that_dies_before_it_begins_is_an_error(task):
    """Also where an earlier attempt has left its end in the record."""
    runs = task.runs(1, 2)
    with Recorder(task.folder / "out", runs[1]) as recorder:
        recorder.end("interrupted")
    task.order("dead-on-arrival")
    assert sorted(ended(carry_out(task.pool(2), runs))) == [1, 2]
    assert task.statuses(runs) == ["error", "error"]
    for run in runs:
        assert task.record(run).end["message"].endswith("died (exit code 3)")


def test_closing_during_a_run_interrupts_it(task):
    before = workers()
    runs = task.runs(1, 2, 3)
    hold = task.order("hold")
    pooled = task.pool(2)
    for run in runs:
        pooled.submit(run)
    wait_until(lambda: len(task.trained()) == 2, "both workers train")
    pooled.close()
    assert workers() == before
    assert task.statuses(runs[:2]) == ["interrupted", "interrupted"]
    for run in runs[:2]:
        assert task.record(run).end["status"] == "interrupted"
        assert [line["step"] for line in task.record(run).evals] == [0]
    assert task.record(runs[2]) is None
    hold.unlink()
    assert ended(carry_out(task.here(), runs)) == [1, 2, 3]
    assert task.statuses(runs) == ["done"] * 3


def test_closing_a_pool_without_workers(task):
    task.pool(2).close()


def test_a_run_whose_pool_is_gone_is_interrupted(task):
    """The pipe breaks before the worker learns of its parent's end: no error of the run."""
    (run,) = task.runs(1)
    hold = task.order("hold")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    place = Place(task.spec, None, task.folder / "out")
    process = context.Process(target=pool._work, args=(theirs, place, 1), daemon=True)
    process.start()
    theirs.close()
    ours.send(run)
    wait_until(task.trained, "the worker trains")
    ours.close()
    hold.unlink()
    process.join()
    assert task.statuses([run]) == ["interrupted"]
    assert process.exitcode == 0


def test_ctrl_c_here(task, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    runs = task.runs(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(type(task.problem.model()), "obey", interrupted)
        executor = task.here()
        with pytest.raises(KeyboardInterrupt):
            carry_out(executor, runs)
        executor.close()
    assert task.statuses(runs[:1]) == ["interrupted"]
    assert task.record(runs[1]) is None
    assert ended(carry_out(task.here(), runs)) == [1, 2]
    assert task.statuses(runs) == ["done", "done"]
