"""Times the within-batch variance, and peers, relative to a plain forward and backward pass."""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from svag.problems import models
from svag.variance.per_example import CHECK_EVERY, within_batch_variance

Run = Callable[[], None]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """A model with one mini-batch."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss


@dataclass(frozen=True)
class PassCost:
    """Median times by method, and medians of their ratios to the plain pass before each.

    Attributes:
        workload: name of the workload.
        milliseconds: time of a forward and backward pass; that of the plain pass is from the
            rounds with svag.
        ratios: time over that of the plain pass in the same round.
        memory: mebibytes by which svag's peak exceeds that of the plain pass.
        rounds: number of timings.
    """

    workload: str
    milliseconds: Mapping[str, float]
    ratios: Mapping[str, float]
    memory: float
    rounds: int

    def __str__(self) -> str:
        columns = (
            f"{name} {ratio:.2f}x ({self.milliseconds[name]:.1f} ms)"
            for name, ratio in self.ratios.items()
        )
        return f"{self.workload}: {', '.join(columns)}; {self.memory:+.0f} MiB at the peak"


class Encoder(nn.Module):
    """Four encoder layers of width 256 on 128 tokens, and a dense layer on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.dense = nn.Linear(256, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, T)`` to logits ``(B, 10)``."""
        return cast(Tensor, self.dense(self.layers(self.embedding(tokens)).mean(1)))


def workloads() -> dict[str, Callable[[], Workload]]:
    """Return functions that build the workloads, by name."""
    return {
        "2c2d": lambda: _images("2c2d, batch 64", models.conv_2c2d(), 64, (1, 28, 28)),
        "3c3d": lambda: _images("3c3d, batch 128", models.conv_3c3d(), 128, (3, 32, 32)),
        "lstm": _lstm,
        "transformer": _transformer,
        "resnet": _resnet,
        "weight-norm": _weight_normed,
        "cells": _cells,
    }


def _images(name: str, model: nn.Module, batch: int, shape: tuple[int, ...]) -> Workload:
    targets = torch.randint(10, (batch,))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Workload(name, model, torch.randn(batch, *shape), targets, functional.cross_entropy)


def _lstm() -> Workload:
    tokens, targets = torch.randint(82, (2, 50, 50))
    return Workload("LSTM, batch 50 x 50", models.CharLSTM(82), tokens, targets, over_tokens)


def _transformer() -> Workload:
    tokens, targets = torch.randint(1000, (32, 128)), torch.randint(10, (32,))
    name = "transformer, batch 32 x 128"
    return Workload(name, Encoder(), tokens, targets, functional.cross_entropy)


class Block(nn.Module):
    """A residual block: two convolutions with group normalisation, and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.GroupNorm(8, outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.GroupNorm(8, outside),
        )
        past = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.past = past if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inside, H, W)`` to ``(B, outside, H / stride, W / stride)``."""
        return cast(Tensor, (self.inner(x) + self.past(x)).relu())


def _resnet() -> Workload:
    """ResNet-18 for images of 32 x 32, with group instead of batch normalisation."""
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(a, b, 1 + (b > a)) for a, b in pairwise(widths)]
    stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(8, 64), nn.ReLU())
    top = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    model = nn.Sequential(*stem, *blocks, *top)
    return _images("ResNet-18 with GroupNorm, batch 16", model, 16, (3, 32, 32))


def _weight_normed() -> Workload:
    """Three dense layers of width 512 with weight normalisation."""
    norm = nn.utils.parametrizations.weight_norm
    layers = [norm(nn.Linear(512, 512)), nn.ReLU(), norm(nn.Linear(512, 512)), nn.ReLU()]
    model = nn.Sequential(*layers, norm(nn.Linear(512, 10)))
    inputs, targets = torch.randn(16, 512), torch.randint(10, (16,))
    name = "weight-normed MLP, batch 16"
    return Workload(name, model, inputs, targets, functional.cross_entropy)


class CellLoop(nn.Module):
    """An LSTM cell called at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.dense = nn.LSTMCell(64, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, 64)`` to logits ``(B, 10)``."""
        state = x.new_zeros(2, len(x), 128).unbind()
        for step in x.unbind(1):
            state = self.cell(step, state)
        return cast(Tensor, self.dense(state[0]))


def _cells() -> Workload:
    inputs, targets = torch.randn(16, 30, 64), torch.randint(10, (16,))
    return Workload(
        "LSTMCell loop, batch 16 x 30", CellLoop(), inputs, targets, functional.cross_entropy
    )


def over_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over examples and tokens."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain(work: Workload) -> Run:
    """Return a plain forward and backward pass."""

    def run() -> None:
        work.model.zero_grad()
        work.loss(work.model(work.inputs), work.targets).backward()

    return run


def ours(work: Workload, *, verified: bool = False) -> Run:
    """Return a pass inside :func:`svag.within_batch_variance`, with or without verification."""

    def run() -> None:
        work.model.zero_grad()
        with within_batch_variance(work.model, check=verified):
            work.loss(work.model(work.inputs), work.targets).backward()

    return run


def verified(work: Workload) -> Run:
    """Return a pass with verification, as the first and every hundredth pass of training have."""
    return ours(work, verified=True)


def backpack(work: Workload) -> Run | None:
    """Return a pass with BackPACK's ``Variance``; None if the model has layers it lacks."""
    try:
        package, extensions = import_module("backpack"), import_module("backpack.extensions")
    except ImportError:
        return None
    if not isinstance(work.model, nn.Sequential):
        return None
    model, loss = package.extend(deepcopy(work.model)), package.extend(nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad()
        with package.backpack(extensions.Variance()):
            loss(model(work.inputs), work.targets).backward()

    return run


def opacus(work: Workload) -> Run | None:
    """Return a pass with the variance of the per-example gradients of Opacus."""
    try:
        package = import_module("opacus")
    except ImportError:
        return None
    if not isinstance(work.model, nn.Sequential):
        return None
    model: Any = package.GradSampleModule(deepcopy(work.model))

    def run() -> None:
        model.zero_grad()
        work.loss(model(work.inputs), work.targets).backward()
        for p in model.parameters():
            p.grad_var = p.grad_sample.var(0).div_(len(p.grad_sample))
            p.grad_sample = None

    return run


def vmapped(work: Workload) -> Run | None:
    """Return a pass with the variance of ``torch.func.vmap`` of ``grad`` of the whole model."""
    params = {name: p.detach() for name, p in work.model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(work.model, values, (x.unsqueeze(0),))
        return work.loss(out, y.unsqueeze(0))

    def run() -> None:
        every = torch.func.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")
        rows = every(params, work.inputs, work.targets)
        for row in rows.values():
            row.var(0).div_(len(row))

    return run


METHODS: Mapping[str, Callable[[Workload], Run | None]] = {
    "plain": plain,
    "svag": ours,
    "svag, verified": verified,
    "BackPACK Variance": backpack,
    "Opacus": opacus,
    "vmap": vmapped,
}


def measure(work: Workload, *, rounds: int) -> PassCost:
    """Time every method and the plain pass in turn, ``rounds`` times.

    Each method is timed with its own plain passes. After the pass of another method, memory may
    have been returned to the system, and a plain pass would be slower for allocating it again.
    Methods that cannot run the model are left out.
    """
    memory = -peak_mebibytes(plain(work)) + peak_mebibytes(ours(work))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _measure(work, rounds, memory)


def _measure(work: Workload, rounds: int, memory: float) -> PassCost:
    base = plain(work)
    milliseconds, ratios = {"plain": _milliseconds(base)}, {"plain": 1.0}
    for name, make in METHODS.items():
        run = _usable(make(work))
        if name == "plain" or run is None:
            continue
        base()
        times = [(_milliseconds(base), _milliseconds(run)) for _ in range(rounds)]
        ratios[name] = statistics.median(own / plain_one for plain_one, own in times)
        milliseconds[name] = statistics.median(own for _, own in times)
        if name == "svag":
            milliseconds["plain"] = statistics.median(plain_one for plain_one, _ in times)
    for figures in (milliseconds, ratios):  # in training one of CHECK_EVERY passes is verified
        figures["svag"] += (figures["svag, verified"] - figures["svag"]) / CHECK_EVERY
    return PassCost(work.name, milliseconds, ratios, memory, rounds)


def _milliseconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _usable(run: Run | None) -> Run | None:
    """Return the run if it does not raise; None if it does."""
    try:
        if run is not None:
            run()
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return run


def peak_mebibytes(run: Run) -> float:
    """Return the peak memory of the tensors that a run creates, in mebibytes.

    It is measured after a warm-up run, whose gradients and variances exist already and do not
    count.
    """
    run()
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        run()
    events = cast(Any, profiler).profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return float(max(accumulate((size for _, size in changes), initial=0))) / 2**20
