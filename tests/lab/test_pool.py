"""Executors: the same records in this process and in others, whatever happens to those."""

import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from lab.made import run_of, wait_until, write_task
from svag import problems
from svag.errors import RecordError
from svag.lab.executors.contract import WorkPlace
from svag.lab.executors.local import InProcess, Pool
from svag.lab.records import Record, find, path_of
from svag.lab.run import Run

FULL_DISK = """
import multiprocessing, resource

if (HERE / "full").exists() and multiprocessing.parent_process():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1300, 1300))
"""


class Task:
    """The task of a folder, its runs, and what its workers left behind."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder = folder
        self.spec = write_task(folder)
        with (folder / "task.py").open("a") as file:
            file.write(more)
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

    def hold(self) -> Path:
        """Let models in training wait until the file is gone."""
        for path in self.folder.glob("training-*"):
            path.unlink()
        return self.order("hold")

    def pool(self, workers: int) -> Pool:
        self.pools.append(Pool(WorkPlace(self.spec, None, self.folder / "out"), workers))
        return self.pools[-1]

    def here(self, directory: str = "out") -> InProcess:
        return InProcess(
            self.problem, self.data, WorkPlace(self.spec, None, self.folder / directory)
        )

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
def task(tmp_path):
    made = Task(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """A task and a pool of two, which most tests use in turn: a worker takes seconds to start."""
    made = Task(tmp_path_factory.mktemp("crew"))
    yield made, made.pool(2)
    made.close()


def carry_out(executor, runs):
    for run in runs:
        executor.submit(run)
    return list(executor.events())


def ended(events):
    return sorted(event.run.seed for event in events if event.ended)


def without_time(record):
    return {**record.run, "started": None}, record.findings


def workers():
    return set(multiprocessing.active_children())


def test_the_same_records_here_and_in_a_pool(crew):
    task, pooled = crew
    runs = task.runs(31, 32) + task.runs(31, method="adam", lr=0.01) + task.runs(31, lr=1e39)
    events = [carry_out(executor, runs) for executor in (task.here("here"), pooled)]
    for run in runs:
        first, second = (task.record(run, name) for name in ("here", "out"))
        assert without_time(first) == without_time(second)
        assert first.run["source"] == task.spec
    assert task.statuses(runs) == ["done", "done", "done", "diverged"]
    for seen in events:
        assert sorted(e.run.id for e in seen if e.ended) == sorted(run.id for run in runs)
    steps = [event.step for event in events[1] if event.run == runs[0] and not event.ended]
    assert steps == list(range(21))
    assert len(task.trained()) <= 3  # this process and two workers, which served four runs


def test_a_model_that_raises_is_an_error_of_its_run(crew):
    task, pooled = crew
    runs = task.runs(11, 12, 13)
    message = "no [/bracket] [red]is markup\nin a message"
    order = task.order("raise", message)
    assert ended(carry_out(pooled, runs)) == [11, 12, 13]
    assert task.statuses(runs) == ["error"] * 3
    for run in runs:
        said = task.record(run).end["message"]
        assert said.startswith("RuntimeError: no [/bracket] [red]is markup in a message (")
        assert re.search(r"task\.py:\d+\)$", said)
    order.unlink()
    before = workers()
    carry_out(pooled, runs)
    assert task.statuses(runs) == ["done"] * 3
    assert workers() == before  # they lived through all this


def test_a_worker_that_dies_idle_is_replaced(crew):
    task, pooled = crew
    runs = task.runs(21, 22, 23, 24)
    carry_out(pooled, runs[:2])
    idle = workers().pop()
    os.kill(idle.pid, signal.SIGKILL)
    idle.join()
    assert ended(carry_out(pooled, runs[2:])) == [23, 24]
    assert task.statuses(runs) == ["done"] * 4
    assert len(workers()) == 2


def test_a_killed_worker_takes_one_run_with_it(crew):
    task, pooled = crew
    runs = task.runs(1, 2, 3, 4)
    order = task.order("kill-2")
    assert ended(carry_out(pooled, runs)) == [1, 2, 3, 4]
    assert task.statuses(runs) == ["done", "error", "done", "done"]
    record = task.record(runs[1])
    written = path_of(task.folder / "out", runs[1]).read_text()
    assert written.count("the worker process died") == 2
    assert written.count('"kind": "run"') == 4  # each attempt's own, and that of the note
    assert record.end["message"] == f"the worker process died (exit code {-signal.SIGKILL})"
    order.unlink()
    carry_out(pooled, runs[1:2])
    assert task.statuses(runs) == ["done"] * 4


def test_a_run_whose_pool_is_gone_is_interrupted(crew):
    """The pipe breaks before the worker learns of its parent's end: no error of the run."""
    task, pooled = crew
    (run,) = task.runs(51)
    hold = task.hold()
    pooled.submit(run)
    wait_until(task.trained, "the worker trains")
    connection, (process, _) = pooled._busy.popitem()
    connection.close()
    hold.unlink()
    process.join()
    assert task.statuses([run]) == ["interrupted"]
    assert process.exitcode == 0


def test_closing_during_a_run_interrupts_it(crew):
    task, pooled = crew
    (run,) = task.runs(41)
    hold = task.hold()
    pooled.submit(run)
    wait_until(task.trained, "the worker trains")
    pooled.close()
    assert workers() == set()
    record = task.record(run)
    assert record.end["status"] == "interrupted"
    assert [line["step"] for line in record.evals] == [0]
    hold.unlink()
    assert ended(carry_out(task.here(), [run])) == [41]
    assert task.statuses([run]) == ["done"]


def test_a_full_disk_ends_a_pool_with_an_error_of_its_records(tmp_path):
    """A limit on file sizes stands in for the disk: each run reaches it amid its lines."""
    task = Task(tmp_path, FULL_DISK)
    full = task.order("full")
    runs = task.runs(1, 2, 3, 4)
    pool = task.pool(2)
    with pytest.raises(RecordError, match=r"^cannot write .*\.jsonl: ") as caught:
        carry_out(pool, runs)
    assert any(run.id in str(caught.value) for run in runs)
    pool.close()
    assert workers() == set()
    tried = [task.record(run) for run in runs]
    assert {record.status for record in tried if record is not None} == {"interrupted"}
    full.unlink()
    assert ended(carry_out(task.pool(2), runs)) == [1, 2, 3, 4]
    assert task.statuses(runs) == ["done"] * 4
    task.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_was_full_before_the_first_line(task):
    runs = task.runs(1, 2)
    for run in runs:
        path = path_of(task.folder / "out", run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/dev/full")
    for executor in (task.here(), task.pool(2)):
        with pytest.raises(RecordError, match=r"^cannot write .*: No space left on device"):
            carry_out(executor, runs)


def test_closing_a_pool_without_workers(task):
    task.pool(2).close()


def test_ctrl_c_here(task):
    runs = task.runs(1, 2)
    order = task.order("interrupt")
    executor = task.here()
    with pytest.raises(KeyboardInterrupt):
        carry_out(executor, runs)
    executor.close()
    assert task.statuses(runs[:1]) == ["interrupted"]
    assert task.record(runs[1]) is None
    order.unlink()
    assert ended(carry_out(task.here(), runs)) == [1, 2]
    assert task.statuses(runs) == ["done", "done"]


def test_data_that_differ_in_a_worker_are_an_error_of_its_runs(tmp_path):
    task = Task(
        tmp_path,
        "\nmade = load\ndef load(data_dir):\n    data = made(data_dir)\n"
        "    data.train.inputs[0] += os.getpid()\n    return data\n",
    )
    (run,) = task.runs(1)
    assert ended(carry_out(task.here(), [run])) == [1]
    assert task.record(run).status == "done"
    (other,) = task.runs(2)
    pool = task.pool(1)
    carry_out(pool, [other])
    task.close()
    assert task.record(other).status == "error"
    assert "are not those that the study began with" in task.record(other).end["message"]


def test_an_edit_during_a_study_is_an_error_of_the_runs_that_follow(task):
    (run,) = task.runs(62)
    pooled = task.pool(1)
    source = task.folder / "task.py"
    source.write_text(source.read_text().replace("/ 2", "/ 3"))
    carry_out(pooled, [run])
    assert task.record(run).status == "error"
    assert "has changed since the study began" in task.record(run).end["message"]
