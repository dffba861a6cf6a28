"""A second call of the model, with other examples replaced, leaves nothing behind.

Whatever a model keeps of its calls, training with svag goes on as it does without.
"""

import collections
import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svag.variance import within_batch_variance
from tests.variance.alone import bent, normal
from tests.variance.attribution import refused


class Counter:
    """A class of the user's."""

    def __init__(self) -> None:
        self.calls = 0

    def next(self) -> float:
        """Count a call."""
        self.calls += 1
        return 1 + self.calls / 10


class Keeps(nn.Module):
    """Multiplies by numbers that depend on what it keeps."""

    def __init__(self, kept: Any, number: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.kept, self.number = kept, number
        self.double()

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        factor = self.number(self.kept if given is None else given)
        return self.b(self.a(x).tanh() * torch.as_tensor(factor).double())


def _appended(kept: Any) -> float:
    kept["numbers"].append(kept["numbers"][-1] + 0.1)
    return kept["numbers"][-1]


def _rotated(kept: Any) -> float:
    kept.rotate(1)
    return kept[0]


def _added(kept: Any) -> Any:
    kept += 0.1
    return kept * 1


def _counted(kept: Any) -> float:
    kept.update("a")
    return 1 + kept["a"] / 10


KEPT: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "NumPy's generator": (lambda: np.random.default_rng(0), lambda g: g.random(4)),
    "NumPy's old generator": (
        lambda: np.random.RandomState(0),
        lambda g: g.rand(4),
    ),
    "Python's generator": (lambda: random.Random(0), lambda g: g.random()),
    "torch's generators in a list": (
        lambda: [torch.Generator().manual_seed(1)],
        lambda g: torch.rand(4, generator=g[0]),
    ),
    "quasi-random numbers": (
        lambda: torch.quasirandom.SobolEngine(4),
        lambda g: g.draw(2)[1] + 0.1,
    ),
    "a list in a mapping": (lambda: {"numbers": [1.0]}, _appended),
    "a deque": (lambda: collections.deque([1.0, 2.0, 3.0]), _rotated),
    "counts": (collections.Counter, _counted),
    "an array": (lambda: np.ones(4), _added),
    "a tensor in a list": (lambda: [torch.ones(4)], lambda g: _added(g[0])),
    "an object": (Counter, lambda g: g.next()),
}


def assert_trains_alike(model: nn.Module, *more: tuple[Any, Any]) -> None:
    """Demand the gradients, parameters and buffers of plain training over three passes."""
    plain = copy.deepcopy(model)
    given, same = zip(*more, strict=True) if more else ((), ())
    for _ in range(3):
        x = normal(3, 4)
        for m in (model, plain):
            m.zero_grad()
        bent(plain(x, *same)).backward()
        with within_batch_variance(model, examples=0):
            bent(model(x, *given)).backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=0)
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KEPT)
def test_what_a_module_keeps_is_put_back(name: str) -> None:
    torch.manual_seed(0)
    make, number = KEPT[name]
    assert_trains_alike(Keeps(make(), number))


@pytest.mark.parametrize("name", list(KEPT)[:3])
def test_a_generator_among_the_arguments_is_put_back(name: str) -> None:
    torch.manual_seed(0)
    make, number = KEPT[name]
    assert_trains_alike(Keeps(None, number), (make(), make()))


@pytest.mark.parametrize("kept", [itertools.count(1), itertools.cycle([1.0, 2.0, 3.0])])
def test_what_cannot_be_put_back_is_refused(kept: Any) -> None:
    torch.manual_seed(0)
    model = Keeps(kept, lambda g: float(next(g)))
    with refused("each time it is called", "an iterator"), within_batch_variance(model):
        bent(model(normal(3, 4))).backward()


WRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: [
        p.mul_(0.9).add_(q, alpha=0.1)
        for p, q in zip(m.teacher.parameters(), m.a.parameters(), strict=True)
    ],
    "other data": lambda m: [
        setattr(p, "data", p.data * 0.9 + q.data * 0.1)
        for p, q in zip(m.teacher.parameters(), m.a.parameters(), strict=True)
    ],
    "through data": lambda m: [p.data.mul_(0.9) for p in m.teacher.parameters()],
    "into out": lambda m: torch.mul(m.teacher.weight, 0.9, out=m.teacher.weight),
    "a list": lambda m: torch._foreach_mul_(list(m.teacher.parameters()), 0.9),
    "a state": lambda m: m.teacher.load_state_dict(
        {name: 0.9 * value for name, value in m.teacher.state_dict().items()}
    ),
    "another parameter": lambda m: setattr(
        m.teacher, "weight", nn.Parameter(0.9 * m.teacher.weight, requires_grad=False)
    ),
    "a trained one": lambda m: m.a.weight.mul_(0.99),
}


class Teacher(nn.Module):
    """Updates a teacher, or a weight, before or after it is used."""

    def __init__(self, write: Callable[[Any], Any], *, after: bool) -> None:
        super().__init__()
        self.a, self.teacher, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.teacher.requires_grad_(False)
        self.write, self.after = write, after
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if not self.after:
                self.write(self)
            target = self.teacher(x)
            if self.after:
                self.write(self)
        return self.b(self.a(x).tanh()) - target[:, :2]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_parameters_that_the_forward_pass_writes_are_put_back(name: str, after: bool) -> None:
    """Momentum encoders and teachers, whose average would be updated twice."""
    torch.manual_seed(0)
    assert_trains_alike(Teacher(WRITES[name], after=after))
