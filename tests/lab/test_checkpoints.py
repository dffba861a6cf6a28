"""A run that is broken off anywhere goes on as if nothing had been, or begins again."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lab.made import classification, points, run_of
from svag.entrants import entrant
from svag.lab.checkpoints import Checkpoints
from svag.lab.records import find
from svag.lab.train import train


class Killed(BaseException):
    """Nothing catches it: the process might as well be gone."""


def breaking(loss, *at):
    """A loss that is a kill at some of its calls in training."""
    calls = []

    def breaks(outputs, targets):
        calls.append(torch.is_grad_enabled())
        if torch.is_grad_enabled() and sum(calls) in at:
            raise Killed
        return loss(outputs, targets)

    return breaks


def both(tmp_path, problem, data, *, at, method="m-svag", **changes):
    """Train once undisturbed and once with kills; return the two records."""
    run = run_of(problem, data, method=method, **changes)
    train(problem, data, run, tmp_path / "whole", checkpoint_every=None)
    broken = replace(problem, loss=breaking(problem.loss, *at), metric=problem.judged_by(data))
    for _ in range(len(at) + 1):
        try:
            train(broken, data, run, tmp_path / "broken", checkpoint_every=0)
            break
        except Killed:
            continue
    return find(tmp_path / "whole", run), find(tmp_path / "broken", run)


def alike(whole, broken):
    return whole.status == "done" and whole.findings == broken.findings


class Restless(nn.Module):
    """Dropout, running statistics, a buffer that is not persistent, a counter, all generators."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls, self.shifts = 0, [torch.zeros(8)]
        self.everything = list(self.parameters())

    def forward(self, inputs):
        hidden = functional.dropout(self.norm(self.first(inputs)), 0.2, self.training)
        if self.training:
            self.calls += 1
            self.seen += inputs.mean().detach()
            self.shifts = [self.shifts[0] + random.random() + np.random.rand()]  # noqa: NPY002
        penalty = sum(p.square().mean() for p in self.everything)
        return self.last(hidden + 0.01 * (self.calls + self.seen + self.shifts[0]) * penalty)


KEYS = ("sgd", "m-svag", "adam", "adam-star", "m-svag@within-batch", "torch.optim.RMSprop")


@pytest.mark.parametrize("method", KEYS)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, method):
    data = points()
    problem = classification(
        Restless, data, augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g)
    )
    key = entrant(method).key
    whole, broken = both(tmp_path, problem, data, at=(1, 2, 7, 12, 29), method=key, lr=0.01)
    assert alike(whole, broken)
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert broken.end["resumed"] > 0


@pytest.mark.parametrize("kill", range(1, 24))
def test_a_kill_at_any_step(tmp_path, kill):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, schedule=lambda t, n: 1 / (1 + t))
    whole, broken = both(tmp_path, problem, data, at=(kill,), eval_every=3)
    assert alike(whole, broken)
    assert broken.end.get("resumed") == (None if kill > 20 else kill - 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.read = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)
        self.carried_state = None

    def forward(self, inputs):
        hidden, self.carried_state = self.cell(inputs[:, None], self.carried_state)
        return self.read(hidden[:, 0])


def test_carried_state_goes_on(tmp_path):
    data = points()
    problem = classification(Recurrent, data, carry_state=True)
    assert alike(*both(tmp_path, problem, data, at=(3, 4, 8, 14)))


# --- steps of a problem's own


def accumulating():
    """Takes a step of the optimizer at every third batch: gradients are kept in between."""
    count = 0

    def step(model, batches, optimizers):
        nonlocal count
        inputs, targets = next(batches)
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        count += 1
        if count % 3 == 0:
            optimizers[0].step()
            optimizers[0].zero_grad()
        return loss

    return step


class Averaging:
    """Keeps an average of the weights, a generator, and a scale that grows."""

    def __init__(self):
        self.average, self.scale = nn.Linear(3, 3), 1.0
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, model, batches, optimizers):
        inputs, targets = next(batches)
        noise = torch.randn(inputs.shape, generator=self.generator)
        optimizers[0].zero_grad()
        loss = self.scale * functional.cross_entropy(model(inputs + 0.1 * noise), targets)
        loss.backward()
        optimizers[0].step()
        self.scale *= 1.01
        with torch.no_grad():
            for ours, its in zip(self.average.parameters(), model.parameters(), strict=True):
                ours.lerp_(its, 0.1)
                its.lerp_(ours, 0.01)
        return loss


@pytest.mark.parametrize("make", [accumulating, Averaging])
def test_a_step_with_state_goes_on(tmp_path, make):
    data = points()
    run = None
    records = []
    for name, at in (("whole", ()), ("broken", (5, 11, 12))):
        kills = list(at)

        class Killing(nn.Linear):
            def forward(self, inputs, kills=kills, seen=[0]):  # noqa: B006
                seen[0] += self.training
                if kills and seen[0] == kills[0]:
                    kills.pop(0)
                    raise Killed
                return super().forward(inputs)

        problem = classification(lambda: Killing(3, 3), data, step=make())  # noqa: B023
        run = run_of(problem, data)
        for _ in range(len(at) + 1):
            try:
                train(problem, data, run, tmp_path / name, checkpoint_every=0)
            except Killed:
                continue
        records.append(find(tmp_path / name, run))
    assert alike(*records)
    assert records[1].end["resumed"] > 0


# --- what cannot be taken along


class Hidden:
    """An object whose state nobody but itself knows."""

    def __init__(self):
        self.count = 0


class Secretive(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.hidden, self.constant = Hidden(), {"one": {1}}

    def forward(self, inputs):
        if self.training:
            self.hidden.count += 1
        return super().forward(inputs) * (1 + 0.01 * self.hidden.count)


def test_a_model_with_hidden_state_begins_again(tmp_path):
    data = points()
    whole, broken = both(tmp_path, classification(Secretive, data), data, at=(9,))
    assert alike(whole, broken)
    assert "resumed" not in broken.end
    assert "'hidden' of Secretive is Hidden and may have changed" in broken.end["checkpoints"]


def test_a_step_with_hidden_state_begins_again(tmp_path):
    data = points()
    drawn = np.random.default_rng(0)

    def step(model, batches, optimizers):
        inputs, targets = next(batches)
        optimizers[0].zero_grad()
        loss = functional.cross_entropy(model(inputs), targets) * (1 + drawn.random())
        loss.backward()
        optimizers[0].step()
        return loss

    problem = classification(lambda: nn.Linear(3, 3), data, step=step)
    run = run_of(problem, data)
    train(problem, data, run, tmp_path, checkpoint_every=0)
    assert "no checkpoints: 0 of the step is Generator" in find(tmp_path, run).end["checkpoints"]


# --- files


def left_off(tmp_path, method="m-svag"):
    """A run that was killed at its 9th step."""
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    run = run_of(problem, data, method=method)
    broken = replace(problem, loss=breaking(problem.loss, 9), metric=problem.judged_by(data))
    with pytest.raises(Killed):
        train(broken, data, run, tmp_path, checkpoint_every=0)
    path = Checkpoints(tmp_path, run, None).path
    assert path.exists()
    return problem, data, run, path


def changed(name, value):
    def change(path):
        content = torch.load(path, weights_only=True)
        torch.save({**content, name: value}, path)

    return change


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot be read"),
    "no archive": (lambda path: path.write_bytes(b"checkpoint" * 100), "cannot be read"),
    "another format": (changed("format", 2), "is of format 2, not 1"),
    "another torch": (changed("torch", "2.0.0"), "is of torch 2.0.0, not"),
    "another run": (changed("run", "0123456789abcdef"), "is of run 0123456789abcdef, not"),
    "another model": (
        lambda path: changed("checkpoint", {**torch.load(path)["checkpoint"], "state": {}})(path),
        "does not fit",
    ),
    "code": (lambda path: torch.save({"format": Hidden()}, path), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_is_set_aside(tmp_path, damage):
    problem, data, run, path = left_off(tmp_path)
    change, words = DAMAGES[damage]
    change(path)
    train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    train(problem, data, run, tmp_path / "whole")
    assert record.findings == find(tmp_path / "whole", run).findings
    assert words in record.end["checkpoints"]
    assert "resumed" not in record.end
    assert not path.exists()


def test_a_disk_that_is_full_costs_checkpoints_alone(tmp_path):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    run = run_of(problem, data)
    (tmp_path / "checkpoints").write_text("no folder")
    train(problem, data, run, tmp_path, checkpoint_every=0)
    record = find(tmp_path, run)
    assert record.status == "done"
    assert "a checkpoint could not be written: " in record.end["checkpoints"]


def test_time_counts_over_attempts(tmp_path):
    problem, data, run, path = left_off(tmp_path)
    content = torch.load(path, weights_only=True)
    content["checkpoint"]["seconds"] = 1000.0
    torch.save(content, path)
    train(problem, data, run, tmp_path)
    assert find(tmp_path, run).end["wall_time"] > 1000
