"""Times svag's optimizer steps against torch's, with parameters of real and extreme models."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from svag.bench.allocation import Timed, bytes_allocated
from svag.bench.contestants import (
    ALLOCATED_AT_MOST,
    GPU_ONLY,
    LAYOUTS,
    OURS,
    RATIO_AT_MOST,
    SHARE_AT_LEAST,
    TORCH_ADAM,
    Contestant,
    Make,
    bounds,
    contestants,
)
from svag.errors import InvalidOption, UnknownName, nearest
from svag.optim.engines import support

Run = Callable[[], object]


class Quartiles(NamedTuple):
    """The lower quartile, the median and the upper quartile of some numbers."""

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Timing:
    """The timings of one optimizer or copy.

    Attributes:
        layout: name of the parameters' shapes.
        name: name of the optimizer or copy.
        milliseconds: median time of a step.
        elements: number of parameters.
        moved: least bytes per element that a step reads and writes.
        peer: name of the optimizer that it is compared with.
        ratio: quartiles of its time over the peer's in the same round.
        share: share of copy bandwidth: quartiles of the time of a copy of as many bytes over its
            time. It can exceed 1 on a CPU, where torch's copy also reads the cache lines that it
            overwrites.
        state: bytes per element that the optimizer keeps from step to step.
        allocated: bytes that a step allocates; None if not measured.
    """

    layout: str
    name: str
    milliseconds: float
    elements: int
    moved: float
    peer: str | None = None
    ratio: Quartiles | None = None
    share: Quartiles | None = None
    state: float | None = None
    allocated: int | None = None

    @property
    def bandwidth(self) -> float:
        """Gigabytes read and written per second."""
        return self.moved * self.elements / self.milliseconds / 1e6

    @property
    def goals(self) -> dict[str, tuple[float, bool]]:
        """The targets, by ``ratio`` and ``share``, and whether they are met; only existing ones."""
        found = {}
        at_most = RATIO_AT_MOST.get(self.layout, {}).get(self.name)
        if self.ratio is not None and at_most is not None:
            found["ratio"] = at_most, self.ratio.median <= at_most
        at_least = SHARE_AT_LEAST.get(self.layout, {}).get(self.name)
        if self.share is not None and at_least is not None:
            found["share"] = at_least, self.share.median >= at_least
        if self.allocated is not None and self.name in OURS:
            found["allocated"] = ALLOCATED_AT_MOST, self.allocated < ALLOCATED_AT_MOST
        return found


@dataclass(frozen=True)
class FirstStep:
    """Seconds of the first step of a process, with an empty and with a filled cache of code."""

    name: str
    empty_cache: float
    filled_cache: float


class Stepper:
    """An optimizer with its own parameters; its gradients move to other addresses at every step."""

    def __init__(self, make: Make, shapes: Iterable[torch.Size], device: str) -> None:
        self.params = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
        self._grads = [_two_places(param) for param in self.params]
        self._turn = 0
        self.optimizer = make(self.params)

    def prepare(self) -> None:
        """Move the gradients to other addresses, as a backward pass after ``zero_grad`` does."""
        self._turn = 1 - self._turn
        for param, places in zip(self.params, self._grads, strict=True):
            param.grad = places[self._turn]

    def run(self) -> object:
        """Take a step."""
        return self.optimizer.step()


class Copy:
    """A copy within a device's memory; ``moved`` is the number of bytes read plus written."""

    def __init__(self, moved: float, device: str) -> None:
        words = round(moved / 2 / torch.float32.itemsize)
        self._source = torch.ones(words, device=device)
        self._target = torch.zeros(words, device=device)

    def prepare(self) -> None:
        """Do nothing."""

    def run(self) -> object:
        """Copy."""
        return self._target.copy_(self._source)


def remarks(device: str) -> list[str]:
    """Return sentences on the machine and the versions, and on what was left out."""
    engine = support.engine(device)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    lacking = [f"left out, because its package is not installed: {x}" for x in contestants()[1]]
    if isinstance(engine, str):
        lacking.append(f"svag's steps are the eager engine's, because {engine}")
    elif not has_targets(device):
        lacking.append("the targets are those of a CPU and two threads, so none are shown")
    return [f"{device}{threads}, torch {torch.__version__}", *lacking]


def has_targets(device: str) -> bool:
    """Whether the targets apply: they are for the fused engine on a CPU with two threads."""
    fused = not isinstance(support.engine(device), str)
    return fused and device == "cpu" and torch.get_num_threads() == 2


def choose(names: Sequence[str], device: str) -> list[str]:
    """Check names of layouts; without names, return all layouts that fit the device.

    Raises:
        UnknownName: there is no such layout.
        InvalidOption: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidOption("--device cuda: torch sees no CUDA device here; use --device cpu")
    for name in names:
        if name not in LAYOUTS:
            known = ", ".join(map(repr, LAYOUTS))
            raise UnknownName(f"unknown layout {name!r}; known: {known}.{nearest(name, LAYOUTS)}")
    return list(names) or [n for n in LAYOUTS if device == "cuda" or n not in GPU_ONLY]


def entrants(names: Sequence[str] = ()) -> dict[str, Contestant]:
    """Return the optimizers with these names and their peers; without names, all.

    Raises:
        UnknownName: there is no such optimizer.
    """
    every, _ = contestants()
    chosen = set(names or every)
    for name in names:
        if name not in every:
            known = ", ".join(map(repr, every))
            raise UnknownName(f"unknown optimizer {name!r}; known: {known}.{nearest(name, every)}")
        peer = every[name].peer
        while peer is not None:
            chosen.add(peer)
            peer = every[peer].peer
    return {name: one for name, one in every.items() if name in chosen}


def measure(
    layout: str, *, rounds: int, device: str = "cpu", optimizers: Sequence[str] = ()
) -> list[Timing]:
    """Time one step of every optimizer, and copies, in turn, ``rounds`` times.

    Ratios are of times in the same round, so that a drift of the machine's speed cancels. No two
    optimizers share a tensor, so that none profits from a cache that another has filled.

    Args:
        layout: a key of :data:`LAYOUTS`.
        rounds: number of timings of each, at least 2.
        device: ``"cpu"`` or ``"cuda"``.
        optimizers: names of the optimizers to time, together with their peers; empty for all. With
            more optimizers, less of a step's data is in the caches.

    Returns:
        A row for each optimizer, and then one for each copy.
    """
    chosen = entrants(optimizers)
    shapes = LAYOUTS[layout]()
    elements = sum(shape.numel() for shape in shapes)
    steppers = {name: Stepper(one.make, shapes, device) for name, one in chosen.items()}
    for stepper in steppers.values():
        stepper.prepare()
        stepper.run()  # creates the state, whose bytes are counted
    moved = {name: bytes_moved(stepper.optimizer) for name, stepper in steppers.items()}
    copies = {_copy_name(count / elements): count for count in sorted(set(moved.values()))}
    runners: dict[str, Timed] = {**steppers}
    runners.update({name: Copy(count, device) for name, count in copies.items()})
    times = interleave(runners, rounds, _milliseconds_on[device])
    rows = []
    for name, stepper in steppers.items():
        row = Timing(layout, name, statistics.median(times[name]), elements, moved[name] / elements)
        if (peer := chosen[name].peer) is not None:
            row = replace(row, peer=peer, ratio=ratios(times[name], times[peer]))
        if name in OURS:
            row = replace(row, allocated=bytes_allocated(stepper, device))
        share = ratios(times[_copy_name(row.moved)], times[name])
        rows.append(replace(row, share=share, state=bytes_kept(stepper.optimizer) / elements))
    for name, count in copies.items():
        median = statistics.median(times[name])
        rows.append(Timing(layout, name, median, elements, count / elements))
    return rows


def interleave(
    runners: Mapping[str, Timed], rounds: int, clock: Callable[[Run], float]
) -> dict[str, list[float]]:
    """Time every runner once per round, after one round that is not counted.

    Args:
        runners: the benchmarks, by name.
        rounds: number of rounds that count.
        clock: returns the milliseconds of a call.

    Returns:
        The times of each runner in milliseconds, one per round.
    """
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    for n in range(rounds + 1):
        for place in order(len(names), n):
            runner = runners[names[place]]
            runner.prepare()
            times[names[place]].append(clock(runner.run))
    return {name: values[1:] for name, values in times.items()}


def order(count: int, turn: int) -> list[int]:
    """Return the order in which ``count`` runners run in round number ``turn``.

    The first round is 0, -1, 1, -2, 2, ... modulo ``count``; every further one adds 1 to each
    number (Williams' design). So in ``count`` rounds no runner follows the same other one twice;
    with an odd ``count``, in ``2 count`` rounds at most twice.
    """
    zigzag = [-(i + 1) // 2 if i % 2 else i // 2 for i in range(count)]
    turned = [(place + turn) % count for place in zigzag]
    return turned[::-1] if turn // count % 2 else turned


def ratios(times: Sequence[float], others: Sequence[float]) -> Quartiles:
    """Return the quartiles of the ratios of times in the same round."""
    quotients = [a / b for a, b in zip(times, others, strict=True)]
    return Quartiles(*statistics.quantiles(quotients, n=4, method="inclusive"))


def bytes_moved(optimizer: Optimizer) -> int:
    """Return the least bytes that a step moves: the gradient once, parameters and state twice.

    The optimizer must have taken a step, which creates its state.
    """
    total = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            total += param.grad.nbytes + 2 * param.nbytes
            total += 2 * sum(buffer.nbytes for buffer in _averages(optimizer.state[param]))
    return total


def bytes_kept(optimizer: Optimizer) -> int:
    """Return the bytes of the state's tensors, step counts included, after a step."""
    states = optimizer.state.values()
    return sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor))


def first_steps() -> list[FirstStep]:
    """Time the first steps of new processes, with a new folder for compiled code.

    Timed are all optimizers with targets, and torch's fused Adam.
    """
    return [_first_step_twice(name) for name in (*bounds(0, 0), TORCH_ADAM)]


def _first_step_twice(name: str) -> FirstStep:
    code = "import sys; from svag.bench import step; print(step.time_first_step(sys.argv[1]))"
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code, name],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(2)
        ]
    return FirstStep(name, *seconds)


def time_first_step(name: str) -> float:
    """Return the seconds of a step on the 2c2d network, including what it imports and compiles."""
    stepper = Stepper(contestants()[0][name].make, LAYOUTS["2c2d"](), "cpu")
    stepper.prepare()
    return milliseconds(stepper.run) / 1e3


def milliseconds(run: Run) -> float:
    """Return the milliseconds of a call."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _milliseconds_on_gpu(run: Run) -> float:
    """Return the milliseconds of a run on an idle GPU, by CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


_milliseconds_on: Final = {"cpu": milliseconds, "cuda": _milliseconds_on_gpu}


def _copy_name(moved: float) -> str:
    return f"copy, {moved:.4g} bytes an element"


def _two_places(param: Tensor) -> tuple[Tensor, Tensor]:
    """Return two views of one gradient buffer, whose addresses differ by a cache line."""
    apart = 64 // param.element_size()
    memory = torch.randn(param.numel() + apart, device=param.device)
    return memory[:-apart].view(param.shape), memory[apart:].view(param.shape)


def _averages(state: Mapping[str, Any]) -> list[Tensor]:
    return [x for name, x in state.items() if name != "step" and isinstance(x, Tensor)]
