"""From source to a model, its inputs and its targets; other examples in the place of some."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.variance.random_networks.build import Network, Plan, start


def weight(*shape: int) -> nn.Parameter:
    """A table of parameters."""
    return nn.Parameter(0.5 * torch.randn(shape))


class Doubled(torch.autograd.Function):
    """An operation with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Scaled(torch.autograd.Function):
    """An operation with a parameter and a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(h, p)
        return h * p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, p = ctx.saved_tensors
        return grad * p, (grad * h).flatten(0, -2).sum(0)


def compiled(network: Network) -> SimpleNamespace:
    """Run the source of a network; return its ``Net``, ``loss`` and ``terms``."""
    space: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "F": functional,
        "weight": weight,
        "checkpoint": checkpoint,
        "checkpoint_sequential": checkpoint_sequential,
        "parametrizations": parametrizations,
        "Doubled": Doubled,
        "Scaled": Scaled,
    }
    exec(compile(network.source(), f"<network {network.plan.seed}>", "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in ("Net", "loss", "terms", "rows")})


def inputs(network: Network, batch: int, seed: int) -> list[Tensor]:
    """Draw the inputs of a mini-batch."""
    generator = torch.Generator().manual_seed(seed)
    sizes = _first_sizes(network) | {"B": batch}
    return [_draw(spec, sizes, generator) for spec in network.opening.inputs.values()]


def others_replaced(network: Network, given: list[Tensor], kept: int, seed: int) -> list[Tensor]:
    """Return the inputs with all examples but one replaced by others."""
    fresh = inputs(network, given[_main(network)].shape[network.batch_dim], seed)
    made = []
    for spec, old, new in zip(network.opening.inputs.values(), given, fresh, strict=True):
        dims = spec.split(": ")[1].split()
        if "B" in dims:
            place = dims.index("B")
            new = new.index_copy(place, torch.tensor([kept]), old.narrow(place, kept, 1))
            made.append(new)
        else:
            made.append(old)
    return made


def targets(network: Network, out: Tensor, rows: Any, seed: int) -> Tensor:
    """Draw what the loss compares the output with."""
    generator = torch.Generator().manual_seed(seed + 7)
    if network.loss.target == "weights":
        return torch.rand(len(rows(out)), generator=generator, dtype=torch.float64)
    if network.loss.target == "like":
        return torch.randn(out.shape, generator=generator, dtype=torch.float64)
    classes = torch.randint(out.shape[-1], out.shape[:-1], generator=generator)
    classes.view(-1)[0] = 1  # class 0 is ignored among tokens, and not all are
    return classes


def _main(network: Network) -> int:
    return list(network.opening.inputs).index("x")


def _first_sizes(network: Network) -> dict[str, int]:
    """Return the sizes before the first operation."""
    return start(Plan(network.plan.seed, first=False)).sizes


def _draw(spec: str, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    kind, dims = spec.split(": ")
    shape = [sizes[d] for d in dims.split()]
    if kind == "ids":
        return torch.randint(7, shape, generator=generator)
    if kind == "steps":
        return torch.arange(*shape)
    if kind == "mask":
        mask = torch.rand(shape, generator=generator) > 0.4
        mask[:, 0] = True
        return mask
    # exact in float32, so that both precisions see the same inputs
    return torch.randn(shape, generator=generator).double()
