"""Runs on a Ray cluster of two real nodes: the same records, also when one node is killed."""

import re
import socket
import sys
import threading
import time
from dataclasses import replace

import pytest

pytest.importorskip("ray", reason="ray is not installed; pip install 'svag[ray]'")

from lab.made import run_of
from lab.ray_nodes import Nodes
from svag import problems
from svag.lab.executors.cluster import ClusterError, RayCluster, reach
from svag.lab.executors.code_to_copy import pack
from svag.lab.executors.contract import WorkPlace
from svag.lab.executors.local import InProcess
from svag.lab.executors.ray_cluster import Ray
from svag.lab.records import find, path_of

SLOW = '''
"""A task whose runs wait half way while a file is there, so that a node can be killed."""

import os
import time

import torch
from helper import clouds
from torch import nn

from svag.problems import Data, Problem, Split

HOLD = "@"


def task():
    return Problem(name="slow", description="clouds", model=Model, load=load, batch_size=8,
                   steps=20, quick_steps=20)


def load(data_dir):
    inputs, targets = clouds()
    return Data(Split(inputs[:40], targets[:40]), Split(inputs[40:], targets[40:]))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seed, self.steps = torch.initial_seed(), 0

    def forward(self, inputs):
        if self.training:
            time.sleep(0.02)
            self.steps += 1
            while self.steps > 10 and os.path.exists(HOLD):
                time.sleep(0.02)
            if self.seed == 99:
                os._exit(7)
        return self.linear(inputs)
'''

HELPER = """
import torch

def clouds():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    return torch.eye(3)[targets] + torch.randn(60, 3, generator=generator) / 2, targets
"""


@pytest.fixture(scope="module")
def nodes():
    made = Nodes()
    try:
        made.start(cpus=1)
        yield made
    finally:
        made.close()


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task in a folder of its own, with a module beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "slow.py").write_text(SLOW.replace("@", str(tmp_path / "hold")))
    (folder / "helper.py").write_text(HELPER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return f"{folder / 'slow.py'}:task"


def on_ray(nodes, spec, problem, folder, **cluster):
    scratch = folder / "copy"
    scratch.mkdir(parents=True)
    copy = pack(problem, ("m-sgd",), spec, scratch)
    assert copy.folder is not None
    place = WorkPlace(spec, None, folder, checkpoint_every=0.1)
    settled = RayCluster(address=nodes.address, **cluster)
    return Ray(settled, place, copy.folder, copy.spec)


def carry_out(executor, runs, watch=lambda event: None):
    try:
        for run in runs:
            executor.submit(run)
        for event in executor.events():
            watch(event)
            yield event
    finally:
        executor.close()


def what_counts(record):
    """A record without times, machine and attempts."""
    lines = [dict(record.run), *map(dict, record.evals), dict(record.end)]
    for line in lines:
        for name in ("started", "wall_time", "threads", "machine", "resumed"):
            line.pop(name, None)
    return lines


def test_one_of_two_nodes_is_killed_half_way(nodes, task, tmp_path):
    problem = problems.get(task)
    data = problems.load(problem)
    runs = [run_of(problem, data, seed=seed) for seed in range(1, 6)]
    here = tmp_path / "here"
    for _ in carry_out(InProcess(problem, data, WorkPlace(task, None, here)), runs):
        pass
    second = nodes.start(cpus=1)
    ended, killed, under_way = [], [], {}
    hold, there = tmp_path / "hold", tmp_path / "there"
    hold.touch()

    def watch(event):
        under_way[event.run.seed] = event.step
        if event.ended:
            ended.append(event.run.seed)
        elif sum(step >= 10 for step in under_way.values()) == 2 and not killed:  # one a node
            assert len(list(there.glob("checkpoints/*.pt"))) == 2
            nodes.kill(second)
            killed.append(event.run.seed)
        elif killed and event.step == 0 and hold.exists():  # the loss was noticed
            hold.unlink()

    events = list(carry_out(on_ray(nodes, task, problem, there), runs, watch))
    assert killed
    assert sorted(ended) == [1, 2, 3, 4, 5]  # each once
    for run in runs:
        assert what_counts(find(there, run)) == what_counts(find(here, run))
    texts = [path_of(there, run).read_text() for run in runs]
    lost = [text for text in texts if "the task was lost" in text]
    assert len(lost) == 1
    assert "resumed" in lost[0]  # from the checkpoint that had come from the node
    assert not list(there.glob("checkpoints/*"))
    assert {event.run.id for event in events if event.ended} == {run.id for run in runs}


def test_a_run_whose_worker_dies_twice_is_an_error_and_so_is_an_edit_on_the_way(
    nodes, task, tmp_path
):
    problem = problems.get(task)
    data = problems.load(problem)
    runs = [run_of(problem, data, seed=seed) for seed in (99, 5)]
    edited = replace(runs[1], version="another", seed=6)
    events = list(carry_out(on_ray(nodes, task, problem, tmp_path / "out"), [*runs, edited]))
    assert sorted(event.run.seed for event in events if event.ended) == [5, 6, 99]
    bad, good = (find(tmp_path / "out", run) for run in runs)
    assert (bad.status, good.status) == ("error", "done")
    assert re.match(r"the task was lost \(WorkerCrashedError: ", bad.end["message"])
    text = path_of(tmp_path / "out", runs[0]).read_text()
    assert text.count('"status": "interrupted"') == 1
    assert text.count('"status": "error"') == 1
    record = find(tmp_path / "out", edited)
    assert record.status == "error"
    assert record.end["message"] == f"the code of {task} has changed since the study began"


def test_closing_interrupts_and_the_same_command_goes_on(nodes, task, tmp_path):
    problem = problems.get(task)
    run = run_of(problem, problems.load(problem))
    (tmp_path / "hold").touch()
    executor = on_ray(nodes, task, problem, tmp_path / "out")
    executor.submit(run)
    for event in executor.events():
        if event.step >= 8:
            break
    executor.close()
    record = find(tmp_path / "out", run)
    assert record.status == "interrupted"
    assert record.evals[-1]["step"] >= 8
    (tmp_path / "hold").unlink()
    (tmp_path / "again").mkdir()
    copy = pack(problem, (), task, tmp_path / "again")
    place = WorkPlace(task, None, tmp_path / "out")
    again = Ray(RayCluster(address=nodes.address), place, copy.folder, copy.spec)
    assert [e.run.id for e in carry_out(again, [run]) if e.ended] == [run.id]
    record = find(tmp_path / "out", run)
    assert record.status == "done"
    assert record.end["resumed"] > 0


def test_more_than_any_node_has_is_refused(nodes, task, tmp_path):
    problem = problems.get(task)
    with pytest.raises(ClusterError, match=r"a run takes 64 CPU, and no node .* has that \(they"):
        on_ray(nodes, task, problem, tmp_path, num_cpus=64)
    with pytest.raises(ClusterError, match=r"a run takes 1 CPU, 1 unobtainium"):
        on_ray(nodes, task, problem, tmp_path / "2", resources={"unobtainium": 1})


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_no_cluster_is_said_within_seconds(answer):
    """Nobody listens, or something else does."""
    started = time.monotonic()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        if answer is not None:
            listening.listen()
            threading.Thread(target=reply, args=(listening, answer), daemon=True).start()
        with pytest.raises(ClusterError, match=f"^no Ray cluster answers at {address} "):
            reach(RayCluster(address=address))
    assert time.monotonic() - started < 20


def reply(listening, answer):
    connection, _ = listening.accept()
    with connection:
        connection.sendall(answer)
        connection.recv(100)
