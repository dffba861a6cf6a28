"""The optimizer step against torch's own, on sizes of real and of extreme models."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from svag import optim
from svag.problems import models

PEERS: Mapping[str, Callable[[list[Tensor]], Optimizer]] = {
    "torch Adam, for-loop": lambda params: Adam(params, foreach=False, fused=False),
    "torch Adam, foreach": lambda params: Adam(params, foreach=True, fused=False),
}
OURS: Mapping[str, Callable[[list[Tensor]], Optimizer]] = {
    f"svag.{make.__name__}": make for make in (optim.Adam, optim.MSVAG, optim.MSSD, optim.MSGD)
}


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a step by optimizer, and medians of ratios to the better peer."""

    layout: str
    milliseconds: Mapping[str, float]
    ratios: Mapping[str, float]


def layouts() -> dict[str, list[torch.Size]]:
    """Return parameter shapes by name."""
    return {
        "40 x 500,000": [torch.Size([500_000])] * 40,
        "160 x 1,000": [torch.Size([1_000])] * 160,
        "WRN-40-4": [p.shape for p in models.wide_resnet().parameters()],
        "2c2d": [p.shape for p in models.conv_2c2d().parameters()],
        "character LSTM": [p.shape for p in models.CharLSTM(82).parameters()],
    }


def measure(layout: str, shapes: list[torch.Size], *, rounds: int) -> Timing:
    """Time one step of every optimizer in turn, ``rounds`` times.

    The ratio is to the better of torch's two in the same round, so that it holds while the speed
    of the machine drifts.
    """
    optimizers = {name: make(_parameters(shapes)) for name, make in {**PEERS, **OURS}.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for n in range(rounds + 1):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            optimizer.step()
            if n:
                times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = times[min(PEERS, key=medians.__getitem__)]
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], best, strict=True))
        for name in OURS
    }
    return Timing(layout, medians, ratios)


def _parameters(shapes: list[torch.Size]) -> list[Tensor]:
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params
