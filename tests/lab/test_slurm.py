"""Runs as jobs, through submitit's local executor: what is lost with a job is tried again."""

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="submitit is not installed; pip install 'svag[slurm]'")

from lab.made import run_of, wait_until, write_task
from svag import problems
from svag.lab.executors import submission
from svag.lab.executors.cluster import ClusterError, SlurmCluster, parse
from svag.lab.executors.contract import WorkPlace
from svag.lab.executors.local import InProcess
from svag.lab.executors.slurm_cluster import Slurm
from svag.lab.records import find, path_of


class Task:
    """The task of a folder, its runs, and jobs that carry them out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.spec = write_task(folder)
        self.problem = problems.get(self.spec)
        self.data = problems.load(self.problem)
        self.place = WorkPlace(self.spec, None, self.out)

    def runs(self, *seeds):
        return [run_of(self.problem, self.data, seed=seed) for seed in seeds]

    def slurm(self, **options):
        return Slurm(SlurmCluster(executor="local", workers=1, threads=1, **options), self.place)

    def record(self, run):
        return find(self.out, run)

    def text(self, run):
        return path_of(self.out, run).read_text()

    def hold(self):
        (self.folder / "hold").touch()

    def release(self):
        (self.folder / "hold").unlink()

    def training(self):
        """Whether a model trains; those seen before are forgotten."""
        seen = list(self.folder.glob("training-*"))
        for path in seen:
            path.unlink()
        return bool(seen)


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path)


def jobs_of(executor):
    return [int(job_id) for job_id in executor._jobs]


def carry_out(executor, runs, at_event=lambda event: None):
    try:
        for run in runs:
            executor.submit(run)
        for event in executor.events():
            at_event(event)
            yield event
    finally:
        executor.close()


def ended(events):
    return sorted(event.run.seed for event in events if event.ended)


def without_time(record):
    run = {**record.run, "started": None}
    evals = [{**line, "wall_time": None} for line in record.evals]
    return run, evals, {**record.end, "wall_time": None}


def test_the_same_records_in_jobs_of_two_runs(task):
    runs = [*task.runs(1, 2, 3), replace(task.runs(4)[0], lr=1e39)]
    here = InProcess(task.problem, task.data, replace(task.place, directory=task.folder / "here"))
    for run in runs:
        here.submit(run)
    list(here.events())
    executor = task.slurm(runs_per_job=2, jobs=2)
    assert executor.idle == 4
    events = list(carry_out(executor, runs))
    assert ended(events) == [1, 2, 3, 4]
    for run in runs:
        assert without_time(task.record(run)) == without_time(find(task.folder / "here", run))
    assert len(list((task.out / "jobs").glob("*_submitted.pkl"))) == 2
    assert not list((task.out / "jobs").glob("*.json"))  # nothing is left in flight


def test_a_killed_job_is_no_done_one(task):
    """The first job is killed with one run begun, the job of the second try as well."""
    first, second = task.runs(1, 2)
    executor = task.slurm(runs_per_job=2, jobs=1)
    killed = []
    task.hold()
    executor.submit(first)
    executor.submit(second)
    seen = []
    for event in executor.events():
        seen.append((event.run.seed, event.step, event.ended))
        if alive := set(jobs_of(executor)) - set(killed):
            wait_until(task.training, "a job trains")
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)
    executor.close()
    assert [seed for seed, _, ended in seen if ended] == [1, 2]
    assert [task.record(run).status for run in (first, second)] == ["error", "error"]
    assert len(set(killed)) == 2
    for run in (first, second):
        said = task.record(run).end["message"]
        assert re.match(rf"job {killed[1]} ended as FAILED \(.*\.err\)$", said)
        text = task.text(run)
        assert text.count(f"job {killed[0]} ended as FAILED (") == 1
        assert text.count('"status": "error"') == 1


def test_a_second_driver_waits_for_the_jobs_of_one_that_is_gone(task):
    first, second = task.runs(1, 2)
    gone = task.slurm()
    task.hold()
    gone.submit(first)
    gone._send()
    wait_until(task.training, "the job trains")
    executor = task.slurm()
    executor.submit(first)
    executor.submit(second)
    task.release()
    assert ended(carry_out(executor, [])) == [1, 2]
    assert task.record(first).status == "done"
    assert task.text(first).count('"kind": "run"') == 1  # it was not begun again
    gone.close()


def test_closing_cancels_and_interrupts(task):
    (run,) = task.runs(1)
    executor = task.slurm()
    task.hold()
    executor.submit(run)
    executor._send()
    wait_until(task.training, "the job trains")
    executor.close()
    assert task.record(run).status == "interrupted"
    task.release()
    assert ended(carry_out(task.slurm(), [run])) == [1]
    assert task.record(run).status == "done"


def test_no_slurm_here(task, monkeypatch):
    monkeypatch.setenv("PATH", str(task.folder))
    with pytest.raises(ClusterError, match=r"^there is no Slurm here: sbatch is not found; "):
        Slurm(SlurmCluster(), task.place)


@pytest.fixture
def slurm_that_says(tmp_path, monkeypatch):
    """A Slurm whose ``squeue`` answers as told; what svag makes of it is tested, not Slurm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(answer, code=0):
        for name in ("squeue", "sbatch", "sacct"):
            script = folder / name
            said = answer if name == "squeue" else ""
            script.write_text(f"#!/bin/sh\nprintf '{said}'\nprintf 'refused\\n' >&2\nexit {code}\n")
            script.chmod(0o755)

    return says


def test_states_of_jobs_as_slurm_tells_them(slurm_that_says, tmp_path):
    slurm_that_says("")
    queue = submission.Queue(SlurmCluster(), tmp_path / "jobs")
    handles = [queue.handle(str(number)) for number in range(1, 7)]
    slurm_that_says("1 RUNNING\\n2 PENDING\\n3 FAILED\\n4 NODE_FAIL\\n5 COMPLETED\\n")
    assert queue.dead(handles) == {
        "3": "FAILED",
        "4": "NODE_FAIL",
        "5": "COMPLETED",
        "6": "a state that Slurm no longer knows",
    }
    slurm_that_says("", code=1)  # Slurm is away: that says nothing about the jobs
    assert queue.dead(handles) == {}


def test_a_slurm_that_refuses_is_quoted(slurm_that_says, tmp_path):
    slurm_that_says("", code=1)
    with pytest.raises(ClusterError, match=r"^Slurm does not answer: refused$"):
        submission.Queue(SlurmCluster(), tmp_path / "jobs")
    slurm_that_says("")
    queue = submission.Queue(SlurmCluster(), tmp_path / "jobs")
    slurm_that_says("", code=1)
    with pytest.raises(ClusterError, match=r"Slurm did not take the job: .*refused"):
        queue.submit(print)


def test_a_key_that_submitit_does_not_know(slurm_that_says, tmp_path):
    slurm_that_says("")
    cluster = parse("kind: slurm\nslurm_partitoin: x", "slurm.yml")
    assert isinstance(cluster, SlurmCluster)
    said = r"submitit knows no 'slurm_partitoin'\. Did you mean 'slurm_partition'\? Known: "
    with pytest.raises(ClusterError, match=said):
        submission.Queue(cluster, tmp_path / "jobs")
