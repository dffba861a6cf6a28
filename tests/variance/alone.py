"""Each example run forward and backward alone, in float64, against svag on the mini-batch."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svag.variance import within_batch_variance

Size = tuple[int, int, int]  # examples, steps, width; alike and unlike
SIZES = [(3, 5, 4), (4, 4, 4), (2, 4, 6)]
Loss = Callable[..., Tensor]


def bent(output: Any) -> Tensor:
    """A sum over examples that is linear in no output."""
    return sum((t.sin() + 0.1 * t.square()).sum() for t in _tensors(output))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


@dataclass
class Case:
    """A model, its inputs with the examples in front, and a loss that is a sum over examples.

    ``alone`` is what one example adds to the loss where that is not the loss of it alone.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    loss: Loss = bent
    targets: tuple[Tensor, ...] = ()
    alone: Loss | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dim: int = 0


def one_by_one(case: Case) -> dict[str, Tensor]:
    """Run every example alone; return ``(B, *shape)`` for each trainable parameter."""
    model, loss = copy.deepcopy(case.model), case.alone or case.loss
    rows: dict[str, list[Tensor]] = {n: [] for n, p in model.named_parameters() if p.requires_grad}
    for k in range(case.inputs[0].shape[case.dim]):
        model.zero_grad()
        mine = [t.narrow(case.dim, k, 1) for t in case.inputs]
        loss(model(*mine), *[t[k : k + 1] for t in case.targets]).backward()
        for name in rows:
            p = model.get_parameter(name)
            rows[name].append(torch.zeros_like(p) if p.grad is None else p.grad)
    return {name: torch.stack(row) for name, row in rows.items()}


def assert_own(case: Case) -> None:
    """Demand autograd's gradient, and the variance of the examples run alone."""
    known, plain = one_by_one(case), copy.deepcopy(case.model)
    case.loss(plain(*case.inputs), *case.targets).backward()
    with within_batch_variance(case.model, **case.options):
        case.loss(case.model(*case.inputs), *case.targets).backward()
    for name, p in case.model.named_parameters():
        expected = plain.get_parameter(name).grad
        if expected is None:
            assert p.grad is None
            assert not hasattr(p, "grad_var")
            continue
        rows = known[name]
        torch.testing.assert_close(rows.sum(0), expected, rtol=1e-9, atol=1e-10, msg="the oracle's")
        torch.testing.assert_close(p.grad, expected, rtol=1e-10, atol=1e-12)
        size = float(rows.square().max()) * len(rows)
        error = float((p.grad_var - len(rows) * rows.var(0)).abs().max())
        assert error <= 1e-10 * size + 1e-24, f"{name} is wrong by {error:.1e} of {size:.1e}"


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def words(b: int, t: int, count: int = 7) -> Tensor:
    return torch.randint(count, (b, t))


Make = Callable[[int, int, int], Case]


class Cases(dict[str, Make]):
    """Functions of the sizes that make cases, by the kind of use."""

    def named(self, name: str) -> Callable[[Make], Make]:
        """Register a case."""

        def register(make: Make) -> Make:
            self[name] = make
            return make

        return register


def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """Let the passes be verified that are so without ``check=True``."""
    for _ in range(2):
        with within_batch_variance(model):
            bent(model(x)).backward()
        model.zero_grad()
    return model


both = pytest.mark.parametrize("verified", [True, False])
