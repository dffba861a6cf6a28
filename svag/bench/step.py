"""The optimizer step against torch's own, on sizes of real and of extreme models."""

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
    """Where the middle half of some numbers lies, and its middle."""

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Timing:
    """What the rounds say about one contestant.

    Attributes:
        layout: name of the parameters' shapes.
        name: of the optimizer or copy.
        milliseconds: of a step, the median.
        elements: number of parameters.
        moved: bytes an element that a step reads and writes, at least.
        peer: whose time in the same round each time is divided by.
        ratio: quotients of times, this one's over the peer's.
        share: of copy bandwidth, the time of a copy of as many bytes over this one's; above 1 on
            a CPU, where torch's copy also fetches the lines that it is about to overwrite.
        state: bytes an element that the optimizer keeps from step to step.
        allocated: bytes that a step allocates, where it was measured.
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
        """Gigabytes moved in a second."""
        return self.moved * self.elements / self.milliseconds / 1e6

    @property
    def goals(self) -> dict[str, tuple[float, bool]]:
        """Target by quantity, and whether it is met; where there is none the key is missing."""
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
    """Seconds of a process's first step, on a machine that has never taken one and later on."""

    name: str
    empty_cache: float
    filled_cache: float


class Stepper:
    """An optimizer over parameters of its own, with gradients elsewhere at every step."""

    def __init__(self, make: Make, shapes: Iterable[torch.Size], device: str) -> None:
        self.params = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
        self._grads = [_two_places(param) for param in self.params]
        self._turn = 0
        self.optimizer = make(self.params)

    def prepare(self) -> None:
        """Put the gradients elsewhere, as the backward pass after ``zero_grad`` does."""
        self._turn = 1 - self._turn
        for param, places in zip(self.params, self._grads, strict=True):
            param.grad = places[self._turn]

    def run(self) -> object:
        """Take a step."""
        return self.optimizer.step()


class Copy:
    """A copy within a device's memory that reads and writes a number of bytes in all."""

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
    """Say what the figures hold for, and what they lack."""
    engine = support.engine(device)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    lacking = [f"left out, because its package is not installed: {x}" for x in contestants()[1]]
    if isinstance(engine, str):
        lacking.append(f"svag's steps are the eager engine's, because {engine}")
    elif not has_targets(device):
        lacking.append("the targets are those of a CPU and two threads, so none are shown")
    return [f"{device}{threads}, torch {torch.__version__}", *lacking]


def has_targets(device: str) -> bool:
    """Whether the targets are about what is measured: the fused engine, on two cores."""
    fused = not isinstance(support.engine(device), str)
    return fused and device == "cpu" and torch.get_num_threads() == 2


def choose(names: Sequence[str], device: str) -> list[str]:
    """Check names of layouts; none stands for all that suit the device.

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
    """Return the optimizers of these names and all that they are compared with; none for all.

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
    """Time one step of every optimizer in turn, ``rounds`` times, and copies beside them.

    A ratio is one of times in the same round, so that it holds while the speed of the machine
    drifts; no two optimizers share a tensor, so that none finds its own in a cache because of
    another.

    Args:
        layout: a key of :data:`LAYOUTS`.
        rounds: how often each is timed, at least 2.
        device: ``"cpu"`` or ``"cuda"``.
        optimizers: names of those to time, and their peers with them; none for all. The more there
            are, the less a step finds in caches.

    Returns:
        A row for each optimizer, and then one for each copy.
    """
    chosen = entrants(optimizers)
    shapes = LAYOUTS[layout]()
    elements = sum(shape.numel() for shape in shapes)
    steppers = {name: Stepper(one.make, shapes, device) for name, one in chosen.items()}
    for stepper in steppers.values():
        stepper.prepare()
        stepper.run()  # makes the state, from which the bytes follow
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
    """Time every runner in each of some rounds, and in one before them that does not count."""
    names = list(runners)
    times: dict[str, list[float]] = {name: [] for name in names}
    for n in range(rounds + 1):
        for place in order(len(names), n):
            runner = runners[names[place]]
            runner.prepare()
            times[names[place]].append(clock(runner.run))
    return {name: values[1:] for name, values in times.items()}


def order(count: int, turn: int) -> list[int]:
    """Return who goes when in a round.

    Every round is the one before with everybody's number raised by one. The first is 0, -1, 1,
    -2, 2, ..., so that in ``count`` rounds nobody follows the same one twice (Williams' design);
    with an odd ``count``, nobody more than twice in twice as many.
    """
    zigzag = [-(i + 1) // 2 if i % 2 else i // 2 for i in range(count)]
    turned = [(place + turn) % count for place in zigzag]
    return turned[::-1] if turn // count % 2 else turned


def ratios(times: Sequence[float], others: Sequence[float]) -> Quartiles:
    """Return the quartiles of quotients of times in the same round."""
    quotients = [a / b for a, b in zip(times, others, strict=True)]
    return Quartiles(*statistics.quantiles(quotients, n=4, method="inclusive"))


def bytes_moved(optimizer: Optimizer) -> int:
    """Return what a step must move at least, after one: its gradient once, all else twice."""
    total = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            total += param.grad.nbytes + 2 * param.nbytes
            total += 2 * sum(buffer.nbytes for buffer in _averages(optimizer.state[param]))
    return total


def bytes_kept(optimizer: Optimizer) -> int:
    """Return what the tensors of the state take, after a step, the number of steps included."""
    states = optimizer.state.values()
    return sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor))


def first_steps() -> list[FirstStep]:
    """Time first steps in processes of their own, whose folder of compiled code is made for it.

    Each optimizer with targets, and torch's fused Adam beside them.
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
    """Return the seconds of a step on the 2c2d network, all that it loads included."""
    stepper = Stepper(contestants()[0][name].make, LAYOUTS["2c2d"](), "cpu")
    stepper.prepare()
    return _milliseconds(stepper.run) / 1e3


def _milliseconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _milliseconds_on_gpu(run: Run) -> float:
    """From an idle device until it is idle again, by its own clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


_milliseconds_on: Final = {"cpu": _milliseconds, "cuda": _milliseconds_on_gpu}


def _copy_name(moved: float) -> str:
    return f"copy, {moved:.4g} bytes an element"


def _two_places(param: Tensor) -> tuple[Tensor, Tensor]:
    """Return a gradient at two addresses, a cache line apart: views of the same memory."""
    apart = 64 // param.element_size()
    memory = torch.randn(param.numel() + apart, device=param.device)
    return memory[:-apart].view(param.shape), memory[apart:].view(param.shape)


def _averages(state: Mapping[str, Any]) -> list[Tensor]:
    return [x for name, x in state.items() if name != "step" and isinstance(x, Tensor)]
