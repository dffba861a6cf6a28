"""Two processes over gloo: DDP, FSDP2, DTensors and distributed checkpoints, against one process.

Everything is in float64, so that the order in which ranks add their gradients does not matter.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import distributed_worker as worker
from .cases import Case, by_name, named
from .stepping import step

WORKER = Path(worker.__file__)
LIMIT = 240.0  # seconds until two processes that wait for each other are given up
every_case = by_name(worker.CASES)
every_way = pytest.mark.parametrize("way", worker.FLAGS)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of all scenarios, for each rank; where a process ends badly, its last words."""
    folder = tmp_path_factory.mktemp("distributed")
    processes = []
    for rank in range(worker.WORLD):
        command = [sys.executable, str(WORKER), str(rank), str(folder)]
        with (folder / f"{rank}.txt").open("w") as file:
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    give_up = time.monotonic() + LIMIT
    try:
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)
            if failed or time.monotonic() > give_up:
                break
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ranks = range(worker.WORLD)
    words = "\n".join((folder / f"{rank}.txt").read_text()[-3000:] for rank in ranks)
    assert [process.returncode for process in processes] == [0, 0], words
    return [torch.load(folder / f"ends-{rank}.pt", weights_only=True) for rank in ranks]


def came_of(both: list[dict[str, Any]], scenario: str, what: str) -> Any:
    """The values on rank 0; where a rank failed in this case, it fails here with those words."""
    for rank in both:
        assert not isinstance(rank[scenario][what], str), rank[scenario][what]
    return both[0][scenario][what]


def alone(case: Case, steps: int = worker.STEPS) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same run in this process: whole batches, whole tensors, a for-loop."""
    net = worker.model()
    optimizer = case.build(net.parameters(), **worker.OPTIONS, foreach=False)
    worker.descend(net, optimizer, range(steps), slice(None))
    return net, optimizer


def assert_same(ours: list[Tensor], theirs: Any, bound: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=bound, atol=bound)


def test_the_runs_go_somewhere():
    start, (net, _) = worker.model(), alone(*named("m-svag"))
    for p, q in zip(start.parameters(), net.parameters(), strict=True):
        assert not torch.allclose(p, q, rtol=1e-3, atol=1e-3)


@every_way
@every_case
def test_two_replicas_train_as_one_process(both, case, way):
    assert_same(came_of(both, "ddp", f"{case}, {way}"), alone(case)[0].parameters())


def test_state_may_be_spread_over_replicas(both):
    assert_same(
        came_of(both, "ddp", "m-svag, ZeroRedundancyOptimizer"),
        alone(*named("m-svag"))[0].parameters(),
    )


@every_way
@every_case
def test_fully_sharded_parameters_train_as_whole_ones(both, case, way):
    net, optimizer = alone(case)
    ends = came_of(both, "fsdp", f"{case}, {way}")
    assert_same(ends["parameters"], net.parameters())
    step = {"step": False} if case.anatomy.buffers else {}
    assert ends["placed"] == {**step, **dict.fromkeys(case.anatomy.buffers, True)}
    for p, state in zip(net.parameters(), ends["state"], strict=True):
        assert state.keys() == optimizer.state[p].keys()
        assert_same(list(state.values()), optimizer.state[p].values())


@pytest.mark.parametrize("form", ["nested", "flat"])
@every_case
def test_a_distributed_checkpoint_resumes_exactly(both, case, form):
    ends = came_of(both, "checkpoints", f"{case}, {form}")
    assert all(map(torch.equal, ends["resumed"], ends["straight"]))
    # torch makes the state to be loaded into by a step with lr = 0 and gradients of zero
    start = [p.detach() for p in worker.model().parameters()]
    assert all(map(torch.equal, ends["before loading"], start))
    assert ends["lr"] == worker.OPTIONS["lr"]
    assert ends["steps"] == ([worker.STEPS] if case.anatomy.buffers else [])
    assert_same(ends["resumed"], alone(case)[0].parameters())


@by_name(worker.STATEFUL)
def test_a_gathered_state_is_that_of_one_process_and_can_be_spread_again(both, case):
    ends = came_of(both, "gathered", f"{case}, full")
    net, optimizer = alone(case, worker.STEPS // 2)
    for label, p in net.named_parameters():
        state = ends["state"].get(label, {})
        assert set(state) == set(optimizer.state[p])
        assert_same([state[key] for key in optimizer.state[p]], optimizer.state[p].values())
    assert all(map(torch.equal, ends["resumed"], ends["straight"]))


@pytest.mark.parametrize("way", [*worker.FLAGS, "capturable"])
@every_case
def test_dtensors_of_any_placement_step_as_plain_tensors_beside_a_plain_one(both, case, way):
    assert_same(came_of(both, "dtensors", f"{case}, {way}"), plain_run(case))


@every_way
@every_case
def test_gradients_distributed_in_another_way_than_their_parameters_count_whole(both, case, way):
    assert_same(came_of(both, "redistributed", f"{case}, {way}"), plain_run(case))


def plain_run(case: Case) -> list[nn.Parameter]:
    """Where plain tensors end that are stepped through the same gradients in this process."""
    params = [nn.Parameter(value) for value in worker.plain_values()]
    optimizer = case.build(params, **worker.OPTIONS, foreach=False)
    for n in range(worker.STEPS):
        step(optimizer, *worker.plain_gradients(n))
    return params
