"""A step that is replayed takes the same steps, and what a replay would freeze is refused.

CUDA graphs need a GPU; what is around them is tested on a CPU, where every call is made anew.
"""

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.made import classification, equal, points, run_of
from svag.lab.cuda_graph import Captured, Finite, NotCapturable
from svag.lab.records import find
from svag.lab.session import Session, captures
from svag.lab.train import train
from svag.problems import supervised

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))


def task(model=network, **changes):
    data = points()

    def augment(inputs, generator):
        noise = torch.randn(inputs.shape, generator=generator, device=inputs.device)
        return inputs + 0.1 * noise

    settings = {"augment": augment, "prepare": lambda x: 2 * x, **changes}
    return classification(model, data, **settings), data


def parameters(problem, data, *, captured, **changes):
    session = Session(problem, data, run_of(problem, data, **changes), captured=captured)
    for _ in session:
        session.evaluate()
    return [p.detach().cpu().clone() for p in session.model.parameters()]


@pytest.mark.parametrize("method", ["sgd", "m-svag", "adam", "adam-star"])
def test_a_captured_step_takes_the_same_steps(method):
    problem, data = task(schedule=lambda step, steps: 1 / (1 + step))
    plain, replayed = (
        parameters(problem, data, captured=captured, method=method) for captured in (False, True)
    )
    assert equal(plain, replayed)


class Counting(nn.Linear):
    """Keeps count in Python, which a replay does not repeat."""

    def __init__(self):
        super().__init__(3, 3)
        self.calls = 0

    def forward(self, inputs):
        self.calls += self.training
        return super().forward(inputs) / self.calls if self.training else super().forward(inputs)


class Replacing(nn.Linear):
    """Puts a new tensor in the place of an old one, where a replay would write to the old one."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = torch.zeros(3)

    def forward(self, inputs):
        self.seen = self.seen + inputs.mean(0).detach()
        return super().forward(inputs)


class Drawing(nn.Linear):
    def __init__(self, draw):
        super().__init__(3, 3)
        self.draw = draw

    def forward(self, inputs):
        return super().forward(inputs) * (1 + 0.1 * self.draw())


class Hiding(nn.Linear):
    """Keeps count where no plain attribute shows it."""

    def __init__(self, count):
        super().__init__(3, 3)
        self.count = count

    def forward(self, inputs):
        self.count[0] += 1
        return super().forward(inputs) * (1 + 0.01 * int(self.count[0]))


def hooked():
    layer, calls = nn.Linear(3, 3), []
    layer.register_forward_hook(lambda m, i, outputs: (calls.append(1), outputs * len(calls))[1])
    return layer


FROZEN = {
    "a counter in an array": (
        lambda: Hiding(np.zeros(1)),
        "'count' of Hiding may change from step to step",
    ),
    "a counter in a deque": (
        lambda: Hiding(deque([0])),
        "'count' of Hiding may change from step to step",
    ),
    "a hook that counts": (hooked, "'_forward_hooks' of Linear may change"),
    "a counter": (Counting, "'calls' of Counting changes from step to step"),
    "a tensor that is replaced": (Replacing, "'seen' of Replacing changes"),
    "Python's generator": (lambda: Drawing(random.random), "the generator of Python changes"),
    "NumPy's generator": (lambda: Drawing(np.random.rand), "the generator of NumPy changes"),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_a_replay_would_freeze_is_refused(kind):
    model, words = FROZEN[kind]
    problem, data = task(model)
    session = Session(problem, data, run_of(problem, data), captured=True)
    with pytest.raises(NotCapturable, match=words):
        session.advance(5)
    assert not captures(problem, data, run_of(problem, data))


@pytest.mark.parametrize("name", ["loss", "augment", "prepare"])
def test_functions_that_remember_are_not_captured(name):
    calls = []

    def scale(value):
        calls.append(1)
        return value * (1 + 0.01 * len(calls))

    functions = {
        "loss": lambda outputs, targets: scale(functional.cross_entropy(outputs, targets)),
        "augment": lambda inputs, generator: scale(inputs),
        "prepare": lambda inputs: scale(inputs),
    }
    problem, data = task(lambda: nn.Linear(3, 3), **{name: functions[name]})
    session = Session(problem, data, run_of(problem, data), captured=True)
    with pytest.raises(NotCapturable, match=f"what {name} holds may change from step to step"):
        session.advance(5)


def test_a_step_of_a_problem_sees_the_weights_it_has_updated_under_autocast():
    """Autocast keeps copies of the weights in low precision, which an update makes stale."""
    losses = []

    def step(model, batches, optimizers):
        inputs, targets = next(batches)
        for _ in range(2):
            optimizers[0].zero_grad()
            loss = functional.cross_entropy(model(inputs).float(), targets)
            loss.backward()
            optimizers[0].step()
            losses.append(loss.item())
        return loss

    problem, data = task(lambda: nn.Linear(3, 3), step=step)
    run = run_of(problem, data, lr=1.0, autocast="bfloat16")
    session = Session(problem, data, run)
    session.advance(1)
    first, second = session._own_step.__closure__[0].cell_contents
    assert second < first
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize(
    "changes",
    [
        {"step": supervised(functional.cross_entropy)},
        {"optimizers": lambda model, make: [make(model.parameters())]},
    ],
)
def test_steps_and_optimizers_of_a_problem_are_taken_as_they_are(changes):
    problem, data = task(lambda: nn.Linear(3, 3), **changes)
    assert not captures(problem, data, run_of(problem, data))


def test_other_optimizers_and_the_variance_of_a_mini_batch_are_not_captured():
    problem, data = task(lambda: nn.Linear(3, 3))
    assert captures(problem, data, run_of(problem, data))
    for method in ("torch.optim.RMSprop", "m-svag@within-batch"):
        assert not captures(problem, data, run_of(problem, data, method=method))


def test_finite_counts_until_the_first_that_is_not():
    losses = Finite(torch.device("cpu"))
    for value in (1.0, -2.0, 0.0):
        losses.observe(torch.tensor(value))
    assert losses
    assert losses.count == 3
    for value in (float("nan"), 1.0, float("inf"), 2.0):
        losses.observe(torch.tensor([value]))
        assert not losses
        assert losses.count == 3


def test_indices_lie_in_one_place():
    """A graph reads the addresses that it was captured with."""
    problem, data = task(lambda: nn.Linear(3, 3))
    session = Session(problem, data, run_of(problem, data))
    seen = []

    def step(model, batches, optimizers):
        seen.append((batches._indices.data_ptr(), batches._indices.tolist()))
        next(batches)
        return torch.zeros(())

    captured = Captured(step, torch.device("cpu"))
    for _ in range(5):
        captured(session.model, session._batches, session.optimizers)
    assert len({place for place, _ in seen}) == 1
    assert len({tuple(indices) for _, indices in seen}) == 5


@needs_gpu
def test_numbers_drawn_on_the_cpu_are_refused_on_a_gpu():
    problem, data = task(lambda: Drawing(lambda: torch.rand(()).to("cuda")))
    assert not captures(problem, data, run_of(problem, data, device="cuda"))


@needs_gpu
@pytest.mark.parametrize("method", ["sgd", "m-svag", "adam", "adam-star"])
def test_a_graph_takes_the_steps_of_single_kernels(method):
    problem, data = task(schedule=lambda step, steps: 1 / (1 + step), steps=60)
    plain, replayed = (
        parameters(problem, data, captured=captured, method=method, device="cuda")
        for captured in (False, True)
    )
    for one, other in zip(plain, replayed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_gpu
def test_a_run_on_a_gpu_is_captured_and_goes_on_from_a_checkpoint(tmp_path):
    problem, data = task(steps=200)
    run = run_of(problem, data, device="cuda", lr=0.01)
    train(problem, data, run, tmp_path / "whole")
    whole = find(tmp_path / "whole", run)
    assert whole.end["captured"] == "as a CUDA graph"

    def stop(step):
        if step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(problem, data, run, tmp_path / "broken", progress=stop, checkpoint_every=0)
    train(problem, data, run, tmp_path / "broken")
    broken = find(tmp_path / "broken", run)
    assert broken.end["resumed"] > 0
    assert broken.end["test_loss"] == pytest.approx(whole.end["test_loss"], rel=1e-3)


@needs_gpu
def test_divergence_on_a_gpu_is_found_later_and_told_at_its_step(tmp_path):
    problem, data = task(lambda: nn.Linear(3, 3), steps=400)
    on_cpu, on_gpu = (
        run_of(problem, data, method="sgd", lr=1e30, device=device) for device in ("cpu", "cuda")
    )
    for run in (on_cpu, on_gpu):
        train(problem, data, run, tmp_path)
    steps = [find(tmp_path, run).end["step"] for run in (on_cpu, on_gpu)]
    assert [find(tmp_path, run).status for run in (on_cpu, on_gpu)] == ["diverged"] * 2
    assert steps[0] == steps[1]
