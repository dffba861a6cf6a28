"""What a problem may bring: nested inputs, augmentation, a step of its own, state, precision."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

import svag
from lab.made import classification, points, run_of, trained
from svag.errors import InvalidOption, ProblemError
from svag.lab.devices import device_of
from svag.lab.records import find
from svag.lab.session import Session
from svag.lab.train import train
from svag.problems import Data, Metric, Split, r_squared_metric, supervised

# --- nested inputs


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Adding(nn.Module):
    """Takes its inputs in parts and puts them together again."""

    def __init__(self, parts):
        super().__init__()
        self.linear, self.parts = nn.Linear(3, 3), parts

    def forward(self, inputs):
        return self.linear(self.parts(inputs))


NESTED = {
    "tuple": (lambda x: (x / 2, x / 2), lambda i: i[0] + i[1]),
    "dict": (lambda x: {"a": x / 2, "b": [x / 2]}, lambda i: i["a"] + i["b"][0]),
    "named tuple": (lambda x: Pair(x / 2, x / 2), lambda i: i.left + i.right),
}


@pytest.mark.parametrize("kind", NESTED)
def test_nested_inputs_train_as_plain_ones(tmp_path, kind):
    split, together = NESTED[kind]
    plain = points()
    nested = Data(*(Split(split(s.inputs), s.targets) for s in (plain.train, plain.test)))
    first = trained(tmp_path / "1", classification(lambda: Adding(lambda x: x), plain), plain)
    second = trained(tmp_path / "2", classification(lambda: Adding(together), nested), nested)
    assert second.status == "done"
    for a, b in zip(first.evals, second.evals, strict=True):
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-6)
    assert nested.fingerprint != plain.fingerprint


def test_the_fingerprint_covers_names_and_values():
    def data(**parts):
        inputs = {name: torch.tensor(values) for name, values in parts.items()}
        split = Split(inputs, torch.tensor([0, 1]))
        return Data(split, split).fingerprint

    prints = [
        data(a=[1.0, 2.0]),
        data(b=[1.0, 2.0]),
        data(a=[1.0, 3.0]),
        data(a=[[1.0], [2.0]]),
        data(a=[1, 2]),
        data(a=[1.0, 2.0], b=[1.0, 2.0]),
    ]
    assert len(set(prints)) == len(prints)
    assert data(a=[1.0, 2.0]) == prints[0]


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        ([1, 2], torch.zeros(2), r"the inputs\[0\] of a split are int"),
        (torch.zeros(()), torch.zeros(()), "with a dimension for the examples"),
        ({"x": torch.zeros(3)}, torch.zeros(2), r"3 inputs\['x'\], 2 targets"),
        (torch.zeros(0, 3), torch.zeros(0), "a split is empty"),
        ({}, torch.zeros(2), "a split is empty"),
    ],
)
def test_splits_that_cannot_be(inputs, targets, words):
    with pytest.raises(InvalidOption, match=words):
        Split(inputs, targets)


class Listed(torch.utils.data.Dataset):
    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.full((3,), float(index)) + self.noise * torch.rand(3), index % 3


def test_a_data_set_is_held_in_memory():
    split = Split.from_dataset(Listed())
    assert split.inputs.tolist() == [[float(n)] * 3 for n in range(5)]
    assert split.targets.tolist() == [0, 1, 2, 0, 1]


def test_a_data_set_with_random_transforms_is_refused():
    with pytest.raises(InvalidOption, match=r"leave random transforms to Problem\.augment"):
        Split.from_dataset(Listed(noise=1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_refused_by_name(value):
    data = points()
    data.train.inputs[3, 1] = value
    problem = classification(lambda: nn.Linear(3, 3), data)
    with pytest.raises(InvalidOption, match="the inputs of the train split of 'points' hold NaN"):
        problem.check(data)
    waves = Split(data.train.inputs.to(torch.complex64), data.train.targets)
    with pytest.raises(InvalidOption, match="the inputs of the test split of 'points' hold NaN"):
        problem.check(Data(points().train, waves))


@pytest.mark.parametrize("form", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")])
def test_data_without_values_in_memory_are_refused_by_name(form):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data)
    with pytest.raises(InvalidOption, match="the inputs of the test split of 'points' are no den"):
        problem.check(Data(data.train, Split(form(data.test.inputs), data.test.targets)))


def test_data_are_made_of_splits():
    with pytest.raises(InvalidOption, match=r"test of the data is NoneType; give a svag\.problems"):
        Data(points().train, None)


# --- the metric


def test_the_default_metric_is_accuracy_or_the_loss():
    data = points()
    real = Data(*(Split(s.inputs, s.inputs) for s in (data.train, data.test)))
    cases = [
        ({}, data, "accuracy"),
        ({"loss": functional.cross_entropy}, data, "accuracy"),
        ({"loss": nn.CrossEntropyLoss()}, data, "accuracy"),
        ({"loss": functional.mse_loss}, real, "loss"),
        ({"loss": lambda o, t: functional.cross_entropy(o, t)}, data, "loss"),
        ({"loss": functional.mse_loss, "metric": r_squared_metric()}, real, "r2"),
    ]
    for changes, used, name in cases:
        problem = classification(lambda: nn.Linear(3, 3), used, **changes)
        assert problem.judged_by(used).name == name


def test_accuracy_where_the_classes_come_second():
    data = points(train=40)
    sequences = Data(
        *(
            Split(s.inputs[:, :, None].expand(-1, 3, 3), s.targets[:, None].expand(-1, 3))
            for s in (data.train, data.test)
        )
    )
    problem = classification(nn.Identity, sequences, loss=functional.cross_entropy)
    metric = problem.judged_by(sequences)
    outputs = sequences.test.inputs
    expected = (outputs.argmax(1) == sequences.test.targets).double().mean()
    assert float(metric.function(outputs, sequences.test.targets)) == pytest.approx(float(expected))
    ignored = sequences.test.targets.clone()
    ignored[:, 0] = -100
    left = (outputs.argmax(1) == ignored)[ignored >= 0].double().mean()
    assert float(metric.function(outputs, ignored)) == pytest.approx(float(left))


def test_a_metric_over_the_split_is_no_mean_of_batches(tmp_path):
    """R^2 of 2,500 examples, more than are evaluated at a time, against its formula."""
    data = points(train=60, test=2500)
    real = Data(*(Split(s.inputs, s.inputs * 2 + 1) for s in (data.train, data.test)))
    problem = classification(
        lambda: nn.Linear(3, 3), real, loss=functional.mse_loss, metric=r_squared_metric()
    )
    session = Session(problem, real, run_of(problem, real))
    found = session.evaluate(full=True)["test_r2"]
    with torch.no_grad():
        outputs, targets = session.model(real.test.inputs), real.test.targets
    expected = 1 - (targets - outputs).square().sum() / (targets - targets.mean(0)).square().sum()
    assert found == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Two words"}, "'Two words': give one word"),
        ({"name": ""}, "give one word"),
        ({"larger_is_better": 1}, "larger_is_better=1"),
        ({"low": 2.0, "high": 1.0}, "give numbers in order"),
        ({"over": "all"}, "choose 'examples' or 'split'"),
        ({"function": 3}, "give a function of outputs"),
    ],
)
def test_metrics_that_cannot_be(changes, words):
    settings = {"name": "f1", "function": max, "larger_is_better": True, **changes}
    with pytest.raises(InvalidOption, match=words):
        Metric(**settings)


# --- augmentation


def test_augmentation_has_a_generator_of_its_own(tmp_path):
    """The same for every method, and it moves neither the order of examples nor dropout."""
    seen = []

    def augment(inputs, generator):
        noise = torch.randn(inputs.shape, generator=generator)
        seen.append(noise)
        return inputs + 0 * noise

    data = points()

    def model():
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    plain = trained(tmp_path / "1", classification(model, data), data)
    augmented = trained(tmp_path / "2", classification(model, data, augment=augment), data)
    assert [line["test_loss"] for line in plain.evals] == [
        line["test_loss"] for line in augmented.evals
    ]
    first = list(seen)
    seen.clear()
    trained(tmp_path / "3", classification(model, data, augment=augment), data, method="adam")
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=True))


# --- a step of one's own


def test_the_usual_step_written_out_gives_the_same(tmp_path):
    data = points()
    step = supervised(functional.cross_entropy)
    first = trained(tmp_path / "1", classification(lambda: nn.Linear(3, 3), data), data)
    own = classification(lambda: nn.Linear(3, 3), data, step=step)
    second = trained(tmp_path / "2", own, data)
    assert first.findings == second.findings


def test_accumulation_is_one_large_batch(tmp_path):
    """Two batches of 4 with half the loss each are one of 8, as the order of examples has it."""

    def step(model, batches, optimizers):
        optimizers[0].zero_grad()
        total = 0.0
        for _ in range(2):
            inputs, targets = next(batches)
            loss = functional.cross_entropy(model(inputs), targets) / 2
            loss.backward()
            total += loss.item()
        optimizers[0].step()
        return total

    data = points(train=40)
    large = classification(lambda: nn.Linear(3, 3), data)
    small = classification(lambda: nn.Linear(3, 3), data, step=step, batch_size=4)
    first, second = trained(tmp_path, large, data), trained(tmp_path, small, data)
    assert second.end["test_loss"] == pytest.approx(first.end["test_loss"], rel=1e-4)


class Counting:
    """A step with a state, which no other run may see."""

    def __init__(self):
        self.taken = 0
        self.usual = supervised(functional.cross_entropy)

    def __call__(self, model, batches, optimizers):
        self.taken += 1
        assert self.taken <= 20, "the state of another run"
        return self.usual(model, batches, optimizers)

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


def test_the_state_of_a_step_belongs_to_one_run(tmp_path):
    data = points()
    step = Counting()
    problem = classification(lambda: nn.Linear(3, 3), data, step=step)
    for seed in (1, 2):
        assert trained(tmp_path, problem, data, seed=seed).status == "done"
    assert step.taken == 0


@pytest.mark.parametrize("answer", [None, "0.5", torch.zeros(2)])
def test_a_step_returns_the_loss(tmp_path, answer):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, step=lambda *three: answer)
    record = trained(tmp_path, problem, data)
    if isinstance(answer, str):  # float("0.5") is a number
        assert record.status == "done"
    else:
        assert record.status == "error"
        assert "return the loss, a number or a tensor of one element" in record.end["message"]


class Adversaries(nn.Module):
    """A generator of points and its critic."""

    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 1), nn.Linear(1, 1)

    def forward(self, inputs):
        return self.generator(inputs)


def test_two_optimizers(tmp_path):
    def step(model, batches, optimizers):
        noise, real = next(batches)
        of_generator, of_critic = optimizers
        of_critic.zero_grad()
        gap = model.critic(model(noise).detach()).mean() - model.critic(real).mean()
        (gap + model.critic.weight.square().sum()).backward()
        of_critic.step()
        of_generator.zero_grad()
        loss = -model.critic(model(noise)).mean()
        loss.backward()
        of_generator.step()
        return loss

    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(40, 2, generator=generator), torch.full((40, 1), 3.0))
    data = Data(split, split)
    metric = Metric(
        name="distance",
        function=lambda outputs, targets: (outputs.mean() - targets.mean()).abs(),
        larger_is_better=False,
        low=0.0,
        over="split",
    )
    problem = classification(
        Adversaries,
        data,
        steps=200,
        step=step,
        metric=metric,
        loss=lambda outputs, targets: (outputs - targets).square().mean(),
        optimizers=lambda model, make: [
            make(model.generator.parameters()),
            make(model.critic.parameters(), lr_factor=2.0),
        ],
    )
    session = Session(problem, data, run_of(problem, data, lr=0.1))
    assert [o.param_groups[0]["lr"] for o in session.optimizers] == [0.1, 0.2]
    record = trained(tmp_path, problem, data, lr=0.1)
    assert record.status == "done"
    assert record.end["test_distance"] < record.evals[0]["test_distance"] / 2


def test_optimizers_that_are_none(tmp_path):
    data = points()
    problem = classification(lambda: nn.Linear(3, 3), data, optimizers=lambda model, make: [])
    assert "return a list of what make() built" in trained(tmp_path, problem, data).end["message"]


# --- state that is carried from batch to batch


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNN(1, 4, batch_first=True), nn.Linear(4, 3)
        self.carried_state = None

    def forward(self, inputs):
        hidden, self.carried_state = self.cell(inputs, self.carried_state)
        return self.head(hidden)


def series(rows):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 5, 1, generator=generator)
    return Split(inputs, torch.randint(3, (rows, 5), generator=generator))


def test_carried_state_is_truncated_backpropagation_through_time(tmp_path):
    """Bit for bit the loop that one would write: two streams, the state reset every epoch."""
    data = Data(series(8), series(4))
    problem = classification(Recurrent, data, batch_size=2, steps=10, carry_state=True)
    session = Session(problem, data, run_of(problem, data, seed=5, eval_every=3))
    for _ in session:
        session.evaluate()

    torch.manual_seed(5)
    model = Recurrent()
    optimizer = svag.MSGD(model.parameters(), lr=0.1)
    for step in range(10):
        if step % 4 == 0:
            model.carried_state = None
        rows = slice(2 * (step % 4), 2 * (step % 4) + 2)
        optimizer.zero_grad()
        outputs = model(data.train.inputs[rows])
        functional.cross_entropy(
            outputs.flatten(0, 1), data.train.targets[rows].flatten()
        ).backward()
        optimizer.step()
        model.carried_state = model.carried_state.detach()
    for a, b in zip(session.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(session.model.carried_state, model.carried_state)


# --- precision, device, BatchNorm


def test_autocast_is_a_setting_of_the_run(tmp_path):
    data = points()
    seen = set()

    class Looking(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            seen.add(outputs.dtype)
            return outputs

    problem = classification(lambda: Looking(3, 3), data)
    run = run_of(problem, data, autocast="bfloat16")
    assert run.id != run_of(problem, data).id
    train(problem, data, run, tmp_path)
    assert find(tmp_path, run).status == "done"
    assert seen == {torch.bfloat16}
    own = classification(lambda: Looking(3, 3), data, step=supervised(functional.cross_entropy))
    seen.clear()
    train(own, data, run_of(own, data, autocast="bfloat16"), tmp_path / "own")
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "no such"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(InvalidOption, match="is not available on this machine; choose cpu"):
        device_of(name)


@pytest.mark.parametrize("method", ["m-svag@within-batch", "svag@within-batch"])
def test_batch_norm_takes_its_variance_from_micro_batches(tmp_path, method):
    data = points(train=64)

    def model():
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    problem = classification(model, data, batch_size=16, steps=40)
    record = trained(tmp_path, problem, data, method=method, lr=0.3)
    assert record.status == "done", record.end
    assert record.end["test_accuracy"] > record.evals[0]["test_accuracy"]


def test_an_own_step_within_batch_says_what_is_missing(tmp_path):
    data = points()
    problem = classification(
        lambda: nn.Linear(3, 3), data, step=supervised(functional.cross_entropy)
    )
    record = trained(tmp_path, problem, data, method="m-svag@within-batch")
    assert record.status == "error"
    assert "svag.within_batch_variance(model)" in record.end["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "name"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"quick_steps": True}, "quick_steps=True"),
        ({"loss": "mse"}, "loss='mse': give a function"),
        ({"metric": "accuracy"}, "metric='accuracy': give a svag.problems.Metric"),
        ({"select": "train"}, "choose 'validation' or 'test'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"autocast": "int8"}, "autocast='int8'"),
        ({"depends_on": "file"}, "give a tuple of paths"),
        ({"augment": 3}, "augment=3"),
    ],
)
def test_problems_that_cannot_be(changes, words):
    from dataclasses import replace

    problem = classification(lambda: nn.Linear(3, 3), points())
    with pytest.raises((InvalidOption, ProblemError), match=words):
        replace(problem, **changes)
