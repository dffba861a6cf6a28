"""One of two gloo processes: ``python distributed_worker.py RANK FOLDER``.

Each scenario trains as ``test_distributed.py`` does alone. What came of every case, tensors or the
words of a failure, is left in FOLDER/ends-RANK.pt.
"""

import copy
import itertools
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import svag

sys.path.insert(0, str(Path(__file__).parents[1]))
from optim.cases import Case, named

WORLD, STEPS = 2, 4
CASES = named("sgd", "m-ssd", "m-svag", "adam", "m-ssd-erf")
STATEFUL = [case for case in CASES if case.averages]
FLAGS: dict[str, dict[str, Any]] = {"as is best": {}, "for-loop": {"foreach": False}}
OPTIONS = {"lr": 0.02, "weight_decay": 0.1}


def model() -> nn.Module:
    """Shapes that two ranks do not share evenly, and one row that only rank 0 has."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.Linear(5, 1)).double()


def batch(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + n)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: slice) -> None:
    for n in steps:
        optimizer.zero_grad()
        loss_of(net, batch(n)[part]).backward()
        optimizer.step()


def my_part() -> slice:
    rank = dist.get_rank()
    return slice(4 * rank, 4 * rank + 4)


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def whole_parameters(net: nn.Module) -> list[Tensor]:
    return [whole(p) for p in net.parameters()]


class Ends(dict[str, Any]):
    """What came of each case: its values, or where it failed, which leaves the others alone."""

    def note(self, case: str, run: Callable[[], Any]) -> None:
        try:
            self[case] = run()
        except Exception:
            self[case] = traceback.format_exc()


def every_case(
    run: Callable[[Case, dict[str, Any]], Any],
    ways: dict[str, dict[str, Any]],
    cases: list[Case] = CASES,
) -> dict[str, Any]:
    ends = Ends()
    for case, (way, flags) in itertools.product(cases, ways.items()):
        ends.note(f"{case}, {way}", lambda case=case, flags=flags: run(case, flags))
    return dict(ends)


# -------------------------------------------------------------------------------------- DDP


def ddp() -> dict[str, Any]:
    def case(make: Case, flags: dict[str, Any]) -> Any:
        net = model()
        replica = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        optimizer = make.build(replica.parameters(), **OPTIONS, **flags)
        descend(replica, optimizer, range(STEPS), my_part())
        return whole_parameters(net)

    def spread() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its import's own
            from torch.distributed.optim import ZeroRedundancyOptimizer
        net = model()
        replica = nn.parallel.DistributedDataParallel(net)
        optimizer = ZeroRedundancyOptimizer(
            replica.parameters(), optimizer_class=svag.MSVAG, **OPTIONS
        )
        descend(replica, optimizer, range(STEPS), my_part())
        return whole_parameters(net)

    ends = Ends(every_case(case, FLAGS))
    ends.note("m-svag, ZeroRedundancyOptimizer", spread)
    return dict(ends)


# ----------------------------------------------------------------------------------- FSDP2


def sharded_model() -> nn.Module:
    net = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def placed_as_parameters(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """Whether each kind of state is a DTensor, sharded as its parameter, for all of them."""
    found: dict[str, bool] = {}
    for p, state in optimizer.state.items():
        for key, value in state.items():
            alike = isinstance(value, DTensor) and (value.placements, value.device_mesh) == (
                p.placements,
                p.device_mesh,
            )
            found[key] = found.get(key, True) and alike
    return found


def fsdp() -> dict[str, Any]:
    def case(make: Case, flags: dict[str, Any]) -> Any:
        net = sharded_model()
        optimizer = make.build(net.parameters(), **OPTIONS, **flags)
        descend(net, optimizer, range(STEPS), my_part())
        return {
            "parameters": whole_parameters(net),
            "placed": placed_as_parameters(optimizer),
            "state": [
                {key: whole(value) for key, value in optimizer.state[p].items()}
                for p in net.parameters()
            ],
        }

    return every_case(case, FLAGS)


# ------------------------------------------------------------------------------ checkpoints

HALF = STEPS // 2


def checkpoints(folder: Path) -> dict[str, Any]:
    """Half a run, saved by torch.distributed.checkpoint; the other half by a fresh optimizer."""

    def case(make: Case, flags: dict[str, Any]) -> Any:
        options = dcp_state.StateDictOptions(**flags)
        where = folder / f"checkpoint-{next(count)}"
        net = sharded_model()
        optimizer = make.build(net.parameters(), **OPTIONS)
        descend(net, optimizer, range(HALF), my_part())
        first, second = dcp_state.get_state_dict(net, optimizer, options=options)
        dcp.save({"model": first, "optimizer": second}, checkpoint_id=where)
        descend(net, optimizer, range(HALF, STEPS), my_part())

        fresh = sharded_model()
        other = make.build(fresh.parameters(), lr=0.5)
        blank = {
            "model": dcp_state.get_model_state_dict(fresh, options=options),
            "optimizer": dcp_state.get_optimizer_state_dict(fresh, other, options=options),
        }
        untouched = whole_parameters(fresh)
        dcp.load(blank, checkpoint_id=where)
        dcp_state.set_state_dict(
            fresh,
            other,
            model_state_dict=blank["model"],
            optim_state_dict=blank["optimizer"],
            options=options,
        )
        descend(fresh, other, range(HALF, STEPS), my_part())
        return {
            "straight": whole_parameters(net),
            "resumed": whole_parameters(fresh),
            "before loading": untouched,
            "lr": other.param_groups[0]["lr"],
            "steps": sorted({float(s["step"]) for s in other.state.values() if "step" in s}),
        }

    count = itertools.count()
    return every_case(case, {"nested": {}, "flat": {"flatten_optimizer_state_dict": True}})


def gathered() -> dict[str, Any]:
    """The whole state on rank 0, as a run in one process has it, and given back to both.

    Only where there is a state: without, torch has no device to broadcast from, in its words
    "Expected device to be set", and its own SGD without momentum fails as well.
    """

    def case(make: Case, flags: dict[str, Any]) -> Any:
        net = sharded_model()
        optimizer = make.build(net.parameters(), **OPTIONS)
        descend(net, optimizer, range(HALF), my_part())
        options = dcp_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
        # copied, since torch hands out and takes in the very tensors that count the steps
        first, second = copy.deepcopy(dcp_state.get_state_dict(net, optimizer, options=options))
        fresh = sharded_model()
        other = make.build(fresh.parameters(), lr=0.5)
        spread = dcp_state.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        leads = dist.get_rank() == 0
        # in two calls: set_state_dict takes an empty dict for "no model to load" and hangs
        dcp_state.set_model_state_dict(fresh, first if leads else {}, options=spread)
        dcp_state.set_optimizer_state_dict(
            fresh, other, copy.deepcopy(second) if leads else {}, options=spread
        )
        descend(net, optimizer, range(HALF, STEPS), my_part())
        descend(fresh, other, range(HALF, STEPS), my_part())
        straight, resumed = whole_parameters(net), whole_parameters(fresh)
        return {"state": second.get("state"), "straight": straight, "resumed": resumed}

    return every_case(case, {"full": {}}, STATEFUL)


# ---------------------------------------------------------------------------- bare DTensors


def placed(placements: list[Any], ways: list[Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Parameters of some placements, one of them plain, and gradients that lie in some ways."""
    mesh = init_device_mesh("cpu", (WORLD,))

    def laid(value: Tensor, placement: Any) -> Tensor:
        if placement is None:
            return value
        if isinstance(placement, Partial):
            return DTensor.from_local(value / WORLD, mesh, [placement])
        return distribute_tensor(value, mesh, [placement])

    def case(make: Case, flags: dict[str, Any]) -> Any:
        params = [nn.Parameter(p) for p in map(laid, plain_values(), placements)]
        optimizer = make.build(params, **OPTIONS, **flags)
        for n in range(STEPS):
            for p, gradient in zip(params, map(laid, plain_gradients(n), ways), strict=True):
                p.grad = gradient
            optimizer.step()
        return [whole(p) for p in params]

    return every_case(case, flags)


def dtensors() -> dict[str, Any]:
    """Parameters of every placement beside a plain one, in one optimizer."""
    placements = [Shard(0), Shard(1), Replicate(), None]
    return placed(placements, placements, {**FLAGS, "capturable": {"capturable": True}})


def redistributed() -> dict[str, Any]:
    """Gradients that lie in another way than their parameters, as backward passes may leave them.

    What brings them into the parameters' way is a tensor that nothing else refers to.
    """
    placements = [Shard(0), Shard(1), Replicate(), Shard(0)]
    return placed(placements, [Replicate(), Partial(), Partial(), Partial()], FLAGS)


def plain_values() -> list[Tensor]:
    """The first has one row: rank 1's part of it is empty."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4), (5, 3), (7,), (3, 2))
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def plain_gradients(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(50 + n)
    return [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in plain_values()]


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # checkpoints of torch 2.9
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=30)
    )
    ends = {
        "ddp": ddp(),
        "fsdp": fsdp(),
        "checkpoints": checkpoints(folder),
        "gathered": gathered(),
        "dtensors": dtensors(),
        "redistributed": redistributed(),
    }
    torch.save(ends, folder / f"ends-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
