"""One run: deterministic, every example once an epoch, and a status for whatever happens."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

import svag
from lab.made import classification, points, run_of
from svag.errors import InvalidOption
from svag.lab.batches import Batches
from svag.lab.evaluation import splits_of
from svag.lab.records import find, path_of
from svag.lab.session import Session
from svag.lab.train import train
from svag.problems import Data, Metric, Problem, Split


class Watched(nn.Linear):
    """Keeps what it is given in training, and its parameters at that time."""

    def __init__(self, inputs=3, outputs=3, dtype=None):
        super().__init__(inputs, outputs, dtype=dtype)
        self.seen, self.parameters_then = [], []

    def forward(self, inputs):
        if self.training:
            self.seen.append(inputs)
            self.parameters_then.append([p.detach().clone() for p in self.parameters()])
        return super().forward(inputs)


def watched():
    """A model factory, and the list of what it has made."""
    made = []

    def make():
        made.append(Watched())
        return made[-1]

    return make, made


def trained(directory, problem, data, run=None, **changes):
    run = run or run_of(problem, data, **changes)
    train(problem, data, run, directory)
    return find(directory, run)


def figures(line):
    return {key: value for key, value in line.items() if key not in ("kind", "wall_time")}


# --- determinism


def network():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


@pytest.mark.parametrize("method", ["sgd", "m-svag", "adam"])
def test_two_runs_are_equal(tmp_path, method):
    data = points()
    problem = classification(network, data)
    torch.rand(1)
    first = trained(tmp_path / "1", problem, data, method=method)
    torch.manual_seed(12345)
    second = trained(tmp_path / "2", problem, data, method=method)
    assert first.findings == second.findings
    assert first.status == "done"
    other = trained(tmp_path / "1", problem, data, method=method, seed=2)
    assert other.findings != first.findings


def test_an_evaluation_changes_nothing_of_the_training(tmp_path):
    data = points()
    problem = classification(network, data)
    often, seldom = (
        trained(tmp_path, problem, data, eval_every=every).findings[-1] for every in (1, 20)
    )
    assert often == seldom


def test_the_record_tells_how_training_went(tmp_path):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, steps=50)
    steps = []
    run = run_of(problem, data)
    train(problem, data, run, tmp_path, progress=steps.append)
    record = find(tmp_path, run)
    assert [line["step"] for line in record.evals] == steps == [*range(0, 51, 2)]
    assert figures(record.end) == {**figures(record.evals[-1]), "status": "done"}
    assert record.end["step"] == 50
    assert record.end["test_accuracy"] > 0.6 > 0.5 > record.evals[0]["test_accuracy"]
    assert record.end["train_loss"] < record.evals[0]["train_loss"]


@pytest.mark.parametrize(("steps", "every"), [(7, 3), (1, 1), (5, 10)])
def test_the_last_step_is_evaluated(tmp_path, steps, every):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, steps=steps)
    record = trained(tmp_path, problem, data, eval_every=every)
    assert [line["step"] for line in record.evals] == sorted({*range(0, steps, every), steps})


def test_figures_are_means_over_the_whole_splits(tmp_path):
    """2,500 examples: more than are evaluated at a time, and no multiple of that."""
    data = points(train=3000, test=2500)
    problem = classification(lambda: nn.Linear(3, 3), data, steps=1)
    session = Session(problem, data, run_of(problem, data, seed=3))
    found = session.evaluate(full=True)
    with torch.no_grad():
        outputs = session.model(data.test.inputs)
    assert list(found) == ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    loss = nn.functional.cross_entropy(outputs, data.test.targets)
    assert found["test_loss"] == pytest.approx(loss.item(), rel=1e-6)
    right = (outputs.argmax(1) == data.test.targets).double().mean()
    assert found["test_accuracy"] == pytest.approx(right.item(), rel=1e-12)
    assert len(splits_of(data, session.run)[1]["train"]) == 3000


# --- batches


def test_batches_take_every_example_once_an_epoch():
    n, size = 43, 8
    split = Split(torch.arange(n), torch.arange(n) + 100)
    stream = Batches(split, size, seed=0)
    epochs = []
    for _ in range(4):
        taken = [next(stream) for _ in range(n // size)]
        assert all(len(inputs) == size for inputs, _ in taken)
        assert all(torch.equal(targets, inputs + 100) for inputs, targets in taken)
        epochs.append(torch.cat([inputs for inputs, _ in taken]).tolist())
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 40
        assert set(epoch) <= set(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # others are left out each time


def test_a_batch_larger_than_the_data_is_refused():
    split = Split(torch.arange(5), torch.arange(5))
    with pytest.raises(InvalidOption, match="a batch of 8 is more than the 5 examples"):
        Batches(split, 8, seed=0)


def test_training_sees_every_example_once_an_epoch(tmp_path):
    make, models = watched()
    data = points(train=40)
    trained(tmp_path, classification(make, data, steps=15), data)
    seen = torch.cat(models[0].seen)
    for epoch in seen.split(40):
        assert torch.equal(epoch.unique(dim=0), data.train.inputs.unique(dim=0))
    assert len(seen) == 15 * 8


# --- divergence, on a parameter whose course is known: w <- (1 - 2 lr) w, and the loss is w^2


class Parabola(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        return self.weight * inputs


def parabola(steps=20, eval_every=1, **changes):
    ones = Split(torch.ones(8, 1), torch.zeros(8, 1))
    data = Data(ones, ones)
    problem = classification(
        Parabola,
        data,
        steps=steps,
        loss=lambda outputs, targets: (outputs - targets).square().mean(),
        **changes,
    )
    return problem, data, lambda lr: run_of(problem, data, "sgd", lr=lr, eval_every=eval_every)


@pytest.mark.parametrize(
    ("lr", "status", "last"),
    [
        (0.3, "done", 20),
        (1.0, "done", 20),  # w jumps from 1 to -1 and back
        (
            1.1,
            "done",
            20,
        ),  # the loss grows to 1,470 times its start, and is finite: the metric judges
        (1e30, "diverged", 1),
        (1e39, "diverged", 1),  # the step size itself is infinite in float32
    ],
)
def test_divergence_is_what_is_not_finite(tmp_path, lr, status, last):
    problem, data, run = parabola()
    record = trained(tmp_path, problem, data, run(lr))
    assert record.status == status
    assert record.end["step"] == last
    losses = [line["train_loss"] for line in record.evals]
    if status == "diverged":
        assert record.merit == float("-inf")
        assert record.finished
        assert "train_loss" not in record.end
    else:
        course = [(1 - 2 * lr) ** (2 * k) for k in range(21)]
        assert losses == pytest.approx(course, rel=1e-4)


def test_a_spike_that_recovers_is_no_divergence(tmp_path):
    """A single step of 1,000 times the size, and smaller ones after it."""
    problem, data, run = parabola(
        steps=30, schedule=lambda step, steps: 1000.0 if step == 3 else 1.0
    )
    record = trained(tmp_path, problem, data, run(0.3))
    assert max(line["train_loss"] for line in record.evals) > 1000
    assert record.status == "done"
    assert record.end["train_loss"] < 1e-3


def test_parameters_that_are_not_finite_are_divergence_whatever_the_loss_says(tmp_path):
    class Hidden(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).clamp(-1, 1).nan_to_num()

    data = points()
    problem = classification(lambda: Hidden(3, 3), data)
    record = trained(tmp_path, problem, data, method="ssd", lr=1e39)
    assert record.status == "diverged"


@pytest.mark.parametrize("shift", [-5.0, 7.0])
def test_a_shifted_loss_changes_neither_status_nor_training(tmp_path, shift):
    data = points()
    models = []

    def model():
        models.append(network())
        return models[-1]

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) + shift

    plain = classification(model, data, loss=lambda *both: loss(*both) - shift)
    first = trained(tmp_path / "1", plain, data)
    second = trained(tmp_path / "2", classification(model, data, loss=loss), data)
    assert first.status == second.status == "done"
    assert second.end["test_loss"] - shift == pytest.approx(first.end["test_loss"], abs=1e-5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_a_run_between_evaluations(tmp_path):
    problem, data, run = parabola(steps=40, eval_every=40)
    record = trained(tmp_path, problem, data, run(1e30))
    assert record.status == "diverged"
    assert list(record.end) == ["kind", "status", "step", "wall_time"]  # no figure is of this step
    assert record.end["step"] == 1
    assert [line["step"] for line in record.evals] == [0]


def test_a_run_that_starts_without_a_finite_loss_has_diverged(tmp_path):
    data = points()
    loss = lambda outputs, targets: outputs.sum() * float("nan")  # noqa: E731
    problem = classification(lambda: nn.Linear(3, 3), data, loss=loss)
    record = trained(tmp_path, problem, data)
    assert (record.status, record.end["step"]) == ("diverged", 0)
    assert record.evals[0]["train_loss"] is None


def test_an_evaluated_loss_that_is_not_finite_is_divergence(tmp_path):
    data = points()
    huge = Data(data.train, Split(data.test.inputs * 3e38, data.test.targets))
    record = trained(tmp_path, classification(lambda: nn.Linear(3, 3), huge), huge)
    assert record.status == "diverged"
    assert record.evals[0]["test_loss"] is None
    assert [line["step"] for line in record.evals] == [0]


# --- errors


class Failing(nn.Linear):
    """Raises at its third step."""

    def __init__(self, error):
        super().__init__(3, 3)
        self.error, self.steps = error, 0

    def forward(self, inputs):
        self.steps += self.training
        if self.steps == 3:
            raise self.error
        return super().forward(inputs)


def test_a_model_that_ends_the_process_is_a_status(tmp_path):
    record = trained(tmp_path, classification(lambda: Failing(SystemExit(3)), points()), points())
    assert (record.status, record.end["message"][:13]) == ("error", "SystemExit: 3")


def test_what_changes_its_batch_in_place_leaves_the_data_as_they_were(tmp_path):
    """Else every evaluation would change the data of the steps and of the runs that follow."""

    class Doubling(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs.mul_(2))

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets.remainder_(3))

    def prepare(inputs):
        return inputs.sub_(1)

    data = points()
    data.train.targets.add_(3)
    before = data.fingerprint
    problem = classification(
        lambda: Doubling(3, 3), data, loss=loss, prepare=prepare, metric=SPREAD, steps=4
    )
    found = [trained(tmp_path / name, problem, data).findings for name in ("once", "again")]
    assert found[0] == found[1]
    assert replace(data).fingerprint == before


SPREAD = Metric(
    name="spread",
    function=lambda outputs, _: outputs.neg_().std(),
    larger_is_better=True,
    over="split",
)


@pytest.mark.parametrize("part", [False, True], ids=["model", "part"])
def test_a_model_that_an_earlier_run_has_trained_is_refused(tmp_path, part):
    shared, data = nn.Linear(3, 3), points()

    def make():
        return nn.Sequential(shared, nn.Linear(3, 3)) if part else shared

    first, second = (
        trained(tmp_path, classification(make, data), data, seed=seed) for seed in (1, 2)
    )
    assert first.status == "done"
    assert second.end["message"].startswith("ProblemError: the model function of 'points' returned")
    shared.requires_grad_(False)
    frozen = classification(lambda: nn.Sequential(shared, nn.Linear(3, 3)), data)
    assert [trained(tmp_path, frozen, data, seed=n).status for n in (3, 4)] == ["done"] * 2


def test_a_model_that_raises_is_a_status(tmp_path):
    data = points()
    error = RuntimeError("boom [/here]\nand there")
    problem = classification(lambda: Failing(error), data)
    record = trained(tmp_path, problem, data, eval_every=2)
    assert (record.status, record.finished) == ("error", False)
    assert record.end["message"].startswith("RuntimeError: boom [/here] and there (")
    assert re.search(r"test_train\.py:\d+\)$", record.end["message"])
    assert [line["step"] for line in record.evals] == [0, 2]


@pytest.mark.parametrize("part", ["model", "loss", "schedule", "augment", "step", "optimizers"])
def test_any_part_of_a_problem_that_raises_is_a_status(tmp_path, part):
    def broken(*arguments):
        raise ValueError(f"no {part}")

    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    record = trained(tmp_path, replace(problem, **{part: broken}), data, run_of(problem, data))
    assert record.status == "error"
    assert record.end["message"].startswith(f"ValueError: no {part} (")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": lambda step, steps: math.nan}, "the schedule of 'points' returned nan at st"),
        ({"schedule": lambda step, steps: -1.0}, "the schedule of 'points' returned -1.0 at step"),
        ({"schedule": lambda step, steps: None}, "the schedule of 'points' returned None at step"),
        ({"loss": lambda *both: 1.0}, "the loss of a batch is float; return a tensor"),
        ({"loss": lambda out, _: out.sum().detach()}, "depends on no parameter that requires a g"),
        (
            {"loss": lambda out, _: out.sum() * 1j},
            "the loss of 'points' is a tensor of shape () and torch.complex64",
        ),
        ({"loss": lambda out, _: out}, "is a tensor of shape (43, 3) and torch.float32 on"),
        ({"model": nn.Identity}, "has no parameter that requires a gradient"),
        ({"model": lambda: print}, "returned builtin_function_or_method instead of a torch.nn.M"),
    ],
)
def test_what_cannot_be_trained_is_no_divergence(tmp_path, changes, said):
    data = points()
    problem = classification(**{"model": lambda: nn.Linear(3, 3), "data": data, **changes})
    record = trained(tmp_path, problem, data, run_of(problem, data))
    assert record.status == "error"
    assert record.end["message"].startswith("ProblemError: ")
    assert said in record.end["message"]


@pytest.mark.parametrize("value", [1.5, -0.1, 93.0])
def test_a_metric_out_of_its_bounds_is_an_error(tmp_path, value):
    data = points()
    metric = Metric(
        name="score", function=lambda *both: value, larger_is_better=True, low=0.0, high=1.0
    )
    problem = classification(lambda: nn.Linear(3, 3), data, metric=metric)
    record = trained(tmp_path, problem, data)
    assert record.status == "error"
    assert (
        f"the metric 'score' of 'points' is {value:g} on the train split" in record.end["message"]
    )
    assert "it is said to lie in [0, 1]" in record.end["message"]


def test_a_metric_that_is_nan_is_an_error_and_no_divergence(tmp_path):
    data = points()
    metric = Metric(name="f1", function=lambda *both: float("nan"), larger_is_better=True)
    record = trained(tmp_path, classification(lambda: nn.Linear(3, 3), data, metric=metric), data)
    assert record.status == "error"
    assert (
        "the metric 'f1' of 'points' is NaN on the train split while the loss is finite"
        in (record.end["message"])
    )


def test_targets_of_another_shape_are_an_error_and_no_broadcast(tmp_path):
    """(n, 1) against (n,) compares each with every other; torch only warns."""
    data = points()
    column = Data(*(Split(s.inputs, s.inputs[:, 0]) for s in (data.train, data.test)))
    problem = classification(lambda: nn.Linear(3, 1), column, loss=nn.functional.mse_loss)
    record = trained(tmp_path, problem, column)
    assert record.status == "error"
    assert "different to the input size" in record.end["message"]


def test_a_run_that_takes_too_long_is_an_error(tmp_path):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, steps=10**6)
    run = run_of(problem, data, eval_every=10**6)
    train(problem, data, run, tmp_path, timeout=0.2)
    record = find(tmp_path, run)
    assert record.status == "error"
    assert record.end["message"].startswith("TimedOut: timed out after 0.2 s (--timeout)")


def test_a_model_that_does_not_fit_the_data_is_a_status(tmp_path):
    data = points()
    record = trained(tmp_path, classification(lambda: nn.Linear(4, 3), data), data)
    assert record.status == "error"
    assert "shapes cannot be multiplied" in record.end["message"]
    assert ".py:" not in record.end["message"]  # no line of torch's, which says nothing to a user


def test_ctrl_c_closes_the_record_and_is_passed_on(tmp_path):
    data = points()
    problem = classification(lambda: Failing(KeyboardInterrupt()), data)
    run = run_of(problem, data, eval_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(problem, data, run, tmp_path)
    record = find(tmp_path, run)
    assert (record.end["status"], record.finished) == ("interrupted", False)
    assert [line["step"] for line in record.evals] == [0, 2]
    again = trained(tmp_path, classification(lambda: nn.Linear(3, 3), data), data, run)
    assert again.status == "done"
    kinds = [json.loads(line)["kind"] for line in path_of(tmp_path, run).read_text().splitlines()]
    assert kinds.count("run") == kinds.count("end") == 2


# --- schedule and weight decay


def test_the_schedule_is_applied(tmp_path):
    def schedule(step, steps):
        asked.append((step, steps))
        return step / 10 if step < 8 else 0.0

    asked = []
    problem, data, run = parabola(steps=10, schedule=schedule)
    record = trained(tmp_path, problem, data, run(0.3))
    weight, course = 1.0, [1.0]
    for step in range(10):
        weight *= 1 - 2 * 0.3 * (step / 10 if step < 8 else 0)
        course.append(weight**2)
    assert [line["train_loss"] for line in record.evals] == pytest.approx(course, rel=1e-5)
    assert asked == [(step, 10) for step in range(10)]


def test_weight_decay_goes_to_weights_only(tmp_path):
    """With a loss that has no gradient, weights shrink by 1 - lr * lambda a step; biases stay."""
    make, models = watched()
    data = points()
    problem = classification(
        make, data, steps=6, weight_decay=0.5, loss=lambda outputs, targets: 0 * outputs.sum()
    )
    trained(tmp_path, problem, data, method="sgd", lr=0.1)
    weights, biases = zip(*models[0].parameters_then, strict=True)
    for step, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        assert torch.allclose(weight, weights[0] * (1 - 0.1 * 0.5) ** step, rtol=1e-5)
        assert torch.equal(bias, biases[0])
    assert weights[0].abs().min() > 0 < biases[0].abs().min()


@pytest.mark.parametrize("method", svag.METHODS)
def test_weight_decay_of_every_method(method):
    def model():
        return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Linear(4, 5))

    problem = classification(model, points(), weight_decay=5e-4)
    session = Session(problem, points(), run_of(problem, points(), method, lr=0.01))
    (optimizer,) = session.optimizers
    assert isinstance(optimizer, getattr(svag, svag.METHODS[method].optimizer))
    decayed = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert {name: decayed[id(p)] for name, p in session.model.named_parameters()} == {
        "0.weight": 5e-4, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.weight": 5e-4, "2.bias": 0
    }  # fmt: skip
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_a_methods_own_weight_decay_takes_the_place_of_the_problems():
    problem = classification(lambda: nn.Linear(3, 3), points(), weight_decay=0.1)
    for method, expected in (("adam(weight_decay=0.3)", 0.3), ("adam(weight_decay=0)", 0.0)):
        session = Session(problem, points(), run_of(problem, points(), method))
        assert session.optimizers[0].param_groups[0]["weight_decay"] == expected
        assert len(session.optimizers[0].param_groups) == 1 + (expected > 0)


def test_weight_decay_where_there_are_only_weights_or_only_biases():
    for model in (lambda: nn.Linear(3, 3, bias=False), Parabola):
        problem = classification(model, points(), weight_decay=0.1)
        session = Session(problem, points(), run_of(problem, points(), "sgd"))
        groups = session.optimizers[0].param_groups
        assert sum(len(group["params"]) for group in groups) == 1


# --- validation


def test_validation_data_are_held_out(tmp_path):
    make, models = watched()
    data = points(train=43)
    problem = classification(make, data, steps=60)
    record = trained(tmp_path, problem, data, select="validation")
    used = torch.cat(models[0].seen).unique(dim=0)
    _, evaluated_on = splits_of(data, run_of(problem, data, select="validation"))
    held_out = evaluated_on["validation"]
    assert len(held_out) == 4
    assert len(used) == 39
    together = torch.cat([used, held_out.inputs])
    assert torch.equal(together.unique(dim=0), data.train.inputs.unique(dim=0))
    assert torch.equal(evaluated_on["test"].inputs, data.test.inputs)
    evaluated = evaluated_on["train"].inputs
    assert len(evaluated) == 39
    assert len(torch.cat([evaluated, held_out.inputs]).unique(dim=0)) == 43

    names = [
        f"{split}_{what}"
        for split in ("train", "test", "validation")
        for what in ("loss", "accuracy")
    ]
    assert [list(line) for line in record.evals] == [["kind", "step", *names, "wall_time"]] * len(
        record.evals
    )
    assert list(record.end) == ["kind", "status", "step", *names, "wall_time"]
    assert record.merit == record.end["validation_accuracy"]
    with torch.no_grad():
        outputs = models[0](held_out.inputs)
    right = (outputs.argmax(1) == held_out.targets).double().mean().item()
    assert record.end["validation_accuracy"] == pytest.approx(right)


def test_the_same_examples_are_held_out_for_every_seed_and_method():
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    run = run_of(problem, data, select="validation")
    first = splits_of(data, run)[1]["validation"].inputs
    for changes in ({"seed": 7}, {"method": "adam", "lr": 1e-3}):
        other = splits_of(data, replace(run, **changes))[1]["validation"].inputs
        assert torch.equal(first, other)


# --- against a loop written by hand


def by_hand(data: Data, seed: int, steps: int, make_step):
    """Train a linear model; returns its parameters before each step."""
    torch.manual_seed(seed)
    model = Watched(dtype=torch.float64)
    take_step = make_step(model)
    generator = torch.Generator().manual_seed(seed)
    order: list[torch.Tensor] = []
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(43, generator=generator)[:40].reshape(5, 8))
        chosen = order.pop(0)
        for parameter in model.parameters():
            parameter.grad = None
        outputs = model(data.train.inputs[chosen])
        nn.functional.cross_entropy(outputs, data.train.targets[chosen]).backward()
        take_step()
    return model.parameters_then


def m_sgd(lr, beta):
    """M-SGD in torch operations: m <- beta m + (1 - beta) g, theta <- theta - lr m/(1 - beta^t)."""

    def make(model):
        averages = [torch.zeros_like(p) for p in model.parameters()]
        taken = 0

        @torch.no_grad()
        def step():
            nonlocal taken
            taken += 1
            for parameter, average in zip(model.parameters(), averages, strict=True):
                average.mul_(beta).add_(parameter.grad, alpha=1 - beta)
                parameter.sub_(lr * average / (1 - beta**taken))

        return step

    return make


def in_the_lab(tmp_path, data: Data, seed: int, lr: float):
    made: list[Watched] = []

    def make():
        made.append(Watched(dtype=torch.float64))
        return made[-1]

    problem: Problem = classification(make, data, steps=23)
    run = run_of(problem, data, lr=lr, seed=seed, eval_every=4)
    assert asdict(run)["beta"] == 0.9
    train(problem, data, run, tmp_path)
    return made[0].parameters_then


def test_training_is_a_plain_loop_bit_for_bit(tmp_path):
    data = points(dtype=torch.float64)
    expected = by_hand(data, 3, 23, lambda model: svag.MSGD(model.parameters(), lr=0.3).step)
    found = in_the_lab(tmp_path, data, 3, 0.3)
    assert len(found) == len(expected) == 23
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_training_is_m_sgd_in_torch_operations(tmp_path):
    data = points(dtype=torch.float64)
    expected = by_hand(data, 3, 23, m_sgd(0.3, 0.9))
    for ours, theirs in zip(in_the_lab(tmp_path, data, 3, 0.3), expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-13)
