"""The optimizers of ``svag bench step``, the shapes of their parameters, and the targets."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from svag import optim
from svag.problems import models

Make = Callable[[list[Tensor]], Optimizer]


class Contestant(NamedTuple):
    """How an optimizer is built, and the peer by whose time its own is divided."""

    make: Make
    peer: str | None


TORCH_ADAM: Final = "torch Adam, fused"
_MOMENTUM, _PLAIN = "torch SGD momentum, fused", "torch SGD, fused"
_NARROW = ", bfloat16 state"

OURS: Final[Mapping[str, Contestant]] = {
    "svag.MSVAG": Contestant(optim.MSVAG, TORCH_ADAM),
    "svag.Adam": Contestant(optim.Adam, TORCH_ADAM),
    "svag.MSSD": Contestant(optim.MSSD, _MOMENTUM),
    "svag.MSGD": Contestant(optim.MSGD, _MOMENTUM),
    "svag.SSD": Contestant(optim.SSD, _PLAIN),
    "svag.SGD": Contestant(optim.SGD, _PLAIN),
    **{
        f"svag.{make.__name__}{_NARROW}": Contestant(
            partial(make, state_dtype=torch.bfloat16), f"svag.{make.__name__}"
        )
        for make in (optim.MSVAG, optim.Adam, optim.MSSD, optim.MSGD)
    },
}
PEERS: Final[Mapping[str, Contestant]] = {
    TORCH_ADAM: Contestant(partial(Adam, fused=True), None),
    "torch AdamW, fused": Contestant(partial(AdamW, fused=True), TORCH_ADAM),
    "torch Adam, foreach": Contestant(partial(Adam, foreach=True), TORCH_ADAM),
    _MOMENTUM: Contestant(partial(SGD, momentum=0.9, fused=True), None),
    _PLAIN: Contestant(partial(SGD, fused=True), None),
}
OTHERS: Final = ("pytorch_optimizer.MSVAG",)
"""Optimizers of optional packages; their peer is torch's fused Adam."""

LAYOUTS: Final[Mapping[str, Callable[[], list[torch.Size]]]] = {
    "40 x 500,000": lambda: [torch.Size([500_000])] * 40,
    "160 x 1,000": lambda: [torch.Size([1_000])] * 160,
    "WRN-40-4": lambda: [p.shape for p in models.wide_resnet().parameters()],
    "2c2d": lambda: [p.shape for p in models.conv_2c2d().parameters()],
    "character LSTM": lambda: [p.shape for p in models.CharLSTM(82).parameters()],
    "40 x 2,500,000": lambda: [torch.Size([2_500_000])] * 40,
}
"""Shapes of parameters by name."""

GPU_ONLY: Final = ("40 x 2,500,000",)


def bounds(adaptive: float, momentum: float) -> dict[str, float]:
    """Return the bounds of the four optimizers that have targets."""
    return {
        "svag.MSVAG": adaptive,
        "svag.Adam": adaptive,
        "svag.MSSD": momentum,
        "svag.MSGD": momentum,
    }


RATIO_AT_MOST: Final[Mapping[str, Mapping[str, float]]] = {
    "40 x 500,000": {
        **bounds(1.00, 1.05),
        **{f"{name}{_NARROW}": bound for name, bound in bounds(0.80, 0.95).items()},
    },
    "160 x 1,000": bounds(0.55, 0.9),
    "WRN-40-4": bounds(0.85, 1.0),
    "2c2d": bounds(0.85, 1.0),
}
"""Targets of ratios, by layout and optimizer, for two cores."""

SHARE_AT_LEAST: Final[Mapping[str, Mapping[str, float]]] = {
    "40 x 500,000": dict.fromkeys(bounds(0, 0), 0.85)
}
"""Targets of the share of copy bandwidth, with the state in the parameters' dtype; those for
bfloat16 state are lower."""

ALLOCATED_AT_MOST: Final = 1e6
"""Most bytes that a fused step should allocate."""


def contestants() -> tuple[dict[str, Contestant], list[str]]:
    """Return all optimizers by name, and the names of those whose package is not installed."""
    found, missing = {**OURS, **PEERS}, []
    for name in OTHERS:
        package, _, attribute = name.rpartition(".")
        try:
            make = getattr(importlib.import_module(package), attribute)
            found[name] = Contestant(make, TORCH_ADAM)
        except ImportError:
            missing.append(name)
    return found, missing
